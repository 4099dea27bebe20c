"""Documents -> Parquet shards, clustered by source: all of a source's text in one place, or in as few as it takes.

Shards are filled up to a target size in the order of (source, document). A source is never split while it fits one
shard: if it does not fit what is left, the next shard begins. One that is larger than a shard starts one of its own.
Where each source went is written beside, as `PLACEMENTS`, which becomes `sources.placements`. Streaming: one row group
(8 MiB of text) in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.write.external_sort import Row, rows_to_batch
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
    """Rows `row_start` to `row_end` (exclusive) of a shard are the source's."""

    source_id: int
    shard: int
    row_start: int
    row_end: int


class Planner:
    """Says, document by document in the order of sources, which shard it goes to. Pure; sizes in UTF-8 bytes."""

    def __init__(self, shard_bytes: int) -> None:
        self._shard_bytes = shard_bytes
        self._shard, self._filled, self._rows = 0, 0, 0
        self._open: Placement | None = None

    def place(self, source_id: int, num_bytes: int, source_bytes: int) -> tuple[int, Placement | None]:
        """The shard of the next document, and the placement that this one ends, if it ends one.

        Args:
            source_id: of the document; not less than the last one's.
            num_bytes: of the document.
            source_bytes: of all documents of its source.
        """
        is_new = self._open is None or self._open.source_id != source_id
        is_large = source_bytes > self._shard_bytes
        wanted = source_bytes if is_new and not is_large else num_bytes
        turn = self._rows > 0 and (is_new or is_large) and self._filled + wanted > self._shard_bytes
        turn = turn or (self._rows > 0 and is_new and is_large)
        ended = self._open if is_new or turn else None
        if turn:
            self._shard, self._filled, self._rows = self._shard + 1, 0, 0
        if is_new or turn:
            self._open = Placement(source_id, self._shard, self._rows, self._rows)
        assert self._open is not None
        self._open = dataclasses.replace(self._open, row_end=self._rows + 1)
        self._filled, self._rows = self._filled + num_bytes, self._rows + 1
        return self._shard, ended

    def end(self) -> Placement | None:
        """The last placement."""
        return self._open


def write_shards(
    rows: Iterable[Row],
    source_bytes: Iterable[tuple[int, int]],
    writer: SnapshotWriter,
    *,
    shard_bytes: int,
    folder: str = "shards",
    placements: Path | None = None,
) -> int:
    """Writes `rows` to the shards of `folder`; returns how many there were.

    Args:
        rows: sorted by source and document.
        source_bytes: (source_id, bytes of all its rows), sorted.
        writer: of the snapshot.
        shard_bytes: target size of a shard in bytes of text.
        folder: "shards" or "displaced".
        placements: where to write the `PLACEMENTS`, if they are wanted.

    Raises:
        ServiceError: a file cannot be written.
    """
    planner, shard, ended = Planner(shard_bytes), ShardWriter(writer, folder), _Placements(placements)
    with shard, ended:
        for row, total in _with_totals(rows, source_bytes):
            number, placement = planner.place(row[0], len(row[2].encode()), total)
            ended.add(placement)
            shard.write(number, row)
        ended.add(planner.end())
    return shard.num_rows


def _with_totals(rows: Iterable[Row], source_bytes: Iterable[tuple[int, int]]) -> Iterator[tuple[Row, int]]:
    totals = iter(source_bytes)
    source_id, total = -1, 0
    for row in rows:
        while source_id < row[0]:
            source_id, total = next(totals)
        yield row, total


class ShardWriter:
    """The shard that is being written, one after another; a context manager.

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
        """Adds a row to shard `number`; rows come in the order of the shards."""
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


class _Placements:
    """Where sources went, on its way to a file."""

    def __init__(self, path: Path | None) -> None:
        self._file = ParquetFileWriter(path, PLACEMENTS) if path else None
        self._pending: list[Placement] = []

    def __enter__(self) -> _Placements:
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
