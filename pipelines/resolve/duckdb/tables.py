"""The database of one keyed stage: views over the staged files, and the tables that the stage makes of them.

Both engines decide in it, through the methods of `Tables`; no other module sees the connection. Rows and texts are read
in batches on cursors of their own, so memory is DuckDB's limit, a batch, and one row group of texts (8 MiB).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from pipelines.read_ahead import read_ahead
from pipelines.resolve.duckdb import session as duck
from pipelines.stage import staging
from registry.errors import DamagedError
from registry.storage.parquet import open_parquet

_BATCH_ROWS = 16_384
_INSERT_ROWS = 100_000

Values: TypeAlias = tuple[Any, ...]


class Tables:
    """A database with a view `staged_<table>` for each of `pipelines.stage.staging.TABLES` except texts.

    Args:
        folders: staged directories, complete; in any order.
        work: an empty directory for what does not fit memory.
        threads: of DuckDB.
        memory_bytes: DuckDB's limit.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        work: Path,
        threads: int = 1,
        memory_bytes: int = duck.DEFAULT_MEMORY_BYTES,
    ) -> None:
        self.folders, self.work = folders, work
        self._selection_numbers = itertools.count()
        self._con = duck.connect(work, memory_bytes=memory_bytes, threads=threads)
        for name in staging.TABLES:
            if name != "texts":
                files = duck.scan([folder / f"{name}.parquet" for folder in folders])
                self.execute(f"CREATE VIEW staged_{name} AS SELECT * FROM {files}")

    def close(self) -> None:
        """Close the database; nothing can be read from it afterwards."""
        self._con.close()

    def execute(self, query: str) -> None:
        """Run statements whose rows, if any, are not wanted."""
        self._con.execute(query)

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """Stream a query's rows: `con.sql` does, where `con.execute` would hold all of them in memory.

        Raises:
            ServiceError: the disk is full, or memory does not suffice.
        """
        with duck.service_errors(self.work):
            yield from self._con.cursor().sql(query).to_arrow_reader(_BATCH_ROWS)

    def rows(self, query: str) -> Iterator[Values]:
        """Stream a query's rows as tuples."""
        for batch in self.batches(query):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def count(self, table: str) -> int:
        """Return the number of rows of a table, or of a query in parentheses."""
        ((num_rows,),) = self.rows(f"SELECT count(*) FROM {table}")
        return int(num_rows)

    def insert(self, table: str, columns: pa.Schema, rows: Iterable[Values]) -> None:
        """Make `table` of `rows`, in chunks; `rows` may read from this database meanwhile."""
        self._con.register("new_rows", columns.empty_table())
        self.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM new_rows")
        rows = iter(rows)
        while chunk := list(itertools.islice(rows, _INSERT_ROWS)):
            arrays = [list(column) for column in zip(*chunk, strict=True)]
            self._con.register("new_rows", pa.table(arrays, schema=columns))
            self.execute(f"INSERT INTO {table} SELECT * FROM new_rows")
        self._con.unregister("new_rows")

    def check_ids(self, column: str, key: str, table: str) -> None:
        """Check that no id stands for two keys.

        Args:
            column: the id.
            key: the expression that it is a hash of.
            table: where to look.

        Raises:
            DamagedError: naming the first id that does, and both keys.
        """
        query = f"SELECT {column}, min({key}), max({key}) FROM {table} GROUP BY ALL HAVING min({key}) <> max({key})"
        for id_, first, second in self.rows(f"{query} ORDER BY {column} LIMIT 1"):
            raise DamagedError(
                f"{column} {id_:016x} is that of both {first!r} and {second!r}: two keys have one id, which a "
                "snapshot cannot hold; leave one of them out, and report it"
            )

    def texts_of(self, selection: str) -> Iterator[tuple[dict[str, Any], pa.Array]]:
        """Read the staged texts of the rows that a query selects, one row group at a time.

        Args:
            selection: a query with a column `row`.

        Returns:
            Batches of (the query's columns as NumPy arrays, the texts), in the order of rows.
        """
        name = f"selection_{next(self._selection_numbers)}"
        self.execute(f"CREATE OR REPLACE TABLE {name} AS {selection} ORDER BY row")
        return read_ahead(self._read_texts(name, self._con.cursor()))  # its own cursor, since another thread reads

    def _read_texts(self, selection: str, cursor: Any) -> Iterator[tuple[dict[str, Any], pa.Array]]:
        for folder in self.folders:
            file = open_parquet(folder / "texts.parquet")
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=["row"])["row"].to_numpy()
                query = f"SELECT * FROM {selection} WHERE row BETWEEN {rows[0]} AND {rows[-1]} ORDER BY row"
                wanted = cursor.execute(query).fetchnumpy()
                if wanted["row"].size:
                    texts = file.read_row_group(group, columns=["text"])["text"].combine_chunks()
                    yield wanted, texts.take(pa.array(np.searchsorted(rows, wanted["row"])))
