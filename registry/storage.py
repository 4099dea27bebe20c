"""The one door to where registries live: a local directory now, an `s3://` prefix behind the same few calls.

Writers never write in place: a file goes to a temporary name beside its target, is flushed to disk and renamed, so a
crash leaves either the old content or the new. A directory is published by one rename, which is the commit.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from registry.errors import ServiceError, UsageError


def open_root(uri: str | Path, *, create: bool = False) -> Path:
    """The directory at `uri`.

    Raises:
        UsageError: it does not exist (and `create` is False), is not a directory, or is of an unknown scheme.
        ServiceError: it cannot be created.
    """
    text = str(uri)
    if "://" in text and not text.startswith("file://"):
        raise UsageError(f"registry {text!r}: only a local directory (a path or file://) is supported")
    root = Path(text.removeprefix("file://")).expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise UsageError(f"registry {root}: expected a directory, found a file; name another with --registry")
    if not root.exists():
        if not create:
            raise UsageError(
                f"registry {root}: no such directory; run `nulls ingest` first, or name it with --registry"
            )
        with translate_os_errors(root):
            root.mkdir(parents=True, exist_ok=True)
    return root


class translate_os_errors:  # noqa: N801 - reads as a statement
    """Context: an OSError while writing under `place` becomes a ServiceError that says what to do."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        advice = {
            errno.ENOSPC: "free some space and run the same command again: what is complete is kept",
            errno.EDQUOT: "the quota is used up: free some space and run the same command again",
            errno.EROFS: "it is read-only: name another place",
            errno.EACCES: "it may not be written by this user: name another place or change its permissions",
            errno.EPERM: "it may not be written by this user: name another place or change its permissions",
        }.get(error.errno or 0, "see the system's message")
        raise ServiceError(f"cannot write {self.place}: {error.strerror or error}; {advice}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` to `path` so that it is there whole or not at all, also after a power cut.

    Raises:
        ServiceError: the place cannot be written.
    """
    with translate_os_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(
                    file.fileno(), 0o666 & ~_umask()
                )  # mkstemp's file is its owner's alone; a registry is a team's
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def _umask() -> int:
    """The process's umask, read without changing it (setting it to learn it would race with other threads)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("Umask:")[2].split()[0], 8)


def sync_directory(directory: Path) -> None:
    """Makes the renames in `directory` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(directory: Path) -> None:
    """Finds out before any work whether `directory` can be written.

    Raises:
        ServiceError: it cannot.
    """
    with translate_os_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
