"""A snapshot as one more staged directory, so that new inputs are resolved together with all it holds.

What has text (kept and displaced documents) is decided again beside the new documents; so are documents of equal text,
which are carried with the wording that stands for them, since they are who owns it. The rest (filtered, failed,
superseded, near copies within a source) is carried over as it is. Kept documents are marked settled: they give way to a
newer capture only. Redirects are resolved again, so one whose target comes later finds it.
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

# `text_id` is the document whose text stands for this one, if the snapshot has it: its own, that of its equal, or, for
# equals of a displaced document, which share its similarity and its publisher's source, that one's.
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
_STANDING = """
SELECT c.*, bands FROM (SELECT * FROM {table} WHERE text_id IN ({wanted})) AS c
LEFT JOIN (SELECT * FROM fingerprints WHERE doc_id IN ({wanted})) AS f ON f.doc_id = c.text_id
ORDER BY c.doc_id
"""


_AS_THEY_ARE = (
    *("doc_id", "origin_id", "key", "url", "title", "input_file", "input_offset", "input_length", "input_stored"),
    *("num_bytes", "text_sha256", "normal_hash", "language", "status", "reason"),
    *("survivor_id", "jaccard", "cluster_id"),
)


def stage_parent(snapshot: Snapshot, folder: Path, *, number: int, work: Path) -> None:
    """Writes `snapshot` as the staged directory `folder`, unless that is complete.

    Args:
        snapshot: what to continue.
        folder: the directory to publish.
        number: of the directory among those to be resolved together.
        work: where to spill, and to download a snapshot at s3:// to.

    Raises:
        DamagedError: a file of the snapshot is not what was written.
        ServiceError: the output cannot be written, or S3 not be reached.
    """
    if is_complete(folder):
        return
    place = snapshot.local(work / "parent")
    Snapshot(place, snapshot.manifest).verify()  # what is damaged must not be copied into a child that then verifies
    with duck.service_errors(work), duck.connect(work) as con, StageWriter(folder, number) as writer:
        load(con, snapshot, place)
        files = [place / f"{name}.parquet" for name in [*snapshot.shards(), *snapshot.shards("displaced")]]
        for text, rows in texts_of(con, files):
            for row in rows:
                writer.document(again(row, text), text, stored_fingerprint(row))
        for row in rows_of(
            con, "SELECT * FROM carried WHERE text_id IS NULL ORDER BY doc_id, input_file, input_offset"
        ):
            writer.document(carried(row), "", None)
        _names(snapshot, writer)


def load(con: duckdb.DuckDBPyConnection, snapshot: Snapshot, place: Path) -> None:
    """Makes the views documents, sources and owners, and the tables `carried` (above) and `fingerprints`.

    Args:
        con: an empty database.
        snapshot: what to load.
        place: a local directory of its files.
    """
    for name in ("documents", "sources", "owners"):
        con.execute(f"CREATE VIEW {name} AS SELECT * FROM {duck.scan([place / f'{name}.parquet'])}")
    files = [place / f"{name}.parquet" for name in snapshot.shards("displaced")]
    table = duck.scan(files) if files else "(SELECT 0 AS source_id, 0 AS doc_id WHERE false)"
    con.execute(_DOCUMENTS.format(displaced=f"SELECT source_id, doc_id FROM {table}"))
    con.execute("CREATE INDEX by_text ON carried (text_id)")
    con.execute(_BANDS.format(bands=duck.scan([place / "bands.parquet"])))
    con.execute("CREATE INDEX by_document ON fingerprints (doc_id)")


def texts_of(
    con: duckdb.DuckDBPyConnection, files: Iterable[Path], table: str = "carried"
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Every text of `files` (shards), with the rows of `table` that it stands for; those have `bands` as well."""
    for file in files:
        for batch in read_batches(file, columns=["doc_id", "text"], batch_size=256):
            wanted = ", ".join(map(str, batch["doc_id"].to_pylist()))
            standing: dict[int, list[dict[str, Any]]] = {}
            for row in rows_of(con, _STANDING.format(table=table, wanted=wanted)):
                standing.setdefault(row["text_id"], []).append(row)
            for document, text in zip(batch["doc_id"].to_pylist(), batch["text"].to_pylist(), strict=True):
                yield text, standing.get(document, [])


def rows_of(con: duckdb.DuckDBPyConnection, query: str) -> Iterator[dict[str, Any]]:
    """The rows of a query, as they come."""
    relation = con.cursor().sql(query)
    for batch in relation.to_arrow_reader(4096):
        yield from batch.to_pylist()


def stored_fingerprint(row: dict[str, Any]) -> Fingerprint:
    """As it was computed when the text was read; a text shorter than a shingle has no bands."""
    return Fingerprint(normal_hash=row["normal_hash"], bands=np.array(row["bands"] or [], np.int64))


def carried(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `registry.schema.DOCUMENTS` with its key and kind, as `StageWriter.document` takes it."""
    key, title = row["key"], row["title"]
    is_whole_source = key is not None and ids.doc_id(key, key) == row["doc_id"]
    return {
        **{name: row[name] for name in _AS_THEY_ARE},
        "kind": row["kind"] or Kind.WIKI.value,
        "locator": key if is_whole_source else None,
        "canonical": title and identity.canonical_title(title),
        "alias_hash": title and title_hash(title),
        "scope": key.split(":")[1] if row["kind"] == Kind.WIKI else None,
        "captured": row["captured"] or "",
        "detail": None,
        "settled": row["status"] == Status.KEPT,
    }


def again(row: dict[str, Any], text: str) -> dict[str, Any]:
    """A document that is decided again, with the text that stands for it."""
    encoded = text.encode()
    return {
        **carried(row),
        "num_bytes": len(encoded),
        "text_sha256": hashlib.sha256(encoded).hexdigest(),
        "status": Status.KEPT.value,
        "reason": None,
        "survivor_id": None,
        "jaccard": None,
        "cluster_id": None,
    }


def _names(snapshot: Snapshot, writer: StageWriter) -> None:
    for batch in snapshot.batches("aliases", columns=["alias", "kind", "scope", "source_id", "target"]):
        for row in batch.to_pylist():
            if row["kind"] == AliasKind.REDIRECT:
                writer.redirect(Redirect(row["scope"], row["alias"], row["target"]))
            elif row["scope"] is None and row["source_id"] is not None:  # a wiki's titles come with its documents
                writer.name(row["source_id"], AliasKind(row["kind"]), row["alias"])
    for host, scopes in snapshot.wikis.items():
        for scope in scopes:
            writer.site(WikiSite(scope, host))
