"""A small snapshot with every kind of source and alias, written by the registry's own writer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry import ids
from registry.snapshot import Registry, Snapshot
from tests.builders import alias_rows, commit_rows, owner_rows, row_order, text_rows
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
    titles = {key: title for key, (title, _) in SOURCES.items()}
    texts = text_rows(documents(), titles=titles, locator=lambda key, index: str(index))
    aliases = alias_rows((key, alias, kind, scope, target) for alias, kind, key, scope, target in ALIASES)
    return {
        "sources": texts["sources"],
        "owners": owner_rows(*OWNERS),
        "aliases": sorted(aliases, key=lambda row: row_order(row, "aliases")),
        "documents": [],
        "bands": [],
        "shard": texts["shards"][0],
    }


def write(registry: Registry, staging: Path, **changes: Any) -> Snapshot:
    """Commit the small snapshot; `changes` are arguments of `SnapshotWriter.commit`."""
    tables = rows()
    shard = tables.pop("shard")
    arguments: dict[str, Any] = {"configuration": {"threshold": 0.75}, "inputs": INPUTS, "wikis": WIKIS}
    return commit_rows(registry, staging, shards=[shard], commit=arguments | changes, **tables)


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
