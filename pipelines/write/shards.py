"""Write documents to Parquet shards, clustered by source: a source's text is in one shard, or in as few as possible.

Shards are filled up to a target size in the order of (source, document). A source that fits one shard is never split:
if it does not fit the rest of a shard, the next shard begins. A source larger than a shard begins a new one.
The rows of each source are written as `PLACEMENTS`, which become `sources.placements`. Memory: one row group (8 MiB of
text).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.write.external_sort import Row, rows_to_batch
from registry.ids import SourceId
from registry.snapshot import SnapshotWriter
from registry.storage.parquet import ParquetFileWriter

DEFAULT_SHARD_BYTES = 256 << 20
_BATCH_BYTES = 1 << 20
_BATCH_PLACEMENTS = 16_384

PLACEMENTS = pa.schema(
    [
        pa.field("source_id", pa.int64(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row_start", pa.int64(), nullable=False),
        pa.field("row_end", pa.int64(), nullable=False),
    ]
)


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """A source's rows in a shard: `row_start` to `row_end` (exclusive)."""

    source_id: SourceId
    shard: int
    row_start: int
    row_end: int


class ShardAssigner:
    """Assigns documents, in the order of sources, to shards. Does no I/O; sizes are in UTF-8 bytes.

    Args:
        shard_bytes: target size of a shard.
    """

    def __init__(self, shard_bytes: int) -> None:
        self._shard_bytes = shard_bytes
        self._shard, self._filled, self._rows = 0, 0, 0
        self._open: Placement | None = None

    def assign(self, source_id: SourceId, num_bytes: int, source_bytes: int) -> tuple[int, Placement | None]:
        """Return the shard of the next document, and the placement that ends before it, if one does.

        Args:
            source_id: of the document; not less than the one before.
            num_bytes: size of the document.
            source_bytes: size of all documents of its source.
        """
        is_new = self._open is None or self._open.source_id != source_id
        is_large = source_bytes > self._shard_bytes
        wanted = source_bytes if is_new and not is_large else num_bytes
        begins_shard = self._rows > 0 and (is_new or is_large) and self._filled + wanted > self._shard_bytes
        begins_shard = begins_shard or (self._rows > 0 and is_new and is_large)
        ended = self._open if is_new or begins_shard else None
        if begins_shard:
            self._shard, self._filled, self._rows = self._shard + 1, 0, 0
        if is_new or begins_shard:
            self._open = Placement(source_id, self._shard, self._rows, self._rows)
        assert self._open is not None
        self._open = dataclasses.replace(self._open, row_end=self._rows + 1)
        self._filled, self._rows = self._filled + num_bytes, self._rows + 1
        return self._shard, ended

    def end(self) -> Placement | None:
        """Return the last placement."""
        return self._open


def write_shards(
    rows: Iterable[Row],
    source_bytes: Iterable[tuple[SourceId, int]],
    writer: SnapshotWriter,
    *,
    shard_bytes: int,
    folder: str = "shards",
    placements: Path | None = None,
) -> int:
    """Write `rows` to the shards of `folder`; return the number of rows.

    Args:
        rows: sorted by source and document.
        source_bytes: (source_id, bytes of all its rows), sorted.
        writer: of the snapshot.
        shard_bytes: target size of a shard, in bytes of text.
        folder: "shards" or "displaced".
        placements: the file for the `PLACEMENTS`; None writes none.

    Raises:
        ServiceError: a file cannot be written.
    """
    assigner, shard, ended = ShardAssigner(shard_bytes), ShardWriter(writer, folder), _PlacementsWriter(placements)
    with shard, ended:
        for row, total in _with_totals(rows, source_bytes):
            number, placement = assigner.assign(row[0], len(row[2].encode()), total)
            ended.add(placement)
            shard.write(number, row)
        ended.add(assigner.end())
    return shard.num_rows


def _with_totals(rows: Iterable[Row], source_bytes: Iterable[tuple[SourceId, int]]) -> Iterator[tuple[Row, int]]:
    totals = iter(source_bytes)
    source_id, total = SourceId(-1), 0
    for row in rows:
        while source_id < row[0]:
            source_id, total = next(totals)
        yield row, total


class ShardWriter:
    """A writer of shards, one after another; a context manager.

    Args:
        writer: of the snapshot.
        folder: "shards" or "displaced".
    """

    def __init__(self, writer: SnapshotWriter, folder: str) -> None:
        self._snapshot, self._folder = writer, folder
        self._number = -1
        self._file: ParquetFileWriter | None = None
        self._pending: list[Row] = []
        self._pending_bytes = 0
        self.num_rows = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._flush()
        if self._file:
            self._file.__exit__(kind, error, trace)

    def write(self, number: int, row: Row) -> None:
        """Add a row to shard `number`; rows come in the order of the shards."""
        if number != self._number:
            self.__exit__(None, None, None)
            self._number, self._file = number, self._snapshot.shard(number, self._folder)
        self._pending.append(row)
        self._pending_bytes += len(row[2])
        self.num_rows += 1
        if self._pending_bytes >= _BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._file and self._pending:
            self._file.write(rows_to_batch(self._pending))
        self._pending, self._pending_bytes = [], 0


class _PlacementsWriter:
    """A writer of `PLACEMENTS`; writes nothing without a path."""

    def __init__(self, path: Path | None) -> None:
        self._file = ParquetFileWriter(path, PLACEMENTS) if path else None
        self._pending: list[Placement] = []

    def __enter__(self) -> _PlacementsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if self._file:
            if error is None:
                self._flush()
            self._file.__exit__(kind, error, trace)

    def add(self, placement: Placement | None) -> None:
        if self._file and placement:
            self._pending.append(placement)
            if len(self._pending) >= _BATCH_PLACEMENTS:
                self._flush()

    def _flush(self) -> None:
        if self._file:
            columns = {name: [getattr(p, name) for p in self._pending] for name in PLACEMENTS.names}
            self._file.write(pa.table(columns, schema=PLACEMENTS))
        self._pending = []
