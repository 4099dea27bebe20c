"""What a person names -> the input files, each with a name that does not depend on its place, and its content hash.

A file that is named is always tried; in a directory only what is called like one, the rest is reported. Names end
up in the snapshot (`documents.input_file`, the manifest), so they must be the same on every machine: the base name, and
as many parent folders as it takes to tell two files of different content apart. Cost: one read of each file, 1 GB/s.
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
    """Which reader an input is for."""

    WIKIPEDIA = "wikipedia"
    WEB = "web"
    BOOKS = "books"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Look:
    """How the files of a kind are called.

    Attributes:
        what: for messages.
        names: of files in a directory that are read.
        expected: the same in words.
    """

    what: str
    names: re.Pattern[str]
    expected: str


_LOOKS = {
    InputKind.WIKIPEDIA: _Look(
        what="dump",
        # pages-articles, but no index of one; WikiExtractor's AA/wiki_00; Hugging Face's train-00000-of-00041.parquet
        names=re.compile(
            r"(?!.*-index\d*\.)(.+\.xml(\.gz|\.bz2|\.xz)?|(.+[._-])?wiki_\d+(\.\w+)*|.+\.parquet)", re.IGNORECASE
        ),
        expected="*.xml, *.xml.gz, *.xml.bz2, *.xml.xz, wiki_00 and *.parquet",
    ),
    InputKind.WEB: _Look(
        what="web archive",
        names=re.compile(r"(.+\.(warc|arc|wet|wat)(\.gz|\.zst)?|[^.]+\.gz)", re.IGNORECASE),
        expected="*.warc, *.wet, *.wat and *.arc, as they are or with .gz or .zst",
    ),
    InputKind.BOOKS: _Look(
        what="book",
        names=re.compile(r".+\.(txt|text|epub)(\.gz|\.bz2|\.xz)?", re.IGNORECASE),
        expected="*.txt and *.epub",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A file to read.

    Attributes:
        name: place-independent, "enwiki-latest-pages-articles.xml.bz2"; unique among the inputs of a run.
        path: where it is now; not part of any snapshot.
        sha256: of its content, 64 hex digits.
        num_bytes: its size.
        kind: which reader it is for.
    """

    name: str
    path: Location
    sha256: str
    num_bytes: int
    kind: InputKind

    def open(self) -> BinaryIO:
        """The file for reading, local or at s3://; see `registry.storage.open_input`."""
        return open_input(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What was found: the files in the order of their names, and what was in a directory but is not called like one."""

    files: tuple[Input, ...]
    left_out: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """The sum of the files' sizes."""
        return sum(file.num_bytes for file in self.files)


def find_inputs(
    patterns: Mapping[InputKind, Sequence[str]], on_file: Callable[[Location], None] = lambda path: None
) -> Inputs:
    """The input files that `patterns` (files, directories, globs, at s3:// too) name; the same content and name once.

    Args:
        patterns: as a person gives them, by the reader that they are for.
        on_file: called with each file before it is read for its hash.

    Raises:
        InputError: a path does not exist, a glob matches nothing, or a directory holds nothing of the kind.
        UsageError: a file is named for two readers.
        ServiceError: S3 cannot be reached.
    """
    kinds: dict[Location, InputKind] = {}
    left_out: set[str] = set()
    for kind, pattern in ((kind, pattern) for kind, named in patterns.items() for pattern in named):
        found, others = _expand(pattern, _LOOKS[kind])
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


def _expand(pattern: str, look: _Look) -> tuple[Sequence[Location], Sequence[Location]]:
    """The files that a pattern means, and those that it passes over."""
    if is_remote(pattern):
        return _expand_remote(pattern, look)
    path = Path(pattern.removeprefix("file://")).expanduser()
    if path.is_dir():
        return _files_in(path, look)
    if path.exists():
        return [path], []
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not matches:
        wildcard = glob.has_magic(str(path))
        what = "a glob that matches no file" if wildcard else "no such file or directory"
        raise InputError(f"{pattern}: {what}; expected a {look.what}, a directory of them or a glob")
    found, others = [match for match in matches if match.is_file()], list[Path]()
    for folder in [match for match in matches if match.is_dir()]:
        inside, passed = _files_in(folder, look)
        found, others = found + inside, others + passed
    return found, others


def _expand_remote(uri: str, look: _Look) -> tuple[list[S3Path], list[S3Path]]:
    """The same at s3://: what is below a prefix is as in a directory, an object or what a glob matches is as named."""
    found = [path for path, _ in list_inputs(uri)]
    if glob.has_magic(uri) or found == [S3Path.parse(uri)]:
        return found, []
    return _files_among(uri, found, look)


def _files_in(folder: Path, look: _Look) -> tuple[list[Path], list[Path]]:
    return _files_among(folder, sorted(path for path in folder.rglob("*") if path.is_file()), look)


def _files_among(folder: object, files: list[P], look: _Look) -> tuple[list[P], list[P]]:
    files = [path for path in files if not path.name.startswith(".")]
    found = [path for path in files if look.names.fullmatch(path.name)]
    if not found:
        raise InputError(
            f"{folder}: no {look.what} in this directory; looked for {look.expected} "
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
