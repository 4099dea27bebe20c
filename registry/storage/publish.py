"""Publish a directory whole: staging, fsync, a marker with the size of each file, one rename.

A reader of `target` sees nothing, or the complete directory. A crash leaves a hidden staging directory beside it, which
is never read. S3 has no rename of directories; `registry.storage.publish_s3` stores the manifest last instead.

    with new_directory(target, keep=is_whole) as staging:
        ...                                     # write files into `staging`
        write_marker(staging, "complete.json")
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from registry.storage.paths import sync_directory, translate_os_errors, write_atomic

Keep = Callable[[Path], bool]


def replace_always(target: Path) -> bool:
    """Return False: the `keep` that always replaces the target."""
    return False


@contextlib.contextmanager
def new_directory(target: Path, *, keep: Keep = replace_always) -> Iterator[Path]:
    """Yield an empty staging directory beside `target`, and publish it when the block ends without an error.

    Args:
        target: the path of the new directory; its parent is created if needed.
        keep: as in `publish_directory`.

    Raises:
        ServiceError: the disk is full or cannot be written; `target` is then as it was before.
    """
    with translate_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:32]}."))
        try:
            staging.chmod(0o755)  # mkdtemp's directory is private to its owner; these are shared by a team
            yield staging
            publish_directory(staging, target, keep=keep)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def publish_directory(staging: Path, target: Path, *, keep: Keep = replace_always) -> bool:
    """Flush every file of `staging` to disk, and rename `staging` to `target`.

    Args:
        staging: a complete directory on the file system of `target`; it does not exist afterwards.
        target: replaced if it exists, unless `keep(target)`; then `staging` is deleted instead.
        keep: whether an existing `target` stays: for content that is the same from any writer, the first one wins.

    Returns:
        Whether `staging` became `target`.

    Raises:
        OSError: the disk is full or cannot be written; see `translate_os_errors`.
    """
    for path in staging.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_directory(staging)
    published = _rename(staging, target, keep)
    sync_directory(target.parent)
    if not published:
        shutil.rmtree(staging, ignore_errors=True)
    return published


def _rename(staging: Path, target: Path, keep: Keep) -> bool:
    while True:
        if target.exists() and keep(target):
            return False
        with _moved_aside(target) as restore:
            try:
                os.rename(staging, target)
                return True
            except OSError:
                if not target.exists():  # else another writer was faster: check what it wrote
                    restore()
                    raise


@contextlib.contextmanager
def _moved_aside(directory: Path) -> Iterator[Callable[[], None]]:
    """Rename a directory to a hidden name, and delete it at the end, unless the function that this yields is called."""
    grave = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".discarded."))
    moved = grave / directory.name

    def restore() -> None:
        if moved.exists():
            os.rename(moved, directory)

    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(directory, moved)
        yield restore
    finally:
        shutil.rmtree(grave, ignore_errors=True)


def write_marker(directory: Path, name: str, **facts: Any) -> None:
    """Write the JSON file `name`, last of a directory: `facts`, and under "files" the size of each in bytes."""
    sizes = {path.name: path.stat().st_size for path in sorted(directory.iterdir()) if path.is_file()}
    write_atomic(directory / name, json.dumps({**facts, "files": sizes}, indent=1).encode())


def read_marker(directory: Path, name: str) -> dict[str, Any] | None:
    """Return the content of a directory's marker; None if it, or a file it names, is missing or of another size."""
    try:
        content: dict[str, Any] = json.loads((directory / name).read_bytes())
        whole = all((directory / file).stat().st_size == size for file, size in content["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return content if whole else None
