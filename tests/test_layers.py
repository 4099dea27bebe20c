"""registry <- {pipelines, training} <- orchestration: every import, lazy ones too, runs along an arrow."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

import registry

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "registry": {"registry"},
    "pipelines": {"registry", "pipelines"},
    "training": {"registry", "training"},
    "orchestration": {"registry", "pipelines", "training", "orchestration"},
}
HEAVY = {"torch", "ray", "apache_beam", "duckdb", "mlflow", "datatrove", "transformers", "pandas", "boto3", "botocore"}
_LOADERS = {"import_module", "__import__", "find_spec", "run_module", "resolve_name"}
MOST_MODULES = 14  # in a folder, beside its `__init__`: what a stranger can still read at a glance
_MODULE = re.compile(r"[A-Za-z_][\w.]*")


def imports(source: str, module: str) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of everything that `source` of `module` imports, wherever in it."""
    package = module.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level] if node.level else []
            names = [".".join([*base, node.module or ""]).strip(".") or node.names[0].name]
        elif isinstance(node, ast.Call) and _name_of(node.func) in _LOADERS:
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            texts = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            names = [text.split(":")[0] for text in texts if _MODULE.match(text)]
        else:
            continue
        yield from ((node.lineno, name.partition(".")[0]) for name in names)


def _name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def breaches(source: str, module: str) -> list[str]:
    """The imports of ours in `source` that `module` may not make."""
    package = module.partition(".")[0]
    found = [(line, name) for line, name in imports(source, module) if name in MAY_IMPORT]
    return [f"{module}:{line} imports {name}" for line, name in found if name not in MAY_IMPORT[package]]


