"""Stage a parent snapshot as one more directory, so that new inputs are resolved together with its documents.

Documents whose text the snapshot holds (kept and displaced ones) are decided again beside the new ones; so are
documents of equal text, with the text that represents them, since their sources own it. The rest (filtered, failed,
superseded, near copies within a source) is carried over unchanged. Kept documents are marked settled: only a newer
capture replaces them. Redirects are resolved again, so that one whose target comes later reaches it.
Normal hashes and bands are the snapshot's own: no text is fingerprinted twice. Cost: 3,500 documents of 4 kB a second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from pipelines.dedup.decisions import EXACT, NEAR
from pipelines.dedup.minhash import Fingerprint
from pipelines.document import Redirect, WikiSite
from pipelines.resolve.duckdb import session as duck
from pipelines.stage.staging import StageWriter, is_complete, title_hash
from registry import identity, ids
from registry.schema import AliasKind, Kind, Status
from registry.snapshot import Snapshot
from registry.storage.parquet import read_batches

# `text_id` is the document whose text represents this one, if the snapshot has it: itself, its equal, or the displaced
# document that it equals (found by its survivor, its similarity and its owner).
_DOCUMENTS = f"""
CREATE TABLE carried AS
WITH displaced AS (
    SELECT d.doc_id, d.survivor_id, d.jaccard, x.source_id
    FROM ({{displaced}}) AS x JOIN documents AS d ON d.doc_id = x.doc_id AND d.status = '{Status.DUPLICATE}'
),
belongs AS (
    SELECT source_id, owner_id FROM owners UNION SELECT source_id, source_id FROM displaced
),
equals AS (
    SELECT d.doc_id, min(displaced.doc_id) AS text_id
    FROM documents AS d
    JOIN displaced ON displaced.survivor_id = d.survivor_id AND displaced.jaccard = d.jaccard
    JOIN belongs ON belongs.source_id = displaced.source_id AND belongs.owner_id = d.origin_id
    WHERE d.status = '{Status.DUPLICATE}' AND d.reason = '{NEAR}' AND d.doc_id NOT IN (SELECT doc_id FROM displaced)
    GROUP BY d.doc_id
)
SELECT d.*, s.key, s.kind,
       CASE WHEN d.status = '{Status.KEPT}' THEN d.doc_id
            WHEN d.status <> '{Status.DUPLICATE}' THEN NULL
            WHEN d.reason = '{EXACT}' THEN d.survivor_id
            ELSE coalesce(displaced.doc_id, equals.text_id) END AS text_id
