"""Find the input files that a user names, with their content hashes and names that are the same on every machine.

A file that is named is always read; of a directory, only files with a known name pattern, and the rest is reported.
Names are stored in the snapshot (`documents.input_file`, the manifest), so they must not depend on the machine: the
base name, and as many parent folders as it takes to distinguish files of different content. Cost: each file is read
once, at 1 GB/s.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import glob
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

from registry.errors import InputError, UsageError
from registry.storage import Location, is_remote, list_inputs, open_input, sha256_of
from registry.storage.s3 import S3Path

P = TypeVar("P", Path, S3Path)


class InputKind(enum.StrEnum):
    """The reader that an input is for."""

    WIKIPEDIA = "wikipedia"
    WEB = "web"
    BOOKS = "books"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _NamePattern:
    """The names of files of a kind.

    Attributes:
        what: the kind, for messages.
        names: matches the files of a directory that are read.
        expected: describes `names`, for messages.
    """

    what: str
    names: re.Pattern[str]
    expected: str


_NAME_PATTERNS = {
    InputKind.WIKIPEDIA: _NamePattern(
        what="dump",
        # pages-articles, but no index of one; WikiExtractor's AA/wiki_00; Hugging Face's train-00000-of-00041.parquet
        names=re.compile(
            r"(?!.*-index\d*\.)(.+\.xml(\.gz|\.bz2|\.xz)?|(.+[._-])?wiki_\d+(\.\w+)*|.+\.parquet)", re.IGNORECASE
        ),
        expected="*.xml, *.xml.gz, *.xml.bz2, *.xml.xz, wiki_00 and *.parquet",
    ),
    InputKind.WEB: _NamePattern(
        what="web archive",
        names=re.compile(r"(.+\.(warc|arc|wet|wat)(\.gz|\.zst)?|[^.]+\.gz)", re.IGNORECASE),
        expected="*.warc, *.wet, *.wat and *.arc, as they are or with .gz or .zst",
    ),
    InputKind.BOOKS: _NamePattern(
        what="book",
        names=re.compile(r".+\.(txt|text|epub)(\.gz|\.bz2|\.xz)?", re.IGNORECASE),
        expected="*.txt and *.epub",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A file to read.

    Attributes:
        name: the same on every machine, "enwiki-latest-pages-articles.xml.bz2"; unique among the inputs of a run.
        path: its present path; not part of any snapshot.
        sha256: of its content, 64 hex digits.
        num_bytes: its size.
        kind: the reader that it is for.
    """

    name: str
    path: Location
    sha256: str
    num_bytes: int
    kind: InputKind

    def open(self) -> BinaryIO:
        """Open the file for reading, local or at s3://; see `registry.storage.open_input`."""
        return open_input(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files found, in the order of their names, and files of directories whose names match no pattern."""

    files: tuple[Input, ...]
    left_out: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(file.num_bytes for file in self.files)


def find_inputs(
    patterns: Mapping[InputKind, Sequence[str]], on_file: Callable[[Location], None] = lambda path: None
) -> Inputs:
    """Find the input files that `patterns` (files, directories, globs, at s3:// too) name; each content and name once.

    Args:
        patterns: as a user gives them, by the reader that they are for.
        on_file: called with each file before it is read for its hash.

    Raises:
        InputError: a path does not exist, a glob matches nothing, or a directory holds nothing of the kind.
        UsageError: a file is named for two readers.
        ServiceError: S3 cannot be reached.
    """
    kinds: dict[Location, InputKind] = {}
    left_out: set[str] = set()
    for kind, pattern in ((kind, pattern) for kind, named in patterns.items() for pattern in named):
        found, others = _expand(pattern, _NAME_PATTERNS[kind])
        for path in map(_absolute, found):
            if kinds.setdefault(path, kind) is not kind:
                raise UsageError(f"{path}: named with both --{kinds[path]} and --{kind}; it can be read as one only")
        left_out |= {str(_absolute(path)) for path in others}
    hashed = []
    for path in kinds:
        on_file(path)
        hashed.append((path, _sha256(path)))
    files = [
        Input(name=name, path=path, sha256=sha256, num_bytes=path.stat().st_size, kind=kinds[path])
        for name, path, sha256 in _named(hashed)
    ]
    left_out -= {str(path) for path in kinds}
    files.sort(key=lambda file: file.name)
    return Inputs(files=tuple(files), left_out=tuple(sorted(left_out)))


def _absolute(path: Location) -> Location:
    return Path(os.path.abspath(path)) if isinstance(path, Path) else path


def _expand(pattern: str, kind: _NamePattern) -> tuple[Sequence[Location], Sequence[Location]]:
    """Return the files that a pattern matches, and those that it leaves out."""
    if is_remote(pattern):
        return _expand_remote(pattern, kind)
    path = Path(pattern.removeprefix("file://")).expanduser()
    if path.is_dir():
        return _files_in(path, kind)
    if path.exists():
        return [path], []
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        wildcard = glob.has_magic(str(path))
        what = "a glob that matches no file" if wildcard else "no such file or directory"
        raise InputError(f"{pattern}: {what}; expected a {kind.what}, a directory of them or a glob")
    found, others = [match for match in matches if match.is_file()], list[Path]()
    for folder in [match for match in matches if match.is_dir()]:
        inside, passed = _files_in(folder, kind)
        found, others = found + inside, others + passed
    return found, others


def _expand_remote(uri: str, kind: _NamePattern) -> tuple[list[S3Path], list[S3Path]]:
    """Do the same at s3://: a prefix is treated as a directory; an object, or a match of a glob, as a named file."""
    found = [path for path, _ in list_inputs(uri)]
    if glob.has_magic(uri) or found == [S3Path.parse(uri)]:
        return found, []
    return _files_among(uri, found, kind)


def _files_in(folder: Path, kind: _NamePattern) -> tuple[list[Path], list[Path]]:
    return _files_among(folder, sorted(path for path in folder.rglob("*") if path.is_file()), kind)


def _files_among(folder: object, files: list[P], kind: _NamePattern) -> tuple[list[P], list[P]]:
    files = [path for path in files if not path.name.startswith(".")]
    found = [path for path in files if kind.names.fullmatch(path.name)]
    if not found:
        raise InputError(
            f"{folder}: no {kind.what} in this directory; looked for {kind.expected} "
            f"among {len(files)} files; name a file to have it tried whatever it is called"
        )
    chosen = set(found)
    return found, [path for path in files if path not in chosen]


def _sha256(path: Location) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _named(hashed: list[tuple[Location, str]]) -> list[tuple[str, Location, str]]:
    """Return (name, path, hash) of each distinct file; parent folders distinguish files of equal base names."""
    by_base = collections.defaultdict(list)
    for path, sha256 in sorted(hashed, key=lambda pair: (pair[0].parts, pair[1])):
        by_base[path.name].append((path, sha256))
    named = []
    for group in by_base.values():
        first = {sha256: path for path, sha256 in reversed(group)}  # of files of equal content, the first path is kept
        depth = 1
        while len({_tail(path, depth) for path in first.values()}) < len(first):
            depth += 1
        named += [(_tail(path, depth), path, sha256) for sha256, path in first.items()]
    return named


def _tail(path: Location, depth: int) -> str:
    return "/".join(path.parts[1:][-depth:])
