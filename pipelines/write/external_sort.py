"""Sort texts by (source, document) out of core: an external merge sort.

Snapshots are clustered by source, the per-file stage writes texts in file order, and document text must not go through
a database's sort (DuckDB 2.0 runs out of memory at 400 MB when texts are 1.6 GB). Runs of `RUN_BYTES` are sorted in
memory, written, and merged, at most `_FAN_IN` at a time. Cost: 150 MB of text a second and core; 200 MB of memory.
"""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.read_ahead import read_ahead
from registry.ids import DocId, SourceId
from registry.schema import SHARD
from registry.storage import translate_os_errors

RUN_BYTES = 32 << 20
_FAN_IN = 64
_BATCH_BYTES = 256 << 10  # in memory of each run while merging

Row: TypeAlias = tuple[SourceId, DocId, str]  # source_id, doc_id, text


def sorted_texts(batches: Iterable[pa.RecordBatch], folder: Path, run_bytes: int = RUN_BYTES) -> Iterator[Row]:
    """Yield the rows of `batches`, sorted by source and document; keys must be unique.

    Args:
        batches: `registry.schema.SHARD` in any order, a few MB each.
        folder: for the runs; made if it is missing, and empty afterwards.
        run_bytes: bytes of text to sort in memory.

    Raises:
        ServiceError: `folder` cannot be written.
    """
    with translate_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = (folder / f"run-{number:06d}.arrow" for number in itertools.count())
        runs = [_write_run(read_ahead(_batches_of(run)), next(names)) for run in _runs(read_ahead(batches), run_bytes)]
        while len(runs) > _FAN_IN:
            merged, runs = runs[:_FAN_IN], runs[_FAN_IN:]
            runs.append(_write_run(map(rows_to_batch, _chunks(_merge(merged))), next(names)))
    yield from itertools.chain.from_iterable(read_ahead(_chunks(_merge(runs))))


def _runs(batches: Iterable[pa.RecordBatch], run_bytes: int) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    for batch in batches:
        pending.append(batch)
        if sum(piece.nbytes for piece in pending) >= run_bytes:
            yield pa.Table.from_batches(pending)
            pending = []
    if pending:
        yield pa.Table.from_batches(pending)


def _batches_of(run: pa.Table) -> Iterator[pa.RecordBatch]:
    run = run.combine_chunks()  # once, or `take` would do it for each batch
    order = pc.sort_indices(run, sort_keys=[("source_id", "ascending"), ("doc_id", "ascending")])
    rows = max(1, _BATCH_BYTES * run.num_rows // max(1, run.nbytes))
    for start in range(0, run.num_rows, rows):
        yield from run.take(order[start : start + rows]).combine_chunks().to_batches()


def _write_run(batches: Iterable[pa.RecordBatch], path: Path) -> Path:
    options = pa.ipc.IpcWriteOptions(compression="lz4")  # written once, read once: zstd would take four times as long
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SHARD, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return path


def _merge(runs: list[Path]) -> Iterator[Row]:
    yield from heapq.merge(*map(_rows, runs), key=operator.itemgetter(0, 1))
    for run in runs:
        run.unlink()


def _rows(path: Path) -> Iterator[Row]:
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows in lists of about `_BATCH_BYTES` of text."""
    pending: list[Row] = []
    size = 0
    for row in rows:
        pending.append(row)
        size += len(row[2])
        if size >= _BATCH_BYTES:
            yield pending
            pending, size = [], 0
    if pending:
        yield pending


def rows_to_batch(rows: list[Row]) -> pa.RecordBatch:
    """Return rows as a batch of `registry.schema.SHARD`."""
    return pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=SHARD)
