"""Paths of registries and inputs: a local path, or an object or prefix at `s3://`.

A `Location` is a `Path` or an `S3Path` (`registry.storage.s3`), which has those methods of `Path` that readers use.
Writers never write in place: a file is written under a temporary name beside its target, flushed to disk and renamed,
so a crash leaves either the old content or the new. A directory is published by one rename, which is the commit; S3 has
no rename, so its manifest is stored last (`registry.storage.publish_s3`).

    for path, num_bytes in list_inputs("s3://crawl/2026/*.warc.gz"):
        with open_input(path) as file: ...
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
    """Return whether `uri` (text, Path or S3Path) is at s3://."""
    return str(uri).startswith(s3.SCHEME)


def open_root(uri: str | Location, *, create: bool = False) -> Location:
    """Return the directory or prefix at `uri`.

    Raises:
        UsageError: it does not exist (and `create` is False), is not a directory, or has an unknown scheme; or it is
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
    """Return the local directory from which stopped ingests into the registry at `root` resume.

    In a local registry `work`; for one at s3:// a directory in NULLS_WORK, else in the user's cache (`nulls/work`).
    """
    if isinstance(root, Path):
        return root / "work"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nulls" / "work"
    base = Path(os.environ.get("NULLS_WORK") or cache).expanduser().absolute()
    return base / hashlib.sha256(str(root).encode()).hexdigest()[:16]


def list_inputs(uri: str) -> list[tuple[S3Path, int]]:
    """Return the objects that `uri` names, with their sizes in bytes, in the order of their keys.

    Args:
        uri: `s3://` and an object, a prefix (all objects below it, as in a directory) or a glob, where `*` and `?` stay
            within a folder and `**` does not.

    Raises:
        InputError: there is no such object.
        ServiceError: S3 cannot be reached, or denies access.
    """
    named = S3Path.parse(uri)
    if named.key and not uri.endswith("/"):
        try:
            return [(named, named.stat().st_size)]
        except FileNotFoundError:
            pass
    if glob.has_magic(named.key):
        pattern = named.key.split("/")
        found = [(path, size) for path, size in _before_magic(named).walk() if _matches(path.key.split("/"), pattern)]
    else:
        found = list(named.walk())
    if not found:
        raise InputError(f"{uri}: no such object; expected an object, a prefix or a glob")
    return found


def _before_magic(pattern: S3Path) -> S3Path:
    """Return the deepest folder of a glob above its first wildcard."""
    folder = S3Path(pattern.bucket, "")
    for part in pattern.key.split("/")[:-1]:
        if glob.has_magic(part):
            break
        folder = folder / part
    return folder


def _matches(parts: list[str], pattern: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        least = 0 if pattern[1:] else max(1, len(parts))  # a final `**` matches all that is left, at least one part
        return any(_matches(parts[skipped:], pattern[1:]) for skipped in range(least, len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def open_input(uri: str | Location) -> BinaryIO:
    """Open an input for reading: seekable, each read complete (from S3: faults are retried, one version is read).

    Raises:
        FileNotFoundError: it does not exist.
        ServiceError: S3 cannot be reached, while opening or while reading.
        DamagedError: while reading, the object was replaced.
    """
    location = uri if isinstance(uri, (Path, S3Path)) else _location(uri)
    return location.open("rb")


def sha256_of(uri: str | Location) -> str:
    """Return the SHA-256 of an input's content, 64 hex digits; the errors are those of `open_input`."""
    with open_input(uri) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def copy_verified(source: S3Path, target: Path, sha256: str | None = None) -> None:
    """Download an object to `target`, whole or not at all, and verify it; a target that has `sha256` already is kept.

    Args:
        source: the object.
        target: a local file; its folder is created if needed.
        sha256: the expected hash of its content, 64 hex digits; None: the checksum that the store has for the object.

    Raises:
        DamagedError: the object is missing, or its content does not have the expected hash.
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
    """Context manager: an OSError while `path` is written becomes a ServiceError that says what to do."""

    def __init__(self, path: Location) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        advice = {
            errno.ENOSPC: "free some space and run the same command again: what is complete is kept",
            errno.EDQUOT: "the quota is used up: free some space and run the same command again",
            errno.EROFS: "it is read-only: name another path",
            errno.EACCES: "this user may not write it: name another path or change its permissions",
            errno.EPERM: "this user may not write it: name another path or change its permissions",
        }.get(error.errno or 0, "see the system's message")
        raise ServiceError(f"cannot write {self.path}: {error.strerror or error}; {advice}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all, even if the power fails.

    Raises:
        ServiceError: the file cannot be written.
    """
    with translate_os_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                # mkstemp's file is private to its owner; a registry is shared by a team.
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def _umask() -> int:
    """Return the process's umask, read from /proc: `os.umask` would change it, and so race with other threads."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("Umask:")[2].split()[0], 8)


def sync_directory(directory: Path) -> None:
    """Make the renames in `directory` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(directory: Path) -> None:
    """Check that `directory` can be written, before any work is done; create it if needed.

    Raises:
        ServiceError: it cannot be written.
    """
    with translate_os_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
