"""Parquet as snapshots use it: bytes that depend on the rows alone, and point reads that touch few row groups.

Row groups are cut by rows (tables) or by text bytes (shards), never by how the rows happened to arrive, so that any
number of workers or engines writes the same file. Point reads use the footer's min/max statistics of the sort column:
one row group of 16,384 rows is read for one id, about 5 ms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from registry.errors import DamagedError

ROWS_PER_GROUP = 16_384
TEXT_BYTES_PER_GROUP = 8 << 20


class ParquetFileWriter:
    """Writes one Parquet file in a row-group layout that depends on its rows alone; a context manager.

    Args:
        path: where; written in place, since its directory is published as a whole.
        schema: exact; batches are cast to it safely, so a null in a required column is an error.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.num_rows = 0
        self._schema = schema
        self._by_text = "text" in schema.names
        self._pending: list[pa.Table] = []
        self._pending_size = 0
        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", write_page_index=True, version="2.6", store_schema=True
        )

    def __enter__(self) -> ParquetFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Appends rows, which must come in the file's sort order."""
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
            self._writer.write_table(group, row_group_size=max(1, group.num_rows))
        self._pending = []


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        column = table[field.name].cast(field.type)
        if not field.nullable and column.null_count:
            raise DamagedError(f"column {field.name!r}: {column.null_count} nulls where none may be")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Opens `path` for reading.

    Raises:
        DamagedError: it is missing or not Parquet.
    """
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing; restore it from a copy, or ingest again") from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{path}: not readable as Parquet ({error}); restore it from a copy") from error


def read_where(path: Path, column: str, values: Sequence[int]) -> pa.Table:
    """The rows of a file sorted by the int64 `column` whose value is one of `values`."""
    file = open_parquet(path)
    wanted = sorted(set(values))
    groups = [g for g in range(file.num_row_groups) if _may_hold(file, g, column, wanted)]
    table = file.read_row_groups(groups) if groups else file.schema_arrow.empty_table()
    return table.filter(pc.is_in(table[column], value_set=pa.array(wanted, pa.int64())))


def _may_hold(file: pq.ParquetFile, group: int, column: str, wanted: list[int]) -> bool:
    index = file.schema_arrow.get_field_index(column)
    statistics = file.metadata.row_group(group).column(index).statistics
    if statistics is None or not statistics.has_min_max:
        return True
    return any(statistics.min <= value <= statistics.max for value in wanted)


def read_rows(path: Path, start: int, end: int) -> pa.Table:
    """Rows `start` to `end` (exclusive) of a file, reading only the row groups that hold them."""
    file = open_parquet(path)
    first, pieces = 0, []
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if first < end and start < first + count:
            low, high = max(start - first, 0), min(end - first, count)
            pieces.append(file.read_row_group(group).slice(low, high - low))
        first += count
    return pa.concat_tables(pieces) if pieces else file.schema_arrow.empty_table()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
