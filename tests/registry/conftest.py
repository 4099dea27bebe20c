"""A small snapshot with every kind of source and alias, written by the registry's own writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from registry import ids, schema
from registry.identity import fold_title
from registry.snapshot import Registry, Snapshot, SnapshotWriter
from tests.s3 import bucket, fresh_client, proxy, s3_proxy, s3_server  # noqa: F401 - fixtures

# key -> (title, documents)
SOURCES: dict[str, tuple[str | None, list[str]]] = {
    "wiki:enwiki:12": ("Anarchism", ["Anarchism is a political philosophy."]),
    "wiki:enwiki:13": ("ANARCHISM", ["ANARCHISM is an album, in capitals."]),
    "wiki:enwiki:14": ("Mercury", ["Mercury may mean several things."]),
    "wiki:simplewiki:9": ("Mercury", ["Mercury is a planet, simply put."]),
    "wiki:enwiki:15": ("AC/DC", ["AC/DC are a band."]),
    "wiki:enwiki:16": ("Node.js", ["Node.js runs scripts."]),
    "wiki:jawiki:17": ("東京", ["東京は日本の首都である。"]),
    "wiki:arwiki:18": ("القاهرة", ["القاهرة هي عاصمة مصر."]),
    "wiki:kawiki:19": ("თბილისი", ["თბილისი არის საქართველოს დედაქალაქი."]),
    "wiki:enwiki:20": ("Iphone (case)", ["All of it is shared."]),
    "web:wikipedia.org": (None, ["A page of the site.", "Another page."]),
    "web:node.js": (None, ["A site at an unlikely host."]),
    "web:alice.github.io": (None, ["Alice's page."]),
    "web:xn--bcher-kva.example": (None, ["Bücher."]),
    "web:empty.example": (None, []),
    "book:gutenberg:1342": ("Pride and Prejudice", ["It is a truth universally acknowledged."]),
    "book:isbn:9780306406157": ("Mercury", ["A book of that name."]),
}
OWNERS = ("wiki:enwiki:12", "web:alice.github.io", "web:empty.example")
SHARED_KEY = ids.shared_key(map(ids.source_id, OWNERS))
# alias, kind, key or None, scope, target
ALIASES: list[tuple[str, str, str | None, str | None, str | None]] = [
    *[(t, "title", key, key.split(":")[1] if key[:2] == "wi" else None, None) for key, (t, _) in SOURCES.items() if t],
    ("Anarchy (politics)", "redirect", "wiki:enwiki:12", "enwiki", "Anarchism"),
    ("IPhone (case)", "redirect", "wiki:enwiki:16", "enwiki", "Node.js"),
    ("Lost", "redirect", None, "enwiki", "Lost (TV series)"),
    ("LOST", "title", "wiki:enwiki:14", "enwiki", None),
    ("Nowhere", "redirect", None, "enwiki", "Utopia"),
    ("Pride and Prejudice / Jane Austen", "title", "book:gutenberg:1342", None, None),
    ("9780141439518", "isbn", "book:gutenberg:1342", None, None),
]
WIKIS = [{"host": "wiki.example.org", "scope": "simplewiki"}]
INPUTS = [{"name": "dump.xml", "sha256": "ab" * 32, "bytes": 7}]


def documents() -> dict[str, list[str]]:
    """Return the texts that are trained under each source, by key."""
    return {key: texts for key, (_, texts) in SOURCES.items()} | {SHARED_KEY: ["Text of three owners."]}


def rows() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every table of the snapshot, sorted; all text is in one shard."""
    shard, sources = [], []
    texts = {ids.source_id(key): (key, docs) for key, docs in documents().items()}
    for source_id in sorted(texts):
        key, docs = texts[source_id]
        start = len(shard)
        ordered = sorted((ids.doc_id(key, str(i)), text) for i, text in enumerate(docs))
        shard += [{"source_id": source_id, "doc_id": doc_id, "text": text} for doc_id, text in ordered]
        sources.append(
            {
                "source_id": source_id,
                "key": key,
                "kind": key.partition(":")[0],
                "title": SOURCES.get(key, (None, []))[0],
                "num_documents": len(docs),
                "num_bytes": sum(len(text.encode()) for text in docs),
                "placements": [{"shard": 0, "row_start": start, "row_end": len(shard)}] if docs else [],
            }
        )
    aliases = [
        {
            "alias_hash": ids.alias_hash(fold_title(alias)),
            "alias": alias,
            "kind": kind,
            "source_id": ids.source_id(key) if key else None,
            "scope": scope,
            "target": target,
        }
        for alias, kind, key, scope, target in ALIASES
    ]
    aliases.sort(
        key=lambda row: [
            str(row[c]).zfill(20) if c == "alias_hash" else str(row[c]) for c in schema.SORT_ORDER["aliases"]
        ]
    )
    shared = ids.source_id(SHARED_KEY)
    owners = [{"source_id": shared, "owner_id": owner} for owner in sorted(map(ids.source_id, OWNERS))]
    return {"sources": sources, "owners": owners, "aliases": aliases, "documents": [], "bands": [], "shard": shard}


def write(registry: Registry, staging: Path, **changes: Any) -> Snapshot:
    """Commit the small snapshot; `changes` are arguments of `SnapshotWriter.commit`."""
    writer = SnapshotWriter(registry, staging)
    tables = rows()
    for name, table in schema.TABLES.items():
        with writer.table(name) as file:
            file.write(pa.Table.from_pylist(tables[name], schema=table))
    with writer.shard(0) as file:
        file.write(pa.Table.from_pylist(tables["shard"], schema=schema.SHARD))
    arguments: dict[str, Any] = {"configuration": {"threshold": 0.75}, "inputs": INPUTS, "wikis": WIKIS}
    return writer.commit(**(arguments | changes))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """An empty registry."""
    return Registry.open(tmp_path / "registry", create=True)


@pytest.fixture
def commit(registry: Registry) -> Callable[..., Snapshot]:
    """A function that commits the small snapshot to `registry`, with changes if given."""
    return lambda **changes: write(registry, registry.root / "work" / "staging", **changes)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The small snapshot, for tests that only read."""
    registry = Registry.open(tmp_path_factory.mktemp("small"), create=True)
    return write(registry, registry.root / "work")
