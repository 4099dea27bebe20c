"""Check that no document was lost between reading and writing, source by source, and count documents for reports.

Both counts come from files, the staged ones and the written ones, not from the engine; an ingest whose counts differ
commits nothing. Cost: one pass over the compact columns, no text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pipelines.report import MAX_NAMED, Failure, Wipeout
from pipelines.resolve.duckdb import session as duck
from registry.errors import DamagedError
from registry.ids import SourceId
from registry.schema import Kind, Status

WIPEOUT_SHARE = 0.5  # of a source's text; one that loses more to near copies elsewhere is named

Row: TypeAlias = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """The counts of a snapshot's documents and sources; fields as in `pipelines.report.IngestReport`."""

    read: int
    kept: int
    filtered: Mapping[str, int]
    duplicate: int
    superseded: int
    failed: Mapping[str, int]
    sources: Mapping[str, int]
    shared_sources: int


class Accounts:
    """The tables of a written snapshot, for counting; a context manager.

    Args:
        snapshot: its directory, committed or not.
        work: a directory to spill to.
    """

    def __init__(self, snapshot: Path, work: Path) -> None:
        self._work, self._con = work, duck.connect(work)
        for name in ("documents", "sources"):
            self._view(name, [snapshot / f"{name}.parquet"])
        for folder in ("shards", "displaced"):
            self._view(folder, sorted((snapshot / folder).glob("*.parquet")))

    def __enter__(self) -> Accounts:
        return self

    def __exit__(self, *exc: object) -> None:
        self._con.close()

    def check(self, read: Sequence[Path], without: Collection[SourceId] = ()) -> None:
        """Compare what was written with what was read.

        Args:
            read: Parquet files of documents, staged or of a parent snapshot.
            without: sources that were left out on purpose.

        Raises:
            DamagedError: naming the first source whose documents do not add up, or a text without its document.
        """
        self._view("staged", read)
        excluded = ", ".join(map(str, without)) or "NULL"
        per_origin = "SELECT origin_id, count(*) AS num FROM {} GROUP BY origin_id"
        expected = per_origin.format(
            f"(FROM staged WHERE origin_id IS NULL OR coalesce(origin_id NOT IN ({excluded}), true))"
        )
        for origin_id, num_read, num_written in self._rows(
            f"SELECT coalesce(a.origin_id, b.origin_id), a.num, b.num FROM ({expected}) AS a "
            f"FULL JOIN ({per_origin.format('documents')}) AS b ON a.origin_id IS NOT DISTINCT FROM b.origin_id "
            "WHERE a.num IS DISTINCT FROM b.num ORDER BY ALL LIMIT 1"
        ):
            name = "without identity" if origin_id is None else f"of source {origin_id:016x}"
            raise DamagedError(
                f"read {num_read or 0} documents {name}, wrote {num_written or 0}; nothing was committed"
            )
        kept = f"SELECT source_id, doc_id FROM documents WHERE status = '{Status.KEPT}'"
        stored = "SELECT source_id, doc_id FROM shards"
        for one, other, what in ((kept, stored, "kept but not in a shard"), (stored, kept, "in a shard but not kept")):
            for source_id, doc_id in self._rows(f"{one} EXCEPT ALL {other} ORDER BY ALL LIMIT 1"):
                raise DamagedError(
                    f"document {doc_id:016x} of source {source_id:016x} is {what}; nothing was committed"
                )

    def counts(self) -> Counts:
        """Count documents by status and reason, and sources by kind.

        Raises:
            DamagedError: a document has an unknown status.
        """
        by_reason: dict[str, dict[str, int]] = {status.value: {} for status in Status}
        for status, reason, count in self._rows(
            "SELECT status, reason, count(*) FROM documents GROUP BY ALL ORDER BY ALL"
        ):
            if status not in by_reason:
                raise DamagedError(f"{count} documents have status {status!r}; expected one of {', '.join(by_reason)}")
            by_reason[status][reason or ""] = count
        kinds = self._rows("SELECT kind, count(*) FROM sources GROUP BY kind ORDER BY kind")
        sources: dict[str, int] = dict(kinds)
        shared = sources.pop(Kind.SHARED.value, 0)
        totals = {status: sum(reasons.values()) for status, reasons in by_reason.items()}
        return Counts(
            read=sum(totals.values()),
            kept=totals[Status.KEPT],
            filtered=by_reason[Status.FILTERED],
            duplicate=totals[Status.DUPLICATE],
            superseded=totals[Status.SUPERSEDED],
            failed=by_reason[Status.FAILED],
            sources=sources,
            shared_sources=shared,
        )

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Count documents by the kind of their source and by status; kind "unknown" for failures without identity."""
        found: dict[str, dict[str, int]] = {}
        for kind, status, count in self._rows(
            "SELECT coalesce(kind, 'unknown'), status, count(*) FROM documents "
            "LEFT JOIN sources ON sources.source_id = origin_id GROUP BY ALL ORDER BY ALL"
        ):
            found.setdefault(kind, {"read": 0})[status] = count
            found[kind]["read"] += count
        return found

    def failures(self, folders: Sequence[Path] = ()) -> tuple[Failure, ...]:
        """Return the first failed documents; their `detail` is only known from the staged `folders`."""
        detail_query = "NULL"
        if folders:
            self._view("staged", [folder / "documents.parquet" for folder in folders])
            detail_query = (
                "(SELECT any_value(staged.detail) FROM staged WHERE staged.doc_id = d.doc_id "
                "AND staged.input_file = d.input_file AND staged.input_offset = d.input_offset)"
            )
        rows = self._rows(
            f"SELECT input_file, input_offset, reason, {detail_query} FROM documents AS d "
            f"WHERE status = '{Status.FAILED}' ORDER BY ALL LIMIT {MAX_NAMED}"
        )
        return tuple(
            Failure(input_file=file, input_offset=offset, reason=reason or "", detail=detail or "")
            for file, offset, reason, detail in rows
        )

    def wipeouts(self) -> tuple[Wipeout, ...]:
        """Return the sources that lost more than `WIPEOUT_SHARE` of their text to near copies, the largest first."""
        query = f"""
            WITH own AS (
                SELECT d.origin_id, d.num_bytes, survivor.source_id AS survivor_id
                FROM documents AS d
                LEFT JOIN (SELECT doc_id, source_id FROM documents WHERE status = '{Status.KEPT}') AS survivor
                    ON d.status = '{Status.DUPLICATE}' AND d.source_id IS NULL AND survivor.doc_id = d.survivor_id
                WHERE d.status IN ('{Status.KEPT}', '{Status.DUPLICATE}')
            )
            SELECT any_value(me.key), CAST(sum(own.num_bytes) FILTER (survivor_id <> origin_id) AS BIGINT) AS lost,
                   CAST(sum(own.num_bytes) AS BIGINT) AS total,
                   list(DISTINCT other.key ORDER BY other.key) FILTER (survivor_id <> origin_id) AS others
            FROM own
            JOIN sources AS me ON me.source_id = origin_id
            LEFT JOIN sources AS other ON other.source_id = survivor_id
            GROUP BY origin_id HAVING lost > {WIPEOUT_SHARE} * total
            ORDER BY lost DESC, any_value(me.key) LIMIT {MAX_NAMED}
        """
        return tuple(
            Wipeout(key=key, lost_bytes=lost, num_bytes=total, survivors=tuple(others[:10]))
            for key, lost, total, others in self._rows(query)
        )

    def _view(self, name: str, paths: Sequence[Path]) -> None:
        empty = "(SELECT 0::BIGINT AS source_id, 0::BIGINT AS doc_id WHERE false)"
        table = duck.scan(list(paths)) if paths else empty
        self._con.execute(f"CREATE OR REPLACE VIEW {name} AS SELECT * FROM {table}")

    def _rows(self, query: str) -> list[Row]:
        with duck.service_errors(self._work):
            rows: list[Row] = self._con.execute(query).fetchall()
        return rows