def sources(package: str) -> dict[str, str]:
    """Module name -> source, of every file in a package."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f.read_text() for f in files}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_import_runs_along_an_arrow(package: str) -> None:
    modules = sources(package)
    assert modules, f"no module in {package}: nothing was checked"
    assert [breach for name, text in modules.items() for breach in breaches(text, name)] == []


def test_only_the_rooms_of_beam_import_it() -> None:
    importers = {
        name
        for package in MAY_IMPORT
        for name, text in sources(package).items()
        if any(imported == "apache_beam" for _, imported in imports(text, name))
    }
    assert len(importers) >= 4
    assert {name.rpartition(".")[0] for name in importers} == {"pipelines.resolve.beam"}
    assert "apache_beam" not in loaded_by("import pipelines.ingest, pipelines.resolve.beam.engine")


def test_the_arrows_that_there_should_be_are_found() -> None:
    seen = {
        package: {n for name, text in sources(package).items() for _, n in imports(text, name)}
        for package in MAY_IMPORT
    }
    assert all("registry" in names for names in seen.values())
    assert len(sources("registry")) >= 12
    assert "pyarrow" in seen["registry"]
    assert "tldextract" in seen["registry"]  # named in a string


@pytest.mark.parametrize(
    "line",
    [
        "import training",
        "import os, training.sinks.layout as masks",
        "from training.sinks.layout import draw",
        "from training import masks",
        "def f():\n    import training.sinks.layout",
        "class A:\n    def f(self):\n        from training import masks",
        "if TYPE_CHECKING:\n    from training import masks",
        "try:\n    import training\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('training.sinks.layout')",
        "from importlib import import_module\nx = lambda: import_module(name='training')",
        "__import__('training')",
        "from ..training import masks",
        "from .. import training",
    ],
)
def test_a_forbidden_import_is_caught_in_any_form(line: str) -> None:
    for module in ("pipelines.bad", "registry.bad"):
        assert len(breaches(line, module)) == 1, (module, line)
        assert "imports training" in breaches(line, module)[0]
    assert breaches(line, "orchestration.good") == []
    assert breaches(line, "training.good") == []


@pytest.mark.parametrize(
    "line", ["from registry import ids", "import os", "from . import x", "from .training import x", "'training'"]
)
def test_an_allowed_import_is_not(line: str) -> None:
    assert breaches(line, "pipelines.good") == []


def loaded_by(statements: str) -> set[str]:
    """The top-level packages that a fresh Python holds after `statements`."""
    program = f"{statements}\nimport json, sys\nprint(json.dumps(sorted({{n.partition('.')[0] for n in sys.modules}})))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def all_modules() -> dict[str, str]:
    """Module name -> source, of every file in every package."""
    return {name: text for package in MAY_IMPORT for name, text in sources(package).items()}


def module_imports(source: str, module: str, known: Collection[str]) -> set[str]:
    """The modules among `known` that `source` of `module` imports, lazily or for types too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & set(known)
            found |= {node.module} if names - set(known) else set()
    return (found & set(known)) - {module}


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, each sorted."""
    reached = {node: _reachable(graph, node) for node in graph}
    found = {tuple(sorted(other for other in reached[node] if node in reached[other])) for node in graph}
    return [list(group) for group in sorted(found) if len(group) > 1]


def _reachable(graph: Mapping[str, Collection[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph[waiting.pop()]:
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def test_no_circle_of_imports_at_module_level_or_lazy() -> None:
    modules = all_modules()
    # The public surface of a package names its modules for types; it imports them when they are used.
    graph = {
        name: set() if name in MAY_IMPORT else module_imports(text, name, modules) for name, text in modules.items()
    }
    assert sum(map(len, graph.values())) > 400, "hardly an import was found: nothing was checked"
    assert circles(graph) == []


def test_nothing_that_serves_reaches_what_measures() -> None:
    """The examiner switches the sinks of an unlearned source on, to measure them: serving must not be able to."""
    modules = all_modules()
    graph = {name: module_imports(source, name, modules) for name, source in modules.items()}

    def measures(name: str) -> set[str]:
        return {found for found in _reachable(graph, name) if found.startswith("training.evaluate")}

    serving = [name for name in modules if name.startswith(("training.serving", "training.model"))]
    assert len(serving) > 10
    assert {name: measures(name) for name in serving if measures(name)} == {}
    assert "training.evaluate.ablation" in measures("orchestration.unlearning.evidence")


def test_a_circle_would_be_found() -> None:
    known = ["p.a", "p.b", "p.c"]
    texts = {
        "p.a": "def f():\n    from p import b",
        "p.b": "if TYPE_CHECKING:\n    from p.c import name",
        "p.c": "import p.a",
    }
    graph = {name: module_imports(text, name, known) for name, text in texts.items()}
    assert circles(graph) == [known]
    assert circles(graph | {"p.c": set()}) == []


@pytest.mark.parametrize("package", [*MAY_IMPORT, "tests"])
def test_no_room_is_flat(package: str) -> None:
    rooms: dict[str, int] = {}
    for file in (ROOT / package).rglob("*.py"):
        if file.name != "__init__.py":
            rooms[str(file.parent.relative_to(ROOT))] = rooms.get(str(file.parent.relative_to(ROOT)), 0) + 1
    assert rooms
    assert {room: count for room, count in rooms.items() if count > MOST_MODULES} == {}


def test_the_registry_alone_loads_nothing_heavy() -> None:
    names = [m.name for m in pkgutil.walk_packages(registry.__path__, "registry.") if "migrations" not in m.name]
    assert {
        "registry.identity",
        "registry.snapshot",
        "registry.lookup",
        "registry.catalog.database",
        "registry.catalog.ledger",
    } <= set(names)
    loaded = loaded_by("import registry\n" + "\n".join(f"import {name}" for name in names))
    assert loaded & HEAVY == set()
    assert {"registry", "pyarrow", "sqlalchemy"} <= loaded


@pytest.mark.parametrize("package", ["duckdb", "pandas"])
def test_a_heavy_package_would_be_seen(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    assert package in loaded_by(f"import registry.ids, {package}") & HEAVY
