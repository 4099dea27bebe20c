"""The public names of a package, each imported from its module when it is first used.

`import registry` loads no other module; `registry.Snapshot` loads `registry.snapshot`. A function may have the name of
its module (`registry.lookup.lookup`): the package's attribute is then the function, even if the module was imported
first. The module stays importable (`from registry.lookup import read_sources`).

    publish(__name__, {"Registry": "registry.snapshot", "lookup": "registry.lookup"})
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any


def publish(package: str, names: Mapping[str, str]) -> None:
    """Make `names` (public name -> module that defines it) attributes of `package`, imported at first use."""

    class Package(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in names:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            value = getattr(importlib.import_module(names[name]), name)
            self.__dict__[name] = value
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # The import system sets a submodule on its package once it is loaded.
            if isinstance(value, ModuleType) and names.get(name) == value.__name__:
                value = getattr(value, name)
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *names})

    sys.modules[package].__class__ = Package
