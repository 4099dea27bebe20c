"""A tiny corpus with every kind of source that training has to handle, written by the registry's own writer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from registry import ids
from registry.snapshot import Registry, Snapshot
from tests.builders import commit_rows, owner_rows, text_rows

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
    return commit_rows(
        Registry.open(root, create=True),
        root / "staging",
        owners=owner_rows(*OWNERS) if SHARED in documents else [],
        commit={"configuration": {"test": True}},
        **text_rows(documents),
    )


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
