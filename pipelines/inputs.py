"""What a person names -> the input files, each with a name that does not depend on where it lies, and its content hash.

A file that is named is always tried; in a directory only what is called like a dump, the rest is reported. Names end
up in the snapshot (`documents.input_file`, the manifest), so they must be the same on every machine: the base name, and
as many parent folders as it takes to tell two files of different content apart. Cost: one read of each file, 1 GB/s.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from registry.errors import InputError
from registry.s3 import S3Path
from registry.storage import Location, is_remote, list_inputs, open_input, sha256_of

P = TypeVar("P", Path, S3Path)

_DUMP_NAME = re.compile(r".+\.xml(\.gz|\.bz2|\.xz)?", re.IGNORECASE)
_INDEX_NAME = re.compile(r".*-index\d*\.(txt|xml)(\.\w+)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A file to read.

    Attributes:
        name: place-independent, "enwiki-latest-pages-articles.xml.bz2"; unique among the inputs of a run.
        path: where it is now; not part of any snapshot.
        sha256: of its content, 64 hex digits.
        num_bytes: its size.
        kind: which reader it is for ("wikipedia").
    """

    name: str
    path: Location
    sha256: str
    num_bytes: int
    kind: str

    def open(self) -> BinaryIO:
        """The file for reading, local or at s3://; see `registry.storage.open_input`."""
        return open_input(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was found: the files in the order of their names, and what was in a directory but is no dump."""

    files: tuple[Input, ...]
    left_out: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(file.num_bytes for file in self.files)


def find_inputs(
    patterns: Iterable[str], kind: str = "wikipedia", on_file: Callable[[Location], None] = lambda path: None
) -> Inputs:
    """The input files that `patterns` (files, directories, globs, at s3:// too) name; the same content and name once.

    Args:
        patterns: as a person gives them.
        kind: which reader they are for.
        on_file: called with each file before it is read for its hash.

    Raises:
        InputError: a path does not exist, a glob matches nothing, or a directory holds no dump.
        ServiceError: S3 cannot be reached.
    """
    paths: dict[Location, None] = {}
    left_out: set[str] = set()
    for pattern in patterns:
        found, others = _expand(pattern)
        paths |= dict.fromkeys(map(_absolute, found))
        left_out |= {str(_absolute(path)) for path in others}
    hashed = []
    for path in paths:
        on_file(path)
        hashed.append((path, _sha256(path)))
    files = [
        Input(name=name, path=path, sha256=sha256, num_bytes=path.stat().st_size, kind=kind)
        for name, path, sha256 in _named(hashed)
    ]
    left_out -= {str(path) for path in paths}
    files.sort(key=lambda file: file.name)
    return Inputs(files=tuple(files), left_out=tuple(sorted(left_out)))


def _absolute(path: Location) -> Location:
    return Path(os.path.abspath(path)) if isinstance(path, Path) else path


def _expand(pattern: str) -> tuple[Sequence[Location], Sequence[Location]]:
    """The files that a pattern means, and those that it passes over."""
    if is_remote(pattern):
        return _expand_remote(pattern)
    path = Path(pattern.removeprefix("file://")).expanduser()
    if path.is_dir():
        return _dumps_in(path)
    if path.exists():
        return [path], []
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        wildcard = glob.has_magic(str(path))
        what = "a glob that matches no file" if wildcard else "no such file or directory"
        raise InputError(f"{pattern}: {what}; expected a dump, a directory of dumps or a glob")
    found, others = [match for match in matches if match.is_file()], list[Path]()
    for folder in [match for match in matches if match.is_dir()]:
        inside, passed = _dumps_in(folder)
        found, others = found + inside, others + passed
    return found, others


def _expand_remote(uri: str) -> tuple[list[S3Path], list[S3Path]]:
    """The same at s3://: what is below a prefix is as in a directory, an object or what a glob matches is as named."""
    found = [path for path, _ in list_inputs(uri)]
    if glob.has_magic(uri) or found == [S3Path.parse(uri)]:
        return found, []
    return _dumps_among(uri, found)


def _dumps_in(folder: Path) -> tuple[list[Path], list[Path]]:
    return _dumps_among(folder, sorted(path for path in folder.rglob("*") if path.is_file()))


def _dumps_among(folder: object, files: list[P]) -> tuple[list[P], list[P]]:
    files = [path for path in files if not path.name.startswith(".")]
    dumps = [path for path in files if _DUMP_NAME.fullmatch(path.name) and not _INDEX_NAME.fullmatch(path.name)]
    if not dumps:
        raise InputError(
            f"{folder}: no dump in this directory; looked for *.xml, *.xml.gz, *.xml.bz2 and *.xml.xz "
            f"among {len(files)} files; name a file to have it tried whatever it is called"
        )
    chosen = set(dumps)
    return dumps, [path for path in files if path not in chosen]


def _sha256(path: Location) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _named(hashed: list[tuple[Location, str]]) -> list[tuple[str, Location, str]]:
    """(name, path, hash) of each distinct file: where base names are equal, parent folders tell contents apart."""
    by_base = collections.defaultdict(list)
    for path, sha256 in sorted(hashed, key=lambda pair: (pair[0].parts, pair[1])):
        by_base[path.name].append((path, sha256))
    named = []
    for group in by_base.values():
        first = {sha256: path for path, sha256 in reversed(group)}  # equal content: the first path stands for all
        depth = 1
        while len({_tail(path, depth) for path in first.values()}) < len(first):
            depth += 1
        named += [(_tail(path, depth), path, sha256) for sha256, path in first.items()]
    return named


def _tail(path: Location, depth: int) -> str:
    return "/".join(path.parts[1:][-depth:])
