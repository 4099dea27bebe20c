"""Staged documents -> superseded captures, groups of equal text, and verified edges, as Beam steps.

    documents -> by doc_id -> Captures -> by normal hash -> Equals -+-> by row -> Banded -> by band -> Buckets
    bands ----------------------------------------------------------+                                    |
    texts -> Shingles (each candidate once) <----------------- candidates, by block ---------------------+
                 `-> files -> Verify -> edges <--------------- pairs, by two blocks ---------------------'

Each step finds a group; `pipelines.dedup.decisions` decides. What is shuffled are ids and hashes: about 250 bytes a document,
41 bytes a band, 32 bytes a pair (once for each band that it shares; equal pairs meet at one key and are compared once).
Document text is read where it lies, one row group at a time, by the worker that makes its shingles.

Memory of a worker: a group of captures or of equal texts as a list; of a bucket only its first `bucket_limit`; of
pairs, those between two blocks (16 bytes each). Verification maps two shingle files of about 10 MiB and goes through
each in order.

Legend: `row` is a document's, over all staged directories. `place` is 25 bytes that sort as `dedup.preference` does.
`block` = place of the staged directory << 32 | row group of its texts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
from apache_beam.pvalue import TaggedOutput
from apache_beam.typehints import with_output_types

from pipelines.dedup import decisions as dedup
from pipelines.dedup.minhash import DedupConfig, jaccard
from pipelines.resolve.beam.run_files import (
    RECEIPTS,
    Counting,
    Piece,
    ReadStaged,
    RunFiles,
    Values,
    read_piece,
    rows_of,
)
from pipelines.resolve.beam.shingle_blocks import ShingleBlock, write_block
from registry.errors import DamagedError
from registry.schema import Status
from registry.storage.parquet import open_parquet, translate_damage

_BLOCK_BITS = 32
_BAND = np.dtype([("band", "<i2"), ("hash", "<i8")])  # 10 bytes, which are a bucket's key as they are
_PLACE = struct.Struct(">?QQQ")
_ENTRY = struct.Struct(">qq")  # row, block; behind the place
_PAIR = struct.Struct("<qq")
_OFFSET = 1 << 63  # makes a signed number sort as its bytes do


@dataclasses.dataclass(frozen=True)
class Decisions:
    """PCollections of rows as in `pipelines.resolve.beam.engine`, and the receipts of all steps."""

    collisions: Any
    superseded: Any
    exact: Any
    edges: Any
    receipts: tuple[Any, ...]


def decide(folders: Any, files: RunFiles, config: DedupConfig) -> Decisions:
    """Builds the steps over the staged directories `folders`."""
    documents = folders | "documents" >> ReadStaged("documents", _Documents())
    captures = _grouped(documents.rows, "captures", Captures(), "collisions", "superseded")
    equals = _grouped(captures.main, "equals", Equals(), "exact")
    bands = folders | "bands" >> ReadStaged("bands", _Bands())
    banded = (
        {"place": equals.main, "bands": bands.rows}
        | "by row" >> beam.CoGroupByKey()
        | "banded" >> beam.ParDo(Banded()).with_outputs(RECEIPTS, main="main")
    )
    buckets = _grouped(banded.main, "buckets", Buckets(config.bucket_limit), "candidates")
    shingles = _grouped(buckets.candidates, "shingles", Shingles(files, config.ngram))
    written = beam.pvalue.AsSingleton(shingles.main | "blocks" >> beam.combiners.Count.Globally())
    edges = _grouped(buckets.main, "verify", Verify(files, config.threshold), barrier=written)
    steps = (documents, captures, equals, bands, banded, buckets, shingles, edges)
    return Decisions(
        collisions=captures.collisions,
        superseded=captures.superseded,
        exact=equals.exact,
        edges=edges.main,
        receipts=tuple(step[RECEIPTS] for step in steps),
    )


def _grouped(rows: Any, name: str, step: Counting, *outputs: str, barrier: Any = None) -> Any:
    """Groups `rows` by key, then does `step`; not before `barrier` is there, if one is given."""
    more = () if barrier is None else (barrier,)
    return (
        rows
        | f"by key of {name}" >> beam.GroupByKey()
        | name >> beam.ParDo(step, *more).with_outputs(RECEIPTS, *outputs, main="main")
    )


@with_output_types(tuple[int, Any])
class _Documents(Counting):
    """A row group of documents -> (doc_id, what decisions need)."""

    _COLUMNS = ("row", "doc_id", "captured", "text_sha256", "input_file", "input_offset", "status", "reason")
    _MORE = ("origin_id", "num_bytes", "normal_hash", "settled", "key", "locator")

    def process(self, piece: Piece) -> Iterator[tuple[int, Values]]:
        table = read_piece(piece, [*self._COLUMNS, *self._MORE]).select([*self._COLUMNS, *self._MORE])
        self.count("documents sent", table.num_rows)
        for row, doc_id, captured, sha256, file, offset, status, reason, *rest, key, locator in rows_of(table):
            competes = dedup.competes(status, reason)
            member = (row, doc_id, *rest) if status == Status.KEPT else None
            yield doc_id, (_identity(key, locator), competes, (row, captured, sha256 or "", file, offset), member)


def _identity(key: str | None, locator: str | None) -> bytes | None:
    """8 bytes for what makes up a document id; None if the staged row does not tell."""
    if key is None or locator is None:
        return None
    return hashlib.blake2b(f"{key} {locator}".encode(), digest_size=8).digest()


@with_output_types(tuple[bytes, Any])
class Captures(Counting):
    """Documents of one id -> the newest, if it is kept, by its normal hash; the rest is superseded."""

    def process(self, group: tuple[int, Iterable[Values]]) -> Iterator[Any]:
        """Yields (normal_hash, member); tags "collisions" and "superseded"."""
        doc_id, values = group[0], list(group[1])
        self.count("documents received", len(values))
        if len({identity for identity, *_ in values} - {None}) > 1:
            self.count("collisions sent")
            yield TaggedOutput("collisions", (doc_id,))
        members = {capture[0]: member for _, competes, capture, member in values if competes}
        if not members:
            return
        captures = [dedup.Capture(*capture) for _, competes, capture, _ in values if competes]
        winner = captures[0] if len(captures) == 1 else dedup.newest(captures)
        for capture in captures:
            if capture is not winner:
                self.count("superseded sent")
                yield TaggedOutput("superseded", (capture.row,))
        if member := members[winner.row]:
            row, doc_id, origin_id, num_bytes, normal_hash, settled = member
            self.count("winners sent")
            yield normal_hash, (row, doc_id, origin_id, num_bytes, settled)


@with_output_types(tuple[int, bytes])
class Equals(Counting):
    """Documents of equal text -> the row that stands for them, with its place in the order of preference."""

    def process(self, group: tuple[bytes, Iterable[Values]]) -> Iterator[Any]:
        """Yields (row, place); tags "exact"."""
        members = [dedup.Member(*values) for values in group[1]]
        self.count("winners received", len(members))
        first, num_owners = members[0], 1
        if len(members) > 1:
            found = dedup.exact_group(members)
            num_owners = len(found.owners)
            for member in members:
                if member.row == found.representative:
                    first = member
                self.count("exact sent")
                shared = (found.representative, found.source_id, num_owners, found.source_key)
                yield TaggedOutput("exact", (member.row, member.origin_id, *shared))
        self.count("representatives sent")
        yield first.row, place(first, num_owners)


def place(member: dedup.Member, num_owners: int) -> bytes:
    """25 bytes that sort as `dedup.preference`."""
    first, *numbers = dedup.preference(
        settled=member.settled, num_owners=num_owners, num_bytes=member.num_bytes, doc_id=member.doc_id
    )
    return _PLACE.pack(first, *(number + _OFFSET for number in numbers))


@with_output_types(tuple[int, bytes])
class _Bands(Counting):
    """A row group of bands -> (row, its block and bands in one string of bytes)."""

    def process(self, piece: Piece) -> Iterator[tuple[int, bytes]]:
        table = read_piece(piece, ["row", "band", "hash"])
        self.count("bands sent", table.num_rows)
        rows = table["row"].to_numpy()
        bands = np.empty(rows.size, _BAND)
        bands["band"], bands["hash"] = table["band"].to_numpy(), table["hash"].to_numpy()
        starts = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 1))
        groups = np.searchsorted(_first_rows(Path(piece[1]).with_name("texts.parquet")), rows[starts], side="right") - 1
        for start, end, group in zip(starts, [*starts[1:], rows.size], groups.tolist(), strict=True):
            block = piece[0] << _BLOCK_BITS | group
            yield int(rows[start]), block.to_bytes(8, "big") + bands[start:end].tobytes()


def _first_rows(texts: Path) -> npt.NDArray[np.int64]:
    """The first row of each row group, from the footer."""
    with translate_damage(texts):
        metadata = open_parquet(texts).metadata
        column = metadata.schema.names.index("row")
        found = [metadata.row_group(g).column(column).statistics for g in range(metadata.num_row_groups)]
    if any(statistics is None or not statistics.has_min_max for statistics in found):
        raise DamagedError(f"{texts}: has no statistics of `row`; stage it again")
    return np.array([statistics.min for statistics in found], np.int64)


@with_output_types(tuple[bytes, bytes])
class Banded(Counting):
    """A row's place and bands -> (band and hash, its entry in that bucket), if the row stands for its text."""

    def process(self, group: tuple[int, dict[str, Iterable[bytes]]]) -> Iterator[tuple[bytes, bytes]]:
        """Yields (10 bytes, 41 bytes)."""
        row, found = group
        places, pieces = list(found["place"]), list(found["bands"])
        self.count("representatives received", len(places))
        self.count("bands received", sum((len(piece) - 8) // _BAND.itemsize for piece in pieces))
        for piece in pieces if places else ():
            entry = places[0] + row.to_bytes(8, "big") + piece[:8]
            for start in range(8, len(piece), _BAND.itemsize):
                self.count("entries sent")
                yield piece[start : start + _BAND.itemsize], entry


@with_output_types(tuple[bytes, bytes])
class Buckets(Counting):
    """Documents that share a band -> candidate pairs: each of the `limit` preferred with all after it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def process(self, bucket: tuple[bytes, Iterable[bytes]]) -> Iterator[Any]:
        """Yields (block of the other and of the preferred, their rows); tags "candidates" with (block, row)."""
        entries = bucket[1]  # gone through again, not held: boilerplate fills buckets of any size
        first = heapq.nsmallest(self._limit + 1, entries)
        is_alone, first = len(first) < 2, first[: self._limit]
        for entry in entries:
            self.count("entries received")
            if is_alone:
                continue
            row, block = _ENTRY.unpack_from(entry, _PLACE.size)
            self.count("candidates sent")
            yield TaggedOutput("candidates", (block, row))
            for preferred in first:
                if preferred >= entry:
                    break
                preferred_row, preferred_block = _ENTRY.unpack_from(preferred, _PLACE.size)
                self.count("pairs sent")
                yield _PAIR.pack(block, preferred_block), _PAIR.pack(preferred_row, row)


@with_output_types(int)
class Shingles(Counting):
    """A block and its candidates -> a file of their shingles, each computed once."""

    def __init__(self, files: RunFiles, ngram: int) -> None:
        self._files, self._ngram = files, ngram

    def setup(self) -> None:
        """Reads which directories there are."""
        self._folders = self._files.folders()

    def process(self, group: tuple[int, Iterable[int]]) -> Iterator[int]:
        """Yields the block, once its file is there."""
        block, found = group[0], np.fromiter(group[1], np.int64)
        self.count("candidates received", found.size)
        wanted = np.unique(found)
        path = str(Path(self._folders[block >> _BLOCK_BITS]) / "texts.parquet")
        table = read_piece((0, path, block & ((1 << _BLOCK_BITS) - 1)), ["row", "text"])
        rows = table["row"].to_numpy()
        places = np.searchsorted(rows, wanted)
        if rows.size == 0 or not np.array_equal(rows[np.minimum(places, rows.size - 1)], wanted):
            raise DamagedError(f"{path}: no text of a document that has bands; stage it again")
        texts = (table["text"][index].as_py() for index in places.tolist())
        write_block(self._files.block(block), wanted, texts, self._ngram)
        yield block


@with_output_types(tuple[int, int, float])
class Verify(Counting):
    """Candidate pairs between two blocks -> those that are near enough, as (preferred, other, Jaccard)."""

    def __init__(self, files: RunFiles, threshold: float) -> None:
        self._files, self._threshold = files, threshold

    def process(self, group: tuple[bytes, Iterable[bytes]], written: int) -> Iterator[tuple[int, int, float]]:
        """Yields edges; `written` is there to wait for the shingles."""
        pairs = np.frombuffer(b"".join(group[1]), "<i8").reshape(-1, 2)
        self.count("pairs received", len(pairs))
        other_block, block = (ShingleBlock(self._files.block(number)) for number in _PAIR.unpack(group[0]))
        last = -1
        for other, preferred in np.unique(pairs[:, ::-1], axis=0).tolist():  # by other: it is read once
            if other != last:
                last, shingles = other, other_block.read(other)
            similarity = jaccard(block.read(preferred), shingles)
            if similarity >= self._threshold:
                self.count("edges sent")
                yield preferred, other, similarity
