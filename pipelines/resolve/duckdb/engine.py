"""The keyed stage on one machine, out of core: which document stands for which, and what each source is.

Documents of all staged directories meet by key here: captures by document id, equal texts by normal hash, near copies
by band hash, titles by wiki. DuckDB finds the groups, on compact columns only; `pipelines.dedup.decisions` decides; texts are
read from the staged files where a pair is verified and where shards are written, and never go through a join.

Tables, in the order in which they come about (`pipelines.resolve.duckdb.queries`):
    staged_*      views over the staged files
    docs          the columns that decisions need
    superseded    row                                              captures that a newer one replaces
    winners       docs that are kept so far
    exact         row -> representative, source_id, num_owners, key    groups of equal text
    reps          representatives, with `rank`, their place in the order of preference
    pairs         a, b: ranks that share a band
    near          rank -> survivor, jaccard
    verdicts      row -> source_id, status, reason, survivor_id, jaccard, cluster_id, displaced_id

Cost: a million documents, a tenth of them near copies, in about 70 s of one core, half of it writing the snapshot;
660 MB of memory at DuckDB's default limit of 400 MB.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from pipelines.dedup import decisions as dedup
from pipelines.dedup.minhash import DedupConfig
from pipelines.dedup.verified_edges import ShingleFile
from pipelines.read_ahead import ahead
from pipelines.resolve import aliases
from pipelines.resolve.duckdb import queries as sql
from pipelines.resolve.duckdb import session as duck
from pipelines.stage import staging
from registry.errors import DamagedError
from registry.schema import SHARD
from registry.storage import translate_os_errors
from registry.storage.parquet import open_parquet

_BATCH_ROWS = 16_384
_INSERT_ROWS = 100_000

Values: TypeAlias = tuple[Any, ...]

SUPERSEDED = pa.schema([("row", pa.int64())])
EXACT = pa.schema(
    [
        ("row", pa.int64()),
        ("origin_id", pa.int64()),
        ("representative", pa.int64()),
        ("source_id", pa.int64()),
        ("num_owners", pa.int64()),
        ("key", pa.string()),
    ]
)
_PLACES = pa.schema([("rank", pa.int64()), ("first", pa.int64()), ("count", pa.int64())])
_NEAR = pa.schema([("rank", pa.int64()), ("survivor", pa.int64()), ("jaccard", pa.float64())])


def resolve(
    folders: Sequence[Path],
    config: DedupConfig,
    *,
    work: Path,
    threads: int = 1,
    memory_bytes: int = duck.DEFAULT_MEMORY_BYTES,
) -> DuckResolution:
    """Resolves the staged directories `folders`; close what is returned.

    Args:
        folders: complete, as `pipelines.stage.staging` leaves them; in any order.
        config: what counts as a near-duplicate.
        work: an empty directory for what does not fit memory.
        threads: of DuckDB.
        memory_bytes: DuckDB's limit.

    Raises:
        DamagedError: two keys have one id.
        ServiceError: the disk is full, or memory does not suffice.
    """
    with duck.service_errors(work), translate_os_errors(work):
        resolution = DuckResolution(folders, config, work=work, threads=threads, memory_bytes=memory_bytes)
        resolution.run()
    return resolution


class DuckResolution:
    """A `pipelines.resolve.resolution.Resolution` in DuckDB."""

    def __init__(
        self, folders: Sequence[Path], config: DedupConfig, *, work: Path, threads: int, memory_bytes: int
    ) -> None:
        self._folders, self._config, self._work = folders, config, work
        self._plan_numbers = itertools.count()
        self._con = duck.connect(work, memory_bytes=memory_bytes, threads=threads)
        for name in staging.TABLES:
            if name != "texts":
                files = duck.scan([folder / f"{name}.parquet" for folder in folders])
                self._con.execute(f"CREATE VIEW staged_{name} AS SELECT * FROM {files}")

    def close(self) -> None:
        """Closes the database; nothing can be read any more."""
        self._con.close()

    def run(self) -> None:
        """All decisions, one table after another."""
        self._con.execute(sql.DOCS)
        self._find_captures()
        self._con.execute(sql.WINNERS)
        self._find_equals()
        self._con.execute(sql.REPS)
        self._find_near_copies()
        self._con.execute(sql.VERDICTS)
        self._con.execute(sql.PUBLISHED)
        self._check_ids("source_id", "key", "published")
        self._find_aliases()

    def documents(self) -> Iterator[pa.RecordBatch]:
        """See `pipelines.resolve.resolution.Resolution`."""
        return self._batches(sql.DOCUMENTS)

    def owners(self) -> Iterator[pa.RecordBatch]:
        """See `pipelines.resolve.resolution.Resolution`."""
        return self._batches(sql.OWNERS)

    def aliases(self) -> Iterator[pa.RecordBatch]:
        """See `pipelines.resolve.resolution.Resolution`."""
        return self._batches(aliases.ALIASES)

    def bands(self) -> Iterator[pa.RecordBatch]:
        """See `pipelines.resolve.resolution.Resolution`."""
        return self._batches(sql.BANDS)

    def sources(self, placements: Path) -> Iterator[pa.RecordBatch]:
        """See `pipelines.resolve.resolution.Resolution`."""
        return self._batches(sql.SOURCES.format(shards=sql.TEXTS["shards"], placements=duck.literal(placements)))

    def texts(self, folder: str) -> Iterator[pa.RecordBatch]:
        """See `pipelines.resolve.resolution.Resolution`."""
        for plan, texts in self._planned_texts(sql.TEXTS[folder]):
            yield pa.record_batch([plan["source_id"], plan["doc_id"], texts], schema=SHARD)

    def text_keys(self, folder: str) -> Iterator[tuple[int, int]]:
        """(source_id, doc_id) of the texts of "shards" or "displaced", in any order."""
        yield from self._rows(f"SELECT source_id, doc_id FROM ({sql.TEXTS[folder]})")

    def source_bytes(self, folder: str) -> Iterator[tuple[int, int]]:
        """See `pipelines.resolve.resolution.Resolution`."""
        sums = "SELECT source_id, CAST(sum(num_bytes) AS BIGINT)"
        query = f"{sums} FROM ({sql.TEXTS[folder]}) GROUP BY source_id ORDER BY source_id"
        yield from ((source_id, num_bytes) for source_id, num_bytes in self._rows(query))

    # The four that `pipelines.resolve.beam.engine` finds in another way.

    def _find_captures(self) -> None:
        self._check_ids("doc_id", "key || ' ' || locator", "staged_documents")
        self._insert("superseded", SUPERSEDED, self._losers())

    def _find_equals(self) -> None:
        self._insert("exact", EXACT, self._exact_groups())

    def _find_near_copies(self) -> None:
        self._con.execute(sql.PAIRS.format(bucket_limit=self._config.bucket_limit))
        with ShingleFile(self._work / "shingles", self._config.ngram) as file:
            self._insert(
                "places",
                _PLACES,
                (
                    (rank, *file.add(text))
                    for plan, texts in self._planned_texts(sql.CANDIDATES)
                    for rank, text in zip(plan["rank"].tolist(), texts.to_pylist(), strict=True)
                ),
            )
            pairs = ((a, b, (x, nx), (y, ny)) for a, b, x, nx, y, ny in self._rows(sql.PLACED_PAIRS))
            self._insert_clusters(file.edges(pairs, self._config.threshold))

    def _find_aliases(self) -> None:
        aliases.create_tables(self._con)

    def _insert_clusters(self, edges: Iterable[dedup.Edge]) -> None:
        members = dedup.star_clusters(edges)
        self._insert("near", _NEAR, ((edge.other, edge.preferred, edge.jaccard) for edge in members))

    def _losers(self) -> Iterator[Values]:
        for _, group in itertools.groupby(self._rows(sql.REPEATED), key=lambda row: row[0]):
            captures = [dedup.Capture(*row[1:]) for row in group]
            winner = dedup.newest(captures)
            yield from ((capture.row,) for capture in captures if capture is not winner)

    def _exact_groups(self) -> Iterator[Values]:
        for _, rows in itertools.groupby(self._rows(sql.EQUAL), key=lambda row: row[0]):
            members = [dedup.Member(*row[1:]) for row in rows]
            group = dedup.exact_group(members)
            shared = (group.representative, group.source_id, len(group.owners), group.source_key)
            yield from ((member.row, member.origin_id, *shared) for member in members)

    def _planned_texts(self, plan: str) -> Iterator[tuple[dict[str, Any], pa.Array]]:
        """The texts of the rows that the query `plan` gives, with its columns: row group by row group of the files."""
        name = f"plan_{next(self._plan_numbers)}"
        self._con.execute(f"CREATE OR REPLACE TABLE {name} AS {plan} ORDER BY row")
        return ahead(self._read_planned(name, self._con.cursor()))  # a cursor of its own, since it is a thread's

    def _read_planned(self, name: str, cursor: Any) -> Iterator[tuple[dict[str, Any], pa.Array]]:
        for folder in self._folders:
            file = open_parquet(folder / "texts.parquet")
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=["row"])["row"].to_numpy()
                query = f"SELECT * FROM {name} WHERE row BETWEEN {rows[0]} AND {rows[-1]} ORDER BY row"
                wanted = cursor.execute(query).fetchnumpy()
                if wanted["row"].size:
                    texts = file.read_row_group(group, columns=["text"])["text"].combine_chunks()
                    yield wanted, texts.take(pa.array(np.searchsorted(rows, wanted["row"])))

    def _check_ids(self, column: str, key: str, table: str) -> None:
        query = f"SELECT {column}, min({key}), max({key}) FROM {table} GROUP BY ALL HAVING min({key}) <> max({key})"
        for number, first, second in self._rows(f"{query} ORDER BY {column} LIMIT 1"):
            raise DamagedError(
                f"{column} {number:016x} is that of both {first!r} and {second!r}: two keys have one id, which a "
                "snapshot cannot hold; leave one of them out, and report it"
            )

    def _batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """A query's rows as they come; `con.sql` streams where `con.execute` would hold all of them in memory."""
        with duck.service_errors(self._work):
            yield from self._con.cursor().sql(query).to_arrow_reader(_BATCH_ROWS)

    def _rows(self, query: str) -> Iterator[Values]:
        for batch in self._batches(query):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def _insert(self, table: str, columns: pa.Schema, rows: Iterable[Values]) -> None:
        """Makes a table of `rows`, some at a time; reading goes on meanwhile, on cursors of their own."""
        self._con.register("new_rows", columns.empty_table())
        self._con.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM new_rows")
        rows = iter(rows)
        while chunk := list(itertools.islice(rows, _INSERT_ROWS)):
            arrays = [list(column) for column in zip(*chunk, strict=True)]
            self._con.register("new_rows", pa.table(arrays, schema=columns))
            self._con.execute(f"INSERT INTO {table} SELECT * FROM new_rows")
        self._con.unregister("new_rows")
