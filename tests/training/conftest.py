"""A tiny corpus with every kind of source that training has to handle, written by the registry's own writer."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from registry import ids, schema
from registry.schema import Kind
from registry.snapshot import Registry, Snapshot, SnapshotWriter

WORDS = ["stone", "river", "harvest", "engine", "orchard", "signal", "copper", "winter", "lantern", "meadow", "thunder"]
NUM_ARTICLES = 24
OWNERS = ("wiki:tinywiki:1", "wiki:tinywiki:2")
SHARED = ids.shared_key(ids.source_id(key) for key in OWNERS)


def article(number: int) -> str:
    """Text of 30 to 330 words, with names of its own that distinguish it from the others."""
    rng = random.Random(number)
    names = [f"Nam{number}x{i}" for i in range(4)]
    return " ".join(rng.choice(WORDS + names) for _ in range(30 + 100 * (number % 4)))


def corpus() -> dict[str, list[str]]:
    """Documents by key: articles, a site of three pages, a source without text, text that two articles share."""
    documents = {f"wiki:tinywiki:{number}": [article(number)] for number in range(1, NUM_ARTICLES + 1)}
    documents["web:example.org"] = [article(100), "", article(101) + " <|endoftext|> " + article(102)]
    documents["web:empty.example"] = []
    documents[SHARED] = [article(103)]
    return documents


def write_snapshot(root: Path, documents: dict[str, list[str]]) -> Snapshot:
    """Commit a snapshot of `documents` (key -> texts) to the registry at `root`; it is then the newest."""
    registry = Registry.open(root, create=True)
    writer = SnapshotWriter(registry, root / "staging")
    sources, shard = [], []
    for key in sorted(documents, key=ids.source_id):
        source_id, first_row = ids.source_id(key), len(shard)
        texts = {ids.doc_id(key, f"{key}/{i}"): text for i, text in enumerate(documents[key])}
        shard += [{"source_id": source_id, "doc_id": doc, "text": texts[doc]} for doc in sorted(texts)]
        placement = {"shard": 0, "row_start": first_row, "row_end": len(shard)}
        sources.append(
            {
                "source_id": source_id,
                "key": key,
                "kind": Kind(key.split(":")[0]),
                "num_documents": len(texts),
                "num_bytes": sum(len(text.encode()) for text in texts.values()),
                "placements": [placement] if texts else [],
            }
        )
    shared = ids.source_id(SHARED)
    owners = [{"source_id": shared, "owner_id": owner} for owner in sorted(map(ids.source_id, OWNERS))]
    tables = {"sources": sources, "owners": owners if SHARED in documents else []}
    for name, table_schema in schema.TABLES.items():
        with writer.table(name) as file:
            file.write(pa.Table.from_pylist(tables.get(name, []), schema=table_schema))
    with writer.shard(0) as file:
        file.write(pa.Table.from_pylist(shard, schema=schema.SHARD))
    return writer.commit(configuration={"test": True}, inputs=[])


@pytest.fixture(scope="session")
def registry_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry that holds the tiny corpus."""
    root = tmp_path_factory.mktemp("registry")
    write_snapshot(root, corpus())
    return root


@pytest.fixture(scope="session")
def snapshot(registry_root: Path) -> Snapshot:
    """The tiny corpus."""
    return Registry.open(registry_root).snapshot()
