"""The one door to where registries and inputs live: a local directory, or a prefix at `s3://`.

A `Location` is a `Path`, or an `S3Path` (`registry.storage.s3`), which has the part of it that readers use. Writers never write
in place: a file goes to a temporary name beside its target, is flushed to disk and renamed, so a crash leaves either
the old content or the new. A directory is published by one rename, which is the commit; in S3, where there is none, by
storing its manifest last (`registry.storage.publish_s3`).

    for place, num_bytes in list_inputs("s3://crawl/2026/*.warc.gz"):
        with open_input(place) as file: ...
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, TypeAlias

from registry.errors import DamagedError, InputError, ServiceError, UsageError
from registry.storage import s3
from registry.storage.s3 import S3Path

Location: TypeAlias = Path | S3Path

_COPY_BYTES = 8 << 20


def is_remote(uri: object) -> bool:
    """Whether `uri` (text, Path or S3Path) is at s3://."""
    return str(uri).startswith(s3.SCHEME)


def open_root(uri: str | Location, *, create: bool = False) -> Location:
    """The directory or prefix at `uri`.

    Raises:
        UsageError: it does not exist (and `create` is False), is not a directory, or is of an unknown scheme; or it is
            at s3:// and boto3 is not installed.
        ServiceError: it cannot be created, or S3 cannot be reached.
    """
    text = str(uri)
    if is_remote(text):
        return _open_prefix(S3Path.parse(text), create=create)
    if "://" in text and not text.startswith("file://"):
        raise UsageError(f"registry {text!r}: expected a local directory (a path or file://), or s3://BUCKET/PREFIX")
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


def _open_prefix(prefix: S3Path, *, create: bool) -> S3Path:
    if not prefix.has_any() and not create:
        raise UsageError(f"registry {prefix}: nothing is there; run `nulls ingest` first, or name it with --registry")
    return prefix


def work_directory(root: Location) -> Path:
    """Where ingests into the registry at `root` keep what they can resume from: a local directory of its own.

    In a local registry `work`; for one at s3:// a directory in NULLS_WORK, else in `nulls/work` of the user's cache.
    """
    if isinstance(root, Path):
        return root / "work"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nulls" / "work"
    base = Path(os.environ.get("NULLS_WORK") or cache).expanduser().absolute()
    return base / hashlib.sha256(str(root).encode()).hexdigest()[:16]


def list_inputs(uri: str) -> list[tuple[S3Path, int]]:
    """The objects that `uri` names, with their sizes in bytes, in the order of their keys.

    Args:
        uri: `s3://` and an object, a prefix (all that is below it, as in a directory) or a glob, where `*` and `?` stay
            within a folder and `**` does not.

    Raises:
        InputError: it names nothing.
        ServiceError: S3 cannot be reached, or denies it.
    """
    place = S3Path.parse(uri)
    if place.key and not uri.endswith("/"):
        try:
            return [(place, place.stat().st_size)]
        except FileNotFoundError:
            pass
    if glob.has_magic(place.key):
        pattern = place.key.split("/")
        found = [(path, size) for path, size in _before_magic(place).walk() if _matches(path.key.split("/"), pattern)]
    else:
        found = list(place.walk())
    if not found:
        raise InputError(f"{uri}: no such object, and none below it or like it; expected an object, a prefix or a glob")
    return found


def _before_magic(place: S3Path) -> S3Path:
    """The longest folder of a glob that is spelled out."""
    folder = S3Path(place.bucket, "")
    for part in place.key.split("/")[:-1]:
        if glob.has_magic(part):
            break
        folder = folder / part
    return folder


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        least = 0 if pattern[1:] else max(1, len(parts))  # at the end it is all that is left, which is something
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(least, len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def open_input(place: str | Location) -> BinaryIO:
    """An input for reading from its start: seekable, and each read whole (S3: faults are retried, one version is read).

    Raises:
        FileNotFoundError: it is not there.
        ServiceError: S3 cannot be reached, while opening or while reading.
        DamagedError: while reading, the object was replaced.
    """
    location = place if isinstance(place, (Path, S3Path)) else _location(place)
    return location.open("rb")


def sha256_of(place: str | Location) -> str:
    """SHA-256 of an input's content, 64 hex digits; the errors are those of `open_input`."""
    with open_input(place) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def copy_verified(source: S3Path, target: Path, sha256: str | None = None) -> None:
    """Download an object to `target`, whole or not at all, and compare it; a target with that content is kept.

    Args:
        source: the object.
        target: a local file; its folder is created if needed.
        sha256: what its content should hash to, 64 hex digits; None: whatever the store says that the object is.

    Raises:
        DamagedError: the object is missing, or its content is not what it should be.
        ServiceError: S3 cannot be reached, or the target cannot be written.
    """
    with translate_os_errors(target):
        if sha256 is not None and target.is_file() and sha256_of(target) == sha256:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with open_input(source) as file, partial.open("wb") as copy:
                shutil.copyfileobj(file, copy, _COPY_BYTES)
            found = sha256_of(partial)
            if found != sha256 if sha256 is not None else not source.holds(partial, found):
                raise DamagedError(
                    f"{source}: content differs; restore it from a copy, or ingest the same inputs again"
                )
            os.replace(partial, target)
        except FileNotFoundError as error:
            raise DamagedError(f"{source}: missing; restore it from a copy, or ingest again") from error
        finally:
            partial.unlink(missing_ok=True)


def _location(uri: str) -> Location:
    return S3Path.parse(uri) if is_remote(uri) else Path(uri.removeprefix("file://")).expanduser()


class translate_os_errors:  # noqa: N801 - reads as a statement
    """Context: an OSError while writing under `place` becomes a ServiceError that says what to do."""

    def __init__(self, place: Location) -> None:
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