FROM documents AS d
LEFT JOIN sources AS s ON s.source_id = d.origin_id
LEFT JOIN displaced ON displaced.doc_id = d.doc_id AND d.status = '{Status.DUPLICATE}'
LEFT JOIN equals ON equals.doc_id = d.doc_id AND d.status = '{Status.DUPLICATE}'
"""

_BANDS = "CREATE TABLE fingerprints AS SELECT doc_id, list(hash ORDER BY band) AS bands FROM {bands} GROUP BY doc_id"
_REPRESENTED = """
SELECT c.*, bands FROM (SELECT * FROM {table} WHERE text_id IN ({wanted})) AS c
LEFT JOIN (SELECT * FROM fingerprints WHERE doc_id IN ({wanted})) AS f ON f.doc_id = c.text_id
ORDER BY c.doc_id
"""

_UNCHANGED = (
    *("doc_id", "origin_id", "key", "url", "title", "input_file", "input_offset", "input_length", "input_stored"),
    *("num_bytes", "text_sha256", "normal_hash", "language", "status", "reason"),
    *("survivor_id", "jaccard", "cluster_id"),
)


def stage_parent(snapshot: Snapshot, folder: Path, *, index: int, work: Path) -> None:
    """Write `snapshot` as the staged directory `folder`, unless that is complete.

    Args:
        snapshot: the snapshot to continue.
        folder: the directory to publish.
        index: of the directory among those to be resolved together.
        work: a directory to spill to, and to download a snapshot at s3:// to.

    Raises:
        DamagedError: a file of the snapshot is not what was written.
        ServiceError: the output cannot be written, or S3 cannot be reached.
    """
    if is_complete(folder):
        return
    local = snapshot.local(work / "parent")
    Snapshot(local, snapshot.manifest).verify()  # damage must not be copied into a child that then verifies
    with duck.service_errors(work), duck.connect(work) as con, StageWriter(folder, index) as writer:
        load_tables(con, snapshot, local)
        files = [local / f"{name}.parquet" for name in [*snapshot.shards(), *snapshot.shards("displaced")]]
        for text, rows in texts_of(con, files):
            for row in rows:
                writer.document(undecided_row(row, text), text, stored_fingerprint(row))
        for row in rows_of(
            con, "SELECT * FROM carried WHERE text_id IS NULL ORDER BY doc_id, input_file, input_offset"
        ):
            writer.document(carried_row(row), "", None)
        _stage_names(snapshot, writer)


def load_tables(con: duckdb.DuckDBPyConnection, snapshot: Snapshot, local: Path) -> None:
    """Make the views documents, sources and owners, and the tables carried (with `text_id`) and fingerprints.

    Args:
        con: an empty database.
        snapshot: the snapshot to load.
        local: a local directory of its files.
    """
    for name in ("documents", "sources", "owners"):
        con.execute(f"CREATE VIEW {name} AS SELECT * FROM {duck.scan([local / f'{name}.parquet'])}")
    files = [local / f"{name}.parquet" for name in snapshot.shards("displaced")]
    table = duck.scan(files) if files else "(SELECT 0 AS source_id, 0 AS doc_id WHERE false)"
    con.execute(_DOCUMENTS.format(displaced=f"SELECT source_id, doc_id FROM {table}"))
    con.execute("CREATE INDEX by_text ON carried (text_id)")
    con.execute(_BANDS.format(bands=duck.scan([local / "bands.parquet"])))
    con.execute("CREATE INDEX by_document ON fingerprints (doc_id)")


def texts_of(
    con: duckdb.DuckDBPyConnection, files: Iterable[Path], table: str = "carried"
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield every text of `files` (shards), with the rows of `table` that it represents; they have `bands` too."""
    for file in files:
        for batch in read_batches(file, columns=["doc_id", "text"], batch_size=256):
            wanted = ", ".join(map(str, batch["doc_id"].to_pylist()))
            represented: dict[int, list[dict[str, Any]]] = {}
            for row in rows_of(con, _REPRESENTED.format(table=table, wanted=wanted)):
                represented.setdefault(row["text_id"], []).append(row)
            for doc_id, text in zip(batch["doc_id"].to_pylist(), batch["text"].to_pylist(), strict=True):
                yield text, represented.get(doc_id, [])


def rows_of(con: duckdb.DuckDBPyConnection, query: str) -> Iterator[dict[str, Any]]:
    """Stream the rows of a query."""
    relation = con.cursor().sql(query)
    for batch in relation.to_arrow_reader(4096):
        yield from batch.to_pylist()


def stored_fingerprint(row: dict[str, Any]) -> Fingerprint:
    """Return the fingerprint of a row of `texts_of`; a text shorter than a shingle has no bands."""
    return Fingerprint(normal_hash=row["normal_hash"], bands=np.array(row["bands"] or [], np.int64))


def carried_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table carried, as `StageWriter.document` takes it, with its decision unchanged."""
    key, title = row["key"], row["title"]
    is_whole_source = key is not None and ids.doc_id(key, key) == row["doc_id"]
    return {
        **{name: row[name] for name in _UNCHANGED},
        "kind": row["kind"] or Kind.WIKI.value,
        "locator": key if is_whole_source else None,
        "canonical": title and identity.canonical_title(title),
        "alias_hash": title and title_hash(title),
        "scope": key.split(":")[1] if row["kind"] == Kind.WIKI else None,
        "captured": row["captured"] or "",
        "detail": None,
        "settled": row["status"] == Status.KEPT,
    }


def undecided_row(row: dict[str, Any], text: str) -> dict[str, Any]:
    """Return such a row for a document that is decided again, with the text that represents it."""
    encoded = text.encode()
    return {
        **carried_row(row),
        "num_bytes": len(encoded),
        "text_sha256": hashlib.sha256(encoded).hexdigest(),
        "status": Status.KEPT.value,
        "reason": None,
        "survivor_id": None,
        "jaccard": None,
        "cluster_id": None,
    }


def _stage_names(snapshot: Snapshot, writer: StageWriter) -> None:
    for batch in snapshot.batches("aliases", columns=["alias", "kind", "scope", "source_id", "target"]):
        for row in batch.to_pylist():
            if row["kind"] == AliasKind.REDIRECT:
                writer.redirect(Redirect(row["scope"], row["alias"], row["target"]))
            elif row["scope"] is None and row["source_id"] is not None:  # a wiki's titles come with its documents
                writer.name(row["source_id"], AliasKind(row["kind"]), row["alias"])
    for host, scopes in snapshot.wikis.items():
        for scope in scopes:
            writer.site(WikiSite(scope, host))
