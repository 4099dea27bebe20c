"""Explain the fate of one document: kept, filtered, duplicate, superseded or failed, its input file and its shard.

A document is named by its id, by anything that names an article, a book or a page, or by its input file if that holds
nothing else. Cost: two point reads of sorted files; a scan of `documents` only for the last two ways to name one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from registry import ids
from registry.errors import NotFoundError, RecordError
from registry.identity import url_spellings, web_key
from registry.lookup import lookup, read_sources
from registry.schema import Kind, Status
from registry.snapshot import Snapshot
from registry.storage.parquet import read_rows


def explain(snapshot: Snapshot, query: str) -> dict[str, Any]:
    """Return the JSON of `nulls explain`; `captures` has the other captures of the same document.

    Raises:
        NotFoundError: the snapshot has no such document.
    """
    for doc_id in _doc_ids(snapshot, query):
        captures = snapshot.where("documents", "doc_id", [doc_id]).to_pylist()
        if captures:
            captures.sort(key=lambda row: (row["status"] == Status.SUPERSEDED, row["status"] == Status.FAILED))
            first, *others = (_described(snapshot, row) for row in captures)
            return {**first, "captures": others}
    for row in (*_by_url(snapshot, query), *_by_file(snapshot, query)):
        return {**_described(snapshot, row), "captures": []}
    notes = "; ".join(lookup(snapshot, query).notes)
    gone = " (or its source was removed)" if snapshot.removed else ""
    known = (
        notes
        or f"it was not in the inputs{gone}; name it by URL, title or id, or by its file if that holds nothing else"
    )
    raise NotFoundError(f"no document {query!r} in snapshot {snapshot.id[:12]}: {known}")


def _doc_ids(snapshot: Snapshot, query: str) -> list[int]:
    found = []
    doc_id = ids.parse_id(query)
    if doc_id is not None:
        found.append(doc_id)
    with contextlib.suppress(RecordError):  # not a URL: it may be a title
        found += [ids.doc_id(web_key(url, snapshot.web_source), url) for url in url_spellings(query)]
    for match in lookup(snapshot, query).matches:
        if match.source.kind in (Kind.WIKI, Kind.BOOK):
            found.append(ids.doc_id(match.source.key, match.source.key))
    return found


def _by_url(snapshot: Snapshot, url: str) -> Iterator[dict[str, Any]]:
    """Scan for documents with a URL and no identity (a DNS answer, an invalid host): no index has them."""
    for batch in snapshot.batches("documents"):
        yield from batch.filter(pc.equal(batch["url"], url)).to_pylist()


def _by_file(snapshot: Snapshot, name: str) -> list[dict[str, Any]]:
    """Return the document of an input that holds only one: a book, or a file of an unexpected format."""
    if name not in {entry["name"] for entry in snapshot.manifest["inputs"]}:
        return []
    found: list[dict[str, Any]] = []
    for batch in snapshot.batches("documents"):
        found += batch.filter(pc.equal(batch["input_file"], name)).slice(0, 2).to_pylist()
    return found if len(found) == 1 else []


def _described(snapshot: Snapshot, row: dict[str, Any]) -> dict[str, Any]:
    known = read_sources(snapshot, [i for i in (row["source_id"], row["origin_id"]) if i is not None])
    source, origin = known.get(row["source_id"]), known.get(row["origin_id"])
    survivor = row["survivor_id"]
    return {
        "doc_id": ids.format_id(row["doc_id"]),
        "url": row["url"],
        "title": row["title"],
        "status": row["status"],
        "reason": row["reason"],
        "source": source.key if source else None,
        "origin": origin.key if origin else None,
        "survivor": None if survivor is None else ids.format_id(survivor),
        "jaccard": None if row["jaccard"] is None else round(row["jaccard"], 4),
        "language": row["language"],
        "captured": row["captured"],
        "num_bytes": row["num_bytes"],
        "input_file": row["input_file"],
        "input_offset": row["input_offset"],
        "input_length": row["input_length"],
        "input_stored": row["input_stored"],
        "shard": _shard(snapshot, row) if row["status"] == Status.KEPT else None,
    }


def _shard(snapshot: Snapshot, row: dict[str, Any]) -> str | None:
    placements = snapshot.where("sources", "source_id", [row["source_id"]])["placements"].to_pylist()
    for placement in placements[0] if placements else []:
        name = f"shards/part-{placement['shard']:05d}"
        if len(placements[0]) == 1:
            return f"{name}.parquet"
        doc_ids = read_rows(snapshot.file(name), placement["row_start"], placement["row_end"])["doc_id"].to_pylist()
        if row["doc_id"] in doc_ids:
            return f"{name}.parquet"
    return None
