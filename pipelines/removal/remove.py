"""Remove sources from a snapshot: write a child without them, rewriting only the shards touched.

    find the sources -> find affected documents -> decide them again -> tables, shards -> check -> commit

Every document that a removed source published goes. A text that it shared stays, under its other owners; a near copy
that it had displaced comes back with its own wording, unless it is near another text that is kept. Only documents
that shared a text with the removed ones, or were near copies of them, are decided again, by the engine and the rules
of an ingest, beside the kept documents that share a band with them; the rest is unchanged
(`pipelines.removal.queries`).

The registry remembers what was removed: a later ingest that reads the source again filters its documents, with the
reason `removed`. Cost: one pass over the compact tables, and the shards touched.

    remove(["https://example.com/"], registry_uri="./nulls-registry")
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines import parent_snapshot
from pipelines.conservation import Accounts
from pipelines.dedup.minhash import DedupConfig
from pipelines.removal import queries as sql
from pipelines.resolve.duckdb import session as duck
from pipelines.resolve.engines import Engine, resolve
from pipelines.resolve.resolution import Resolution
from pipelines.stage import staging
from pipelines.write import shard_edit
from pipelines.write.external_sort import Row, sorted_texts
from pipelines.write.shard_edit import TextKey
from pipelines.write.shards import PLACEMENTS, Placement
from registry import ids, schema
from registry.errors import RefusedError, UsageError
from registry.lookup import Source
from registry.lookup import resolve as resolve_name
from registry.messages.shown import listed
from registry.schema import Kind, Status
from registry.snapshot import Registry, Snapshot, SnapshotWriter
from registry.storage import check_writable, file_lock, translate_os_errors
from registry.storage.parquet import ParquetFileWriter

Progress = Callable[[str, float | None], None]
_BATCH_ROWS = 16_384


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemovalReport:
    """The effects of a removal, done or planned.

    Attributes:
        snapshot: the child's id; None after a dry run.
        parent: the id of the snapshot that the sources are removed from.
        removed: for each source {"source_id" (hex), "key", "title", "num_documents", "num_bytes"} of its trained text.
        goes_on: number of shared texts that stay under their other owners.
        came_back: number of near copies at other sources that were displaced, and are trained on now.
        shards_rewritten, shards_kept: number of shard files.
    """

    snapshot: str | None
    parent: str
    removed: tuple[dict[str, Any], ...]
    goes_on: int
    came_back: int
    shards_rewritten: int
    shards_kept: int
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        return dataclasses.asdict(self) | {"seconds": round(self.seconds, 3)}

    def lines(self) -> list[str]:
        """Return the lines that a person reads."""
        done = self.snapshot is not None
        found = [f"snapshot {self.snapshot}" if done else f"would make a child of snapshot {self.parent}"]
        for entry in self.removed:
            found.append(f"  without {entry['key']}: {entry['num_documents']} documents, {entry['num_bytes']} bytes")
        found.append(f"  texts that stay under their other owners: {self.goes_on}")
        found.append(f"  near copies that come back: {self.came_back}")
        return [*found, f"  shards: {self.shards_rewritten} rewritten, {self.shards_kept} unchanged"]


def remove(
    names: Sequence[str],
    *,
    registry_uri: str | Path,
    workers: int = 1,
    on_progress: Progress = lambda message, share: None,
    dry_run: bool = False,
) -> RemovalReport:
    """Remove sources from a registry's newest snapshot, by committing a child without them.

    Args:
        names: of the sources: URL, title, ISBN, key or id.
        registry_uri: of the registry.
        workers: threads.
        on_progress: called with a message and None.
        dry_run: only report what would change.

    Raises:
        NotFoundError: a name fits no source of the snapshot.
        UsageError: a name is ambiguous, or is that of a text with several owners.
        RefusedError: the same removal is running, another snapshot was committed meanwhile, or this one was imported.
        ServiceError: the registry cannot be written.
        DamagedError: the snapshot is damaged, or documents were lost on the way; nothing is committed.
    """
    if not names:
        raise UsageError("nothing to remove; name sources by URL, title, ISBN, key or id")
    started = time.monotonic()
    registry = Registry.open(registry_uri)
    snapshot = registry.snapshot()
    if "dedup" not in snapshot.manifest["configuration"]:
        raise RefusedError(
            f"snapshot {snapshot.id[:12]} was imported with a released model: it has titles and no text to remove; "
            "`nulls unlearn` takes a source out of the model"
        )
    sources = _find_sources(snapshot, names)
    check_writable(registry.work)
    report = _Removal(registry, snapshot, sources, workers).execute(on_progress, dry_run=dry_run)
    return dataclasses.replace(report, seconds=time.monotonic() - started)


def _find_sources(snapshot: Snapshot, names: Sequence[str]) -> list[Source]:
    found = {source.source_id: source for source in (resolve_name(snapshot, name) for name in names)}
    for source in found.values():
        if source.kind == Kind.SHARED:
            owners = listed(source.shared_with)
            raise UsageError(f"{source.key} is text that several sources published; remove its owners: {owners}")
    return [found[source_id] for source_id in sorted(found)]


class _Removal:
    """One removal from one snapshot."""

    def __init__(self, registry: Registry, snapshot: Snapshot, sources: list[Source], workers: int) -> None:
        self._registry, self._parent, self._sources, self._workers = registry, snapshot, sources, workers
        parts = ["remove", snapshot.id, [source.source_id for source in sources]]
        self.fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        self.work = registry.work / self.fingerprint

    def execute(self, on_progress: Progress, *, dry_run: bool) -> RemovalReport:
        """Run all steps; nothing is left in the work directory.

        Raises:
            RefusedError: the same removal is running, or another snapshot was committed meanwhile.
        """
        busy = "the same removal is running already; wait for it, or end it and run this again"
        with file_lock(self.work.with_suffix(".lock"), timeout_s=0, busy=busy):
            with translate_os_errors(self.work):
                shutil.rmtree(self.work, ignore_errors=True)
                (self.work / "resolve").mkdir(parents=True)
            try:
                with duck.service_errors(self.work), duck.connect(self.work, threads=self._workers) as con:
                    return self._execute(con, on_progress, dry_run=dry_run)
            finally:
                shutil.rmtree(self.work, ignore_errors=True)

    def _execute(self, con: duckdb.DuckDBPyConnection, on_progress: Progress, *, dry_run: bool) -> RemovalReport:
        on_progress("reading the snapshot", None)
        local = self._parent.local(self.work / "parent")
        Snapshot(local, self._parent.manifest).verify()
        self._load(con, local)
        on_progress("deciding affected documents again", None)
        folder = self._stage(con, local)
        with contextlib.closing(self._decide(con, folder)) as resolution:
            edits = {name: self._find_edit(con, resolution, name, local) for name in ("shards", "displaced")}
            report = self._report(con, edits)
            if dry_run:
                return report
            on_progress("writing the snapshot", None)
            writer = SnapshotWriter(self._registry, self.work / "snapshot")
            self._write_texts(resolution, edits, local, writer)
            self._write_tables(con, local, edits["shards"].shards, writer)
        on_progress("checking that nothing was lost", None)
        with Accounts(writer.staging, self.work) as accounts:
            accounts.check(
                [local / "documents.parquet"], without=[ids.SourceId(source.source_id) for source in self._sources]
            )
            snapshot = self._commit(writer, accounts)
        return dataclasses.replace(report, snapshot=snapshot.id)

    def _load(self, con: duckdb.DuckDBPyConnection, local: Path) -> None:
        parent_snapshot.load_tables(con, self._parent, local)
        con.execute(f"CREATE VIEW bands AS SELECT * FROM {duck.scan([local / 'bands.parquet'])}")
        con.execute("CREATE TABLE removed (source_id BIGINT)")
        con.executemany("INSERT INTO removed VALUES (?)", [[source.source_id] for source in self._sources])
        con.execute(sql.AFFECTED)
        con.execute(sql.NEIGHBOURS)

    def _stage(self, con: duckdb.DuckDBPyConnection, local: Path) -> Path:
        """Write the documents to compare as a staged directory; return it."""
        folder = self.work / "stage" / "affected"
        numbers = [row[0] for row in con.execute(sql.TEXT_SHARDS).fetchall()]
        names = [f"shards/part-{number:05d}" for number in numbers] + self._parent.shards("displaced")
        with staging.StageWriter(folder, 0) as writer:
            files = [local / f"{name}.parquet" for name in names]
            for text, rows in parent_snapshot.texts_of(con, files, "compared"):
                for row in rows:
                    undecided = {**parent_snapshot.undecided_row(row, text), "settled": row["is_settled"]}
                    writer.document(undecided, text, parent_snapshot.stored_fingerprint(row))
        return folder

    def _decide(self, con: duckdb.DuckDBPyConnection, folder: Path) -> Resolution:
        """Resolve the staged documents; make the answer's tables views `decided_*` of `con`."""
        config = DedupConfig(**self._parent.manifest["configuration"]["dedup"])
        resolution = resolve(Engine(), [folder], config, work=self.work / "resolve", workers=self._workers)
        decided = {
            "documents": resolution.documents(),
            "owners": resolution.owners(),
            "bands": resolution.bands(),
        }
        for name, batches in decided.items():
            path = self.work / f"{name}.parquet"
            with ParquetFileWriter(path, schema.TABLES[name]) as file:
                for batch in batches:
                    file.write(batch)
            con.execute(f"CREATE VIEW decided_{name} AS SELECT * FROM {duck.scan([path])}")
        con.execute(sql.DECISIONS.format(documents="decided_documents"))
        return resolution

    def _find_edit(self, con: duckdb.DuckDBPyConnection, resolution: Resolution, folder: str, local: Path) -> _Edit:
        """Find the texts of a folder to delete and to add, and the shards that they touch."""
        names = self._parent.shards(folder)
        before = set(_stored(con, folder, [local / f"{name}.parquet" for name in names]))
        concerned = {row[0] for row in con.execute("FROM concerned").fetchall()}
        after = {key for key in resolution.text_keys(folder) if key[1] in concerned}
        deleted, added = before - after, after - before
        return _Edit(deleted, added, shard_edit.find_changes(names, local, deleted | added))

    def _report(self, con: duckdb.DuckDBPyConnection, edits: dict[str, _Edit]) -> RemovalReport:
        removed = tuple(
            {
                "source_id": ids.format_id(source.source_id),
                "key": source.key,
                "title": source.title,
                "num_documents": source.num_documents,
                "num_bytes": source.num_bytes,
            }
            for source in self._sources
        )
        kept = f"SELECT count(*) FROM decided JOIN affected USING (doc_id) WHERE decided.status = '{Status.KEPT}' AND "
        goes_on = con.execute(kept + "affected.source_id IN (FROM split)").fetchone()
        came_back = con.execute(kept + f"affected.status <> '{Status.KEPT}' AND affected.source_id IS NULL").fetchone()
        return RemovalReport(
            snapshot=None,
            parent=self._parent.id,
            removed=removed,
            goes_on=goes_on[0] if goes_on else 0,
            came_back=came_back[0] if came_back else 0,
            shards_rewritten=sum(len(edit.shards.touched) for edit in edits.values()),
            shards_kept=sum(len(set(edit.shards.numbers) - edit.shards.touched) for edit in edits.values()),
        )

    def _write_texts(
        self, resolution: Resolution, edits: dict[str, _Edit], local: Path, writer: SnapshotWriter
    ) -> None:
        for folder, edit in edits.items():
            batches = (_select(batch, edit.added) for batch in resolution.texts(folder))
            added: Iterator[Row] = sorted_texts(batches, self.work / f"sort-{folder}") if edit.added else iter(())
            placements = list(
                shard_edit.edit_shards(edit.shards, local, folder, deleted=edit.deleted, added=added, writer=writer)
            )
            if folder == "shards":
                with ParquetFileWriter(self.work / "placements.parquet", PLACEMENTS) as file:
                    file.write(_placements_table(placements))

    def _write_tables(
        self, con: duckdb.DuckDBPyConnection, local: Path, shards: shard_edit.ShardChanges, writer: SnapshotWriter
    ) -> None:
        def scan(path: Path) -> str:
            return duck.scan([path])

        con.execute("CREATE TABLE rewritten (shard INTEGER)")
        for number in shards.touched:
            con.execute("INSERT INTO rewritten VALUES (?)", [number])
        _write(con, sql.DOCUMENTS, writer, "documents")
        _write(con, sql.OWNERS.format(owners="decided_owners"), writer, "owners")
        _write(con, sql.BANDS.format(bands="decided_bands"), writer, "bands")
        _write(con, sql.ALIASES.format(aliases=scan(local / "aliases.parquet")), writer, "aliases")
        owners, documents = (scan(writer.staging / f"{name}.parquet") for name in ("owners", "documents"))
        _name_new_shared(con, owners)
        query = sql.SOURCES.format(
            owners=owners, documents=documents, placements=scan(self.work / "placements.parquet")
        )
        _write(con, query, writer, "sources")

    def _commit(self, writer: SnapshotWriter, accounts: Accounts) -> Snapshot:
        manifest = self._parent.manifest
        removed = {entry["source_id"]: entry for entry in self._parent.removed}
        for source in self._sources:  # one removed before, read again and removed again is listed once
            hex_id = ids.format_id(source.source_id)
            removed[hex_id] = {"source_id": hex_id, "key": source.key}
        return writer.commit(
            configuration=manifest["configuration"],
            inputs=list(manifest["inputs"]),
            parent=self._parent.id,
            follows=self._parent.id,
            removed=[removed[hex_id] for hex_id in sorted(removed)],
            counts=dataclasses.asdict(accounts.counts()),
            conservation=accounts.by_kind(),
            wikis=manifest["wikis"],
            wipeouts=[dataclasses.asdict(wipeout) for wipeout in accounts.wipeouts()],
            ingest=self.fingerprint,
        )


