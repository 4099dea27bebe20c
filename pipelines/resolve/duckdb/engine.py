"""The keyed stage on one machine, out of core: DuckDB finds the groups.

Texts are read from the staged files where a pair is verified and where shards are written; they never go through a
join. Two more tables beside those of `pipelines.resolve.keyed_stage`:

    pairs    a, b: ranks that share a band
    spans    rank -> first, count: where its shingles are in a file on disk

Cost: a million documents, a tenth of them near copies, in about 70 s of one core, half of it writing the snapshot;
660 MB of memory at DuckDB's default limit of 400 MB.

    resolve(folders, DedupConfig(), work=work, threads=2)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from pipelines.dedup import decisions as dedup
from pipelines.dedup.minhash import DedupConfig
from pipelines.dedup.verified_edges import ShingleFile
from pipelines.resolve import aliases
from pipelines.resolve.duckdb import queries as sql
from pipelines.resolve.duckdb import session as duck
from pipelines.resolve.duckdb.tables import Tables, Values
from pipelines.resolve.keyed_stage import EXACT, SUPERSEDED, TableResolution, insert_clusters, resolve_with

_SPANS = pa.schema([("rank", pa.int64()), ("first", pa.int64()), ("count", pa.int64())])


def resolve(
    folders: Sequence[Path],
    config: DedupConfig,
    *,
    work: Path,
    threads: int = 1,
    memory_bytes: int = duck.DEFAULT_MEMORY_BYTES,
) -> TableResolution:
    """Resolve the staged directories `folders`; close what is returned.

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
    return resolve_with(
        lambda tables: DuckGroupFinder(tables, config), folders, work=work, threads=threads, memory_bytes=memory_bytes
    )


class DuckGroupFinder:
    """A `pipelines.resolve.keyed_stage.GroupFinder`: groups by SQL, near copies by a join over bands.

    Args:
        tables: the database.
        config: what counts as a near-duplicate.
    """

    def __init__(self, tables: Tables, config: DedupConfig) -> None:
        self._tables, self._config = tables, config

    def find_captures(self) -> None:
        """See `GroupFinder`."""
        self._tables.check_ids("doc_id", "key || ' ' || locator", "staged_documents")
        self._tables.insert("superseded", SUPERSEDED, self._superseded())

    def find_equal_texts(self) -> None:
        """See `GroupFinder`."""
        self._tables.insert("exact", EXACT, self._exact())

    def find_near_copies(self) -> None:
        """See `GroupFinder`."""
        self._tables.execute(sql.PAIRS.format(bucket_limit=self._config.bucket_limit))
        with ShingleFile(self._tables.work / "shingles", self._config.ngram) as file:
            self._tables.insert("spans", _SPANS, self._spans(file))
            pairs = ((a, b, (x, nx), (y, ny)) for a, b, x, nx, y, ny in self._tables.rows(sql.PAIRS_WITH_SPANS))
            insert_clusters(self._tables, file.edges(pairs, self._config.threshold))

    def find_aliases(self) -> None:
        """See `GroupFinder`."""
        aliases.create_tables(self._tables)

    def _superseded(self) -> Iterator[Values]:
        for _, group in itertools.groupby(self._tables.rows(sql.REPEATED), key=lambda row: row[0]):
            captures = [dedup.Capture(*row[1:]) for row in group]
            winner = dedup.newest(captures)
            yield from ((capture.row,) for capture in captures if capture is not winner)

    def _exact(self) -> Iterator[Values]:
        for _, rows in itertools.groupby(self._tables.rows(sql.EQUAL), key=lambda row: row[0]):
            members = [dedup.Member(*row[1:]) for row in rows]
            group = dedup.exact_group(members)
            shared = (group.representative, group.source_id, len(group.owners), group.source_key)
            yield from ((member.row, member.origin_id, *shared) for member in members)

    def _spans(self, file: ShingleFile) -> Iterator[Values]:
        for columns, texts in self._tables.texts_of(sql.CANDIDATES):
            for rank, text in zip(columns["rank"].tolist(), texts.to_pylist(), strict=True):
                yield (rank, *file.add(text))
