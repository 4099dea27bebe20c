"""Parquet files of snapshots: their bytes depend only on the rows, and a point read touches few row groups.

Row groups are cut by rows (tables) or by text bytes (shards), never by the batches in which rows arrive, so that any
number of workers or engines writes the same file. Point reads use the footer's min/max statistics of the sort column:
one row group of 16,384 rows is read for one id, about 5 ms.
"""

from __future__ import annotations

import array
import bisect
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from registry.errors import DamagedError
from registry.storage import Location, sha256_of, translate_os_errors

ROWS_PER_GROUP = 16_384
TEXT_BYTES_PER_GROUP = 8 << 20
_GROUPS_AT_ONCE = 16


class ParquetFileWriter:
    """Writes one Parquet file in a row-group layout that depends only on its rows; a context manager.

    Leaves no file if the block ends with an error.

    Args:
        path: the file; written in place, since its directory is published as a whole.
        schema: the exact schema; batches are cast to it safely, and a null in a required column is an error.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.num_rows = 0
        self._schema = schema
        self._by_text = "text" in schema.names
        self._pending: list[pa.Table] = []
        self._pending_size = 0
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(
                path, schema, compression="zstd", write_page_index=True, version="2.6", store_schema=True
            )

    def __enter__(self) -> ParquetFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = False
        try:
            with translate_os_errors(self.path):
                if error is None:
                    self._flush()
                    complete = True
                self._writer.close()
        finally:
            if not complete:  # a Parquet file that is closed early is short but readable
                self.path.unlink(missing_ok=True)

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Append rows, which must come in the file's sort order.

        Raises:
            DamagedError: a column is missing or of another type, or a required one has nulls.
            ServiceError: the file cannot be written, for example because the disk is full.
        """
        table = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        table = _conform(table, self._schema)
        self.num_rows += table.num_rows
        for piece, closes in self._cut(table):
            self._pending.append(piece)
            if closes:
                self._flush()

    def _cut(self, table: pa.Table) -> Iterator[tuple[pa.Table, bool]]:
        limit = TEXT_BYTES_PER_GROUP if self._by_text else ROWS_PER_GROUP
        start = 0
        sizes = pc.binary_length(table["text"]).to_pylist() if self._by_text else [1] * table.num_rows
        for row, size in enumerate(sizes):
            self._pending_size += size
            if self._pending_size >= limit:
                self._pending_size = 0
                yield table.slice(start, row + 1 - start), True
                start = row + 1
        if start < table.num_rows:
            yield table.slice(start), False

    def _flush(self) -> None:
        if self._pending:
            group = pa.concat_tables(self._pending).combine_chunks()
            with translate_os_errors(self.path):
                self._writer.write_table(group, row_group_size=max(1, group.num_rows))
        self._pending = []


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        try:
            column = table[field.name].cast(field.type)
        except (KeyError, pa.ArrowException) as error:
            raise DamagedError(f"column {field.name!r}: expected {field.type} ({error}); has {table.schema}") from error
        if not field.nullable and column.null_count:
            raise DamagedError(f"column {field.name!r}: {column.null_count} nulls in a required column")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def open_parquet(path: Location) -> pq.ParquetFile:
    """Open `path` for reading; from S3, only the footer and the parts read later are fetched.

    Raises:
        DamagedError: it is missing or not Parquet.
        ServiceError: S3 cannot be reached, now or while it is read.
    """
    with translate_damage(path):
        return pq.ParquetFile(path if isinstance(path, Path) else path.open())


def _may_use_threads(path: Location) -> bool:
    """Return whether Arrow may use threads: not for Python files (S3), whose release at Python's exit would abort()."""
    return isinstance(path, Path)


def read_table(path: Location) -> pa.Table:
    """Read a whole file."""
    file = open_parquet(path)
    with translate_damage(path):
        return file.read(use_threads=_may_use_threads(path))


def read_batches(path: Location, **options: Any) -> Iterator[pa.RecordBatch]:
    """Yield a file in pieces; `options` are those of `pyarrow.parquet.ParquetFile.iter_batches`."""
    batches = open_parquet(path).iter_batches(**{"use_threads": _may_use_threads(path), **options})
    while True:
        with translate_damage(path):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextlib.contextmanager
def translate_damage(path: Location) -> Iterator[None]:
    """Turn the errors that pyarrow raises in the block while it reads `path` into a DamagedError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing; restore it from a copy, or ingest again") from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{path}: not readable as Parquet ({error}); restore it from a copy") from error


def read_where(path: Location, column: str, values: Sequence[int]) -> pa.Table:
    """Return the rows whose `column` has one of `values`, from a file sorted by that int64 column."""
    file = open_parquet(path)
    wanted = sorted(set(values))
    groups = [g for g in range(file.num_row_groups) if _may_hold(file, g, column, wanted)]
    chosen = int64_array(wanted)
    pieces = []
    with translate_damage(path):
        # In portions, so that many values in a large file do not hold it whole.
        for first in range(0, max(1, len(groups)), _GROUPS_AT_ONCE):
            portion = groups[first : first + _GROUPS_AT_ONCE]
            table = file.read_row_groups(portion, use_threads=_may_use_threads(path))
            pieces.append(table.filter(pc.is_in(table[column], value_set=chosen)))
    return pa.concat_tables(pieces)


def int64_array(values: Sequence[int]) -> pa.Array:
    """Return `values` as an int64 array, without `pa.array`, which would import pandas if it is installed (0.5 s)."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(array.array("q", values))])


def _may_hold(file: pq.ParquetFile, group: int, column: str, wanted: list[int]) -> bool:
    index = file.schema_arrow.get_field_index(column)
    statistics = file.metadata.row_group(group).column(index).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    first = bisect.bisect_left(wanted, statistics.min)
    return first < len(wanted) and wanted[first] <= statistics.max


def read_rows(path: Location, start: int, end: int) -> pa.Table:
    """Return rows `start` to `end` (exclusive) of a file, reading only the row groups that contain them."""
    file = open_parquet(path)
    first, pieces = 0, []
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if first < end and start < first + count:
            low, high = max(start - first, 0), min(end - first, count)
            with translate_damage(path):
                whole = file.read_row_group(group, use_threads=_may_use_threads(path))
                pieces.append(whole.slice(low, high - low))
        first += count
    return pa.concat_tables(pieces) if pieces else file.read_row_groups([])


def sha256_file(path: Location) -> str:
    """Return the SHA-256 of a file, read in pieces of 1 MiB."""
    return sha256_of(path)
