"""The public names of `registry`: imported at first use, and functions where a function and its module share a name."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import registry

ROOT = Path(__file__).parents[2]


def run(program: str) -> str:
    """Run a program in a new interpreter, and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


BEFORE = "from registry import lookup"
AFTER = "import registry.lookup; from registry import lookup"
BETWEEN = (
    "from registry import lookup as first; import registry.lookup; from registry import lookup; assert lookup is first"
)
BY_ANOTHER_NAME = "from registry.lookup import read_sources; from registry import lookup"


@pytest.mark.parametrize("imports", [BEFORE, AFTER, BETWEEN, BY_ANOTHER_NAME])
def test_lookup_is_the_function_in_any_order_of_imports(imports: str) -> None:
    check = """
import sys, types
import registry
module = sys.modules["registry.lookup"]
assert isinstance(lookup, types.FunctionType), lookup
assert lookup is registry.lookup is module.lookup
assert isinstance(module, types.ModuleType)
from registry.lookup import read_sources
assert read_sources is module.read_sources
print("checked")
"""
    assert run(f"{imports}\n{check}") == "checked\n"


@pytest.mark.parametrize("name", registry.__all__)
def test_every_public_name_is_that_of_its_module(name: str) -> None:
    value = getattr(registry, name)
    assert not isinstance(value, types.ModuleType)
    assert value.__module__.startswith("registry.")
    assert getattr(importlib.import_module(value.__module__), name) is value


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'registry' has no attribute 'nothing'"):
        registry.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from registry import nothing  # noqa: F401
    assert not hasattr(registry, "nothing")


def test_dir_lists_the_public_names_before_their_first_use() -> None:
    names = run("import registry; print(*dir(registry))").split()
    assert {*registry.__all__, "__doc__", "__path__"} <= set(names)
    assert names == sorted(names)


def test_importing_registry_loads_no_other_module_of_it() -> None:
    program = "import sys, registry; print(*sorted(sys.modules))"
    loaded = run(program).split()
    assert "registry" in loaded
    assert {name for name in loaded if name.startswith("registry.")} == {"registry._public"}
    assert {"pyarrow", "sqlalchemy", "boto3", "idna"}.isdisjoint(loaded)
    assert "pyarrow" in run(f"from registry import lookup; {program}").split()
