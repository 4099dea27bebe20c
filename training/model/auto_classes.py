"""Register the model type `nulls` with transformers' Auto classes as soon as a program uses them, and not before.

`import training` calls `register_when_used`. It loads neither torch nor transformers (about 5 s together), yet
`AutoConfig.from_pretrained(folder)` and `AutoModelForCausalLM.from_pretrained(folder)` load exported weights, in
whichever order training and transformers are imported. Where the Auto classes are loaded already, the type is
registered at once. Otherwise a finder on `sys.meta_path` watches the imports of transformers, and registers after the
first one that loaded them. It waits for the outermost import to end, since transformers loads its Auto classes in the
middle of other modules (`modeling_utils` needs `configuration_auto`), when a Llama cannot be imported yet. Threads
that import the same Auto class together wait for the registration; one that takes `AutoConfig` while another thread is
in the middle of a larger import can still be too early, and imports `training.model.modeling_nulls` itself to be sure.

Cost: microseconds for each module of transformers, until the type is registered; then the finder is removed.
Run: ``register_when_used()``.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_WATCHED = "transformers"
_AUTO_MODULES = ("transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto")

_log = logging.getLogger(__name__)
_imports = threading.local()
"""`depth`: imports of transformers modules that this thread is in the middle of."""


def register_when_used() -> None:
    """Register the model type now if the Auto classes are loaded, else when they are; repeated calls change nothing."""
    if _auto_classes_are_loaded():
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _auto_classes_are_loaded() -> bool:
    return any(name in sys.modules for name in _AUTO_MODULES)


def _register() -> None:
    """Import the module that registers the type; the import system makes other threads wait until it is there."""
    try:
        import training.model.modeling_nulls  # noqa: F401
    except ImportError as error:
        # Whoever imported transformers may not need this model type, and must not fail for it.
        _log.warning("transformers cannot load models of type 'nulls': %s; install nulls[train]", error)
    # A new list: one that changes while another thread goes through it would hide a finder from that thread.
    sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]


class _Finder(MetaPathFinder):
    """Finds modules of transformers as the other finders do, with a loader that notices when they are loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _WATCHED:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, _Finder) else finder.find_spec(fullname, path, target)
            if spec is not None:
                spec.loader = spec.loader and _Loader(spec.loader)
                return spec
        return None


class _Loader(Loader):
    """A module's own loader; after the outermost import of this thread, it registers the type if it is time."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader, as if it had never been watched.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        _imports.depth = getattr(_imports, "depth", 0) + 1
        try:
            self._loader.exec_module(module)
        finally:
            _imports.depth -= 1
        if _imports.depth == 0 and _auto_classes_are_loaded():
            _register()
