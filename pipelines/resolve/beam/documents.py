"""Beam steps that find superseded captures, groups of equal text, and verified edges among staged documents.

    documents -> by doc_id -> Captures -> by normal hash -> Equals -+-> by row -> Banded -> by band -> Buckets
    bands ----------------------------------------------------------+                                    |
    texts -> Shingles (each candidate once) <----------------- candidates, by block ---------------------+
                 `-> files -> Verify -> edges <--------------- pairs, by two blocks ---------------------'

Each step finds a group; `pipelines.dedup.decisions` decides. Only ids and hashes are shuffled: about 250 bytes a
document, 41 bytes a band entry, 32 bytes a pair (once for each band that it shares; equal pairs have one key and are
compared once). Document text is read from the staged files, one row group at a time, by the worker that makes its
shingles.

Memory of a worker: a group of captures or of equal texts as a list; of a bucket only its first `bucket_limit` entries;
of pairs, those between two blocks (16 bytes each). Verification maps two shingle files of about 10 MiB and reads each
in order.

Legend: `row` identifies a document in all staged directories. `order_key` is 25 bytes that sort as `dedup.preference`
does. `block` = index of the staged directory << 32 | row group of its texts.
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
_BAND = np.dtype([("band", "<i2"), ("hash", "<i8")])  # these 10 bytes are the key of a bucket
_ORDER_KEY = struct.Struct(">?QQQ")
_ENTRY = struct.Struct(">qq")  # row, block; after the order key
_PAIR = struct.Struct("<qq")
_OFFSET = 1 << 63  # added to a signed number, so that its bytes sort as the numbers do


@dataclasses.dataclass(frozen=True)
class DocumentParts:
    """PCollections of rows of `pipelines.resolve.beam.job.PARTS`, and the receipts of all steps."""

    collisions: Any
    superseded: Any
    exact: Any
    edges: Any
    receipts: tuple[Any, ...]


def find_groups(folders: Any, files: RunFiles, config: DedupConfig) -> DocumentParts:
    """Build the steps over the staged directories.

    Args:
        folders: a PCollection from `pipelines.resolve.beam.run_files.staged_folders`.
        files: of the run.
        config: what counts as a near-duplicate.
    """
    documents = folders | "documents" >> ReadStaged("documents", _Documents())
    captures = _grouped(documents.rows, "captures", Captures(), "collisions", "superseded")
    equals = _grouped(captures.main, "equals", Equals(), "exact")
    bands = folders | "bands" >> ReadStaged("bands", _Bands())
    banded = (
        {"order_keys": equals.main, "bands": bands.rows}
        | "by row" >> beam.CoGroupByKey()
        | "banded" >> beam.ParDo(Banded()).with_outputs(RECEIPTS, main="main")
    )
    buckets = _grouped(banded.main, "buckets", Buckets(config.bucket_limit), "candidates")
    shingles = _grouped(buckets.candidates, "shingles", Shingles(files, config.ngram))
    written = beam.pvalue.AsSingleton(shingles.main | "blocks" >> beam.combiners.Count.Globally())
    edges = _grouped(buckets.main, "verify", Verify(files, config.threshold), barrier=written)
    steps = (documents, captures, equals, bands, banded, buckets, shingles, edges)
    return DocumentParts(
        collisions=captures.collisions,
        superseded=captures.superseded,
        exact=equals.exact,
        edges=edges.main,
        receipts=tuple(step[RECEIPTS] for step in steps),
    )


def _grouped(rows: Any, name: str, step: Counting, *outputs: str, barrier: Any = None) -> Any:
    """Group `rows` by key, then run `step`, once the value of `barrier` is there if one is given."""
    more = () if barrier is None else (barrier,)
    return (
        rows
        | f"by key of {name}" >> beam.GroupByKey()
        | name >> beam.ParDo(step, *more).with_outputs(RECEIPTS, *outputs, main="main")
    )


@with_output_types(tuple[int, Any])
class _Documents(Counting):
    """Read a row group of documents; yield (doc_id, the columns that decisions need)."""

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
    """Return a hash of the key and the locator, 8 bytes; None if the staged row has no locator."""
    if key is None or locator is None:
        return None
    return hashlib.blake2b(f"{key} {locator}".encode(), digest_size=8).digest()


@with_output_types(tuple[bytes, Any])
class Captures(Counting):
    """Of the documents of one id, pass the newest on if it is kept; the rest is superseded."""

    def process(self, group: tuple[int, Iterable[Values]]) -> Iterator[Any]:
        """Yield (normal_hash, member); tags "collisions" and "superseded"."""
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
    """Find the representative of documents of equal text, with its order key."""

    def process(self, group: tuple[bytes, Iterable[Values]]) -> Iterator[Any]:
        """Yield (row, order key); tags "exact"."""
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
        yield first.row, order_key(first, num_owners)


def order_key(member: dedup.Member, num_owners: int) -> bytes:
    """Return 25 bytes that sort as `dedup.preference` does."""
    first, *numbers = dedup.preference(
        settled=member.settled, num_owners=num_owners, num_bytes=member.num_bytes, doc_id=member.doc_id
    )
    return _ORDER_KEY.pack(first, *(number + _OFFSET for number in numbers))


@with_output_types(tuple[int, bytes])
class _Bands(Counting):
    """Read a row group of bands; yield (row, 8 bytes of its block and 10 bytes for each of its bands)."""

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
    """Return the first row of each row group, from the footer."""
    with translate_damage(texts):
        metadata = open_parquet(texts).metadata
        column = metadata.schema.names.index("row")
        found = [metadata.row_group(g).column(column).statistics for g in range(metadata.num_row_groups)]
    if any(statistics is None or not statistics.has_min_max for statistics in found):
        raise DamagedError(
            f"{texts}: no statistics of column `row`; delete its directory and run the same command again"
        )
    return np.array([statistics.min for statistics in found], np.int64)


@with_output_types(tuple[bytes, bytes])
class Banded(Counting):
    """Join a representative's order key with its bands; other rows are dropped."""

    def process(self, group: tuple[int, dict[str, Iterable[bytes]]]) -> Iterator[tuple[bytes, bytes]]:
        """Yield (band and hash: 10 bytes, the row's entry in that bucket: 41 bytes)."""
        row, found = group
        order_keys, pieces = list(found["order_keys"]), list(found["bands"])
        self.count("representatives received", len(order_keys))
        self.count("bands received", sum((len(piece) - 8) // _BAND.itemsize for piece in pieces))
        for piece in pieces if order_keys else ():
            entry = order_keys[0] + row.to_bytes(8, "big") + piece[:8]
            for start in range(8, len(piece), _BAND.itemsize):
                self.count("entries sent")
                yield piece[start : start + _BAND.itemsize], entry


@with_output_types(tuple[bytes, bytes])
class Buckets(Counting):
    """Make candidate pairs of documents that share a band: each of the `limit` preferred with all after it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def process(self, bucket: tuple[bytes, Iterable[bytes]]) -> Iterator[Any]:
        """Yield (blocks of the other and the preferred, rows of the preferred and the other).

        Tags "candidates" with (block, row).
        """
        entries = bucket[1]  # iterated twice, not held in memory: boilerplate fills buckets of any size
        first = heapq.nsmallest(self._limit + 1, entries)
        is_alone, first = len(first) < 2, first[: self._limit]
        for entry in entries:
            self.count("entries received")
            if is_alone:
                continue
            row, block = _ENTRY.unpack_from(entry, _ORDER_KEY.size)
            self.count("candidates sent")
            yield TaggedOutput("candidates", (block, row))
            for preferred in first:
                if preferred >= entry:
                    break
                preferred_row, preferred_block = _ENTRY.unpack_from(preferred, _ORDER_KEY.size)
                self.count("pairs sent")
                yield _PAIR.pack(block, preferred_block), _PAIR.pack(preferred_row, row)


@with_output_types(int)
class Shingles(Counting):
    """Write the shingles of a block's candidates to a file, each computed once."""

    def __init__(self, files: RunFiles, ngram: int) -> None:
        self._files, self._ngram = files, ngram

    def setup(self) -> None:
        """Read the list of staged directories."""
        self._folders = self._files.folders()

    def process(self, group: tuple[int, Iterable[int]]) -> Iterator[int]:
        """Yield the block, once its file is published."""
        block, found = group[0], np.fromiter(group[1], np.int64)
        self.count("candidates received", found.size)
        wanted = np.unique(found)
        path = str(Path(self._folders[block >> _BLOCK_BITS]) / "texts.parquet")
        table = read_piece((0, path, block & ((1 << _BLOCK_BITS) - 1)), ["row", "text"])
        rows = table["row"].to_numpy()
        positions = np.searchsorted(rows, wanted)
        if rows.size == 0 or not np.array_equal(rows[np.minimum(positions, rows.size - 1)], wanted):
            raise DamagedError(
                f"{path}: no text for a document with bands; delete its directory and run the same command again"
            )
        texts = (table["text"][position].as_py() for position in positions.tolist())
        write_block(self._files.block(block), wanted, texts, self._ngram)
        yield block


@with_output_types(tuple[int, int, float])
class Verify(Counting):
    """Verify the candidate pairs between two blocks."""

    def __init__(self, files: RunFiles, threshold: float) -> None:
        self._files, self._threshold = files, threshold

    def process(self, group: tuple[bytes, Iterable[bytes]], written: int) -> Iterator[tuple[int, int, float]]:
        """Yield the near ones as (preferred, other, Jaccard); `written` is an argument to wait for the shingles."""
        pairs = np.frombuffer(b"".join(group[1]), "<i8").reshape(-1, 2)
        self.count("pairs received", len(pairs))
        other_block, preferred_block = (ShingleBlock(self._files.block(block)) for block in _PAIR.unpack(group[0]))
        last = -1
        for other, preferred in np.unique(
            pairs[:, ::-1], axis=0
        ).tolist():  # sorted by other, so that each is read once
            if other != last:
                last, shingles = other, other_block.read(other)
            similarity = jaccard(preferred_block.read(preferred), shingles)
            if similarity >= self._threshold:
                self.count("edges sent")
                yield preferred, other, similarity
