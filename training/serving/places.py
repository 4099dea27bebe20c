"""Find the files that a model version names, where the store is now.

A folder with the MLflow database, artifacts, registry and runs can be moved, copied or restored. A pointer names what
lies under the folder of the SQLite database relative to that folder. MLflow's own URIs of artifacts and the pointers of
earlier releases are absolute: what lies beside the database under the end of such a path comes first, so that a copy
uses its own files beside a living original. `nulls repoint` rewrites MLflow's URIs for MLflow's own commands.

Run: ``find(recorded, [folder_of(tracking_uri)], Path.is_dir)``. Cost: one `stat` for each part of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

SQLITE = "sqlite:///"
WEIGHTS = "NULLS_WEIGHTS"
"""Environment variable: a folder of weights, or one that has them under the path that the pointer names."""


def folder_of(tracking_uri: str) -> Path | None:
    """Return the folder of an SQLite tracking store; None for a server."""
    name = tracking_uri.removeprefix(SQLITE).partition("?")[0]
    return Path(name).absolute().parent if tracking_uri.startswith(SQLITE) and name else None


def local_path(uri: str) -> Path | None:
    """Return the path of a `file:` URI or a plain path; None for any other URI."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in uri or not uri else Path(uri)


def relative(path: str, tracking_uri: str) -> str:
    """Return a path relative to the folder of the store if it lies under it; else, and for a URI, as it is."""
    base, here = folder_of(tracking_uri), local_path(path)
    if base is None or here is None:
        return path
    inside, root = here.absolute().resolve(), base.resolve()
    return inside.relative_to(root).as_posix() if inside != root and inside.is_relative_to(root) else path


def find(recorded: str, bases: Iterable[Path], is_it: Callable[[Path], bool]) -> Path | None:
    """Return the first of `candidates` that `is_it`, or None."""
    return next((path for path in candidates(recorded, bases) if is_it(path)), None)


def candidates(recorded: str, bases: Iterable[Path]) -> Iterator[Path]:
    """Yield where a recorded path may be now: under each base, the longest end of the path first; then as recorded."""
    path = local_path(recorded)
    if path is None:
        return
    parts = path.parts[1:] if path.is_absolute() else path.parts
    for base in bases:
        for start in range(len(parts) if path.is_absolute() else 1):
            yield base.joinpath(*parts[start:])
    yield path


def own_artifacts(location: str, root: str, tracking_uri: str) -> str:
    """Return where a store writes new artifacts: beside its database if it has a folder for them there.

    Args:
        location: what MLflow says, below `root`.
        root: the artifact location of the experiment.
        tracking_uri: the store.

    Returns:
        `location`, or in a store that was moved or copied the same path below its own artifacts, as a `file:` URI.
    """
    base, path, before = folder_of(tracking_uri), local_path(location), local_path(root)
    if base is None or path is None or before is None or not path.is_relative_to(before):
        return location
    own = own_root(before, base)
    return location if own == before else (own / path.relative_to(before)).as_uri()


def own_root(root: Path, base: Path) -> Path:
    """Return the folder for artifacts beside a database: `root` itself, or its counterpart under `base`."""
    if root.is_relative_to(base):
        return root
    found = find(str(root), [base], Path.is_dir)
    return found or base / root.name