@dataclasses.dataclass(frozen=True)
class _Edit:
    """The texts of a folder to delete and to add, and its shards."""

    deleted: set[TextKey]
    added: set[TextKey]
    shards: shard_edit.ShardChanges


def _stored(con: duckdb.DuckDBPyConnection, folder: str, files: list[Path]) -> Iterator[TextKey]:
    """Yield the texts of `concerned` that the parent has in a folder; for shards, its documents list them."""
    if folder == "shards":
        query = f"SELECT source_id, doc_id FROM documents WHERE status = '{Status.KEPT}' AND doc_id IN (FROM concerned)"
    elif files:
        query = f"SELECT source_id, doc_id FROM {duck.scan(files)} WHERE doc_id IN (FROM concerned)"
    else:
        return
    for batch in con.cursor().sql(query).to_arrow_reader(_BATCH_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _select(batch: pa.RecordBatch, keys: set[TextKey]) -> pa.RecordBatch:
    pairs = zip(batch["source_id"].to_pylist(), batch["doc_id"].to_pylist(), strict=True)
    return batch.filter(pa.array([pair in keys for pair in pairs], pa.bool_()))


def _placements_table(placements: list[Placement]) -> pa.Table:
    columns = {name: [getattr(placement, name) for placement in placements] for name in PLACEMENTS.names}
    return pa.table(columns, schema=PLACEMENTS)


def _name_new_shared(con: duckdb.DuckDBPyConnection, owners: str) -> None:
    """Fill `new_shared`: the sources that have owners and were not in the parent, with their keys."""
    con.execute("CREATE TABLE new_shared (source_id BIGINT, key VARCHAR)")
    query = f"""
        SELECT source_id, list(owner_id ORDER BY owner_id) FROM {owners}
        WHERE source_id NOT IN (SELECT source_id FROM sources) GROUP BY source_id
    """
    for source_id, owner_ids in con.execute(query).fetchall():
        con.execute("INSERT INTO new_shared VALUES (?, ?)", [source_id, ids.shared_key(owner_ids)])


def _write(con: duckdb.DuckDBPyConnection, query: str, writer: SnapshotWriter, table: str) -> None:
    with writer.table(table) as file:
        for batch in con.cursor().sql(query).to_arrow_reader(_BATCH_ROWS):
            file.write(batch)
