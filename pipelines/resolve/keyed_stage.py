"""The keyed stage, the same for both engines: make its tables one after another, and read the snapshot out of them.

Documents of all staged directories meet by key here: captures by document id, equal texts by normal hash, near copies
by band hash, titles by wiki. An engine is a `GroupFinder`: it finds the groups, on compact columns only;
`pipelines.dedup.decisions` decides; the queries of `pipelines.resolve.duckdb.queries` join what was decided.

Tables, in the order in which they are made:
    staged_*      views over the staged files
    docs          the columns that decisions need
    superseded    row                                                  captures that a newer one replaces
    winners       docs that are kept so far
    exact         row -> representative, source_id, num_owners, key    groups of equal text
    reps          representatives, with `rank`, their position in the order of preference
    near          rank -> survivor, jaccard
    verdicts      row -> source_id, status, reason, survivor_id, jaccard, cluster_id, displaced_id
    published     source_id, key, kind
    titles, redirects, reached    see `pipelines.resolve.aliases`
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from pipelines.dedup import decisions as dedup
from pipelines.resolve import aliases
from pipelines.resolve.duckdb import queries as sql
from pipelines.resolve.duckdb import session as duck
from pipelines.resolve.duckdb.tables import Tables
from registry.ids import DocId, SourceId
from registry.schema import SHARD
from registry.storage import translate_os_errors

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
_NEAR = pa.schema([("rank", pa.int64()), ("survivor", pa.int64()), ("jaccard", pa.float64())])


class GroupFinder(Protocol):
    """The four steps that engines do in different ways; each makes tables out of those that are there before it."""

    def find_captures(self) -> None:
        """Make `superseded` (`SUPERSEDED`).

        Raises:
            DamagedError: two documents have one id.
        """

    def find_equal_texts(self) -> None:
        """Make `exact` (`EXACT`) of `winners`."""

    def find_near_copies(self) -> None:
        """Make `near` of `reps`, with `insert_clusters`."""

    def find_aliases(self) -> None:
        """Make the tables of `pipelines.resolve.aliases.create_tables`."""


def insert_clusters(tables: Tables, edges: Iterable[dedup.Edge]) -> None:
    """Make `near` of verified edges between ranks, sorted by the less preferred one."""
    members = dedup.star_clusters(edges)
    tables.insert("near", _NEAR, ((edge.other, edge.preferred, edge.jaccard) for edge in members))


def resolve_with(
    make_finder: Callable[[Tables], GroupFinder],
    folders: Sequence[Path],
    *,
    work: Path,
    threads: int,
    memory_bytes: int = duck.DEFAULT_MEMORY_BYTES,
) -> TableResolution:
    """Run the keyed stage over the staged directories `folders`; close what is returned.

    Args:
        make_finder: makes the engine, given the database with the staged views.
        folders: complete, as `pipelines.stage.staging` leaves them; in any order.
        work: an empty directory for what does not fit memory.
        threads: of DuckDB.
        memory_bytes: DuckDB's limit.

    Raises:
        DamagedError: two keys have one id, or what the engine raises.
        ServiceError: the disk is full, or memory does not suffice.
    """
    with duck.service_errors(work), translate_os_errors(work), contextlib.ExitStack() as on_failure:
        tables = Tables(folders, work=work, threads=threads, memory_bytes=memory_bytes)
        on_failure.callback(tables.close)
        _make_tables(tables, make_finder(tables))
        on_failure.pop_all()
    return TableResolution(tables)


def _make_tables(tables: Tables, finder: GroupFinder) -> None:
    tables.execute(sql.DOCS)
    finder.find_captures()
    tables.execute(sql.WINNERS)
    finder.find_equal_texts()
    tables.execute(sql.REPS)
    finder.find_near_copies()
    tables.execute(sql.VERDICTS)
    tables.execute(sql.PUBLISHED)
    tables.check_ids("source_id", "key", "published")
    finder.find_aliases()


class TableResolution:
    """A `pipelines.resolve.resolution.Resolution` that is read out of the stage's tables; methods as described there.

    Args:
        tables: complete; closed by `close`.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def close(self) -> None:
        """See `Resolution`."""
        self.tables.close()

    def documents(self) -> Iterator[pa.RecordBatch]:
        """See `Resolution`."""
        return self.tables.batches(sql.DOCUMENTS)

    def owners(self) -> Iterator[pa.RecordBatch]:
        """See `Resolution`."""
        return self.tables.batches(sql.OWNERS)

    def aliases(self) -> Iterator[pa.RecordBatch]:
        """See `Resolution`."""
        return self.tables.batches(aliases.ALIASES)

    def bands(self) -> Iterator[pa.RecordBatch]:
        """See `Resolution`."""
        return self.tables.batches(sql.BANDS)

    def sources(self, placements: Path) -> Iterator[pa.RecordBatch]:
        """See `Resolution`."""
        query = sql.SOURCES.format(shards=sql.TEXTS["shards"], placements=duck.literal(placements))
        return self.tables.batches(query)

    def texts(self, folder: str) -> Iterator[pa.RecordBatch]:
        """See `Resolution`."""
        for columns, texts in self.tables.texts_of(sql.TEXTS[folder]):
            yield pa.record_batch([columns["source_id"], columns["doc_id"], texts], schema=SHARD)

    def text_keys(self, folder: str) -> Iterator[tuple[SourceId, DocId]]:
        """See `Resolution`."""
        yield from self.tables.rows(f"SELECT source_id, doc_id FROM ({sql.TEXTS[folder]})")

    def source_bytes(self, folder: str) -> Iterator[tuple[SourceId, int]]:
        """See `Resolution`."""
        sums = "SELECT source_id, CAST(sum(num_bytes) AS BIGINT)"
        query = f"{sums} FROM ({sql.TEXTS[folder]}) GROUP BY source_id ORDER BY source_id"
        yield from self.tables.rows(query)
