"""Lookups by all that people type: every match, the narrowest first, and suggestions if there is none."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import ids, schema
from registry.errors import NotFoundError, UsageError
from registry.identity import fold_title
from registry.lookup import (
    _MAX_COMPARED,
    Unresolved,
    list_sources,
    lookup,
    lookup_all,
    resolve,
    resolve_all,
    shared_with,
)
from registry.snapshot import Registry, Snapshot, SnapshotWriter
from tests.registry.conftest import ALIASES, OWNERS, SHARED_KEY, SOURCES


def keys(snapshot: Snapshot, query: str) -> list[tuple[str, str]]:
    return [(match.source.key, match.matched_by) for match in lookup(snapshot, query).matches]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        # titles: as written, first letter in either case, underscores; another case only if no title is exact
        ("Anarchism", [("wiki:enwiki:12", "title")]),
        ("anarchism", [("wiki:enwiki:12", "title")]),
        ("ANARCHISM", [("wiki:enwiki:13", "title")]),
        ("aNaRcHiSm", [("wiki:enwiki:12", "title"), ("wiki:enwiki:13", "title")]),
        ("pride_and  prejudice", [("book:gutenberg:1342", "title")]),
        ("PRIDE AND PREJUDICE / Jane Austen", [("book:gutenberg:1342", "title")]),
        ("AC/DC", [("wiki:enwiki:15", "title")]),
        ("ac/dc", [("wiki:enwiki:15", "title")]),
        ("Anarchism#History", [("wiki:enwiki:12", "title")]),
        # several meanings
        (
            "Mercury",
            [("book:isbn:9780306406157", "title"), ("wiki:enwiki:14", "title"), ("wiki:simplewiki:9", "title")],
        ),
        ("Node.js", [("wiki:enwiki:16", "title"), ("web:node.js", "url")]),
        # redirects: to their target; listed after titles of the same spelling; a dangling one yields to a similar title
        ("Anarchy (politics)", [("wiki:enwiki:12", "redirect")]),
        ("anarchy_(politics)", [("wiki:enwiki:12", "redirect")]),
        ("iPhone (case)", [("wiki:enwiki:16", "redirect")]),
        ("Iphone (case)", [("wiki:enwiki:20", "title")]),
        ("IPHONE (CASE)", [("wiki:enwiki:20", "title"), ("wiki:enwiki:16", "redirect")]),
        ("Lost", [("wiki:enwiki:14", "title")]),
        # article URLs: the article, then the site
        ("https://en.wikipedia.org/wiki/Anarchism", [("wiki:enwiki:12", "url"), ("web:wikipedia.org", "url")]),
        ("en.m.wikipedia.org/wiki/anarchism#x", [("wiki:enwiki:12", "url"), ("web:wikipedia.org", "url")]),
        ("https://en.wikipedia.org/?curid=15", [("wiki:enwiki:15", "url"), ("web:wikipedia.org", "url")]),
        ("https://en.wikipedia.org/wiki/AC%2FDC", [("wiki:enwiki:15", "url"), ("web:wikipedia.org", "url")]),
        ("https://en.wikipedia.org/wiki/Anarchy_(politics)", [("wiki:enwiki:12", "url"), ("web:wikipedia.org", "url")]),
        ("https://en.wikipedia.org/wiki/Mercury", [("wiki:enwiki:14", "url"), ("web:wikipedia.org", "url")]),
        ("https://simple.wikipedia.org/wiki/Mercury", [("wiki:simplewiki:9", "url"), ("web:wikipedia.org", "url")]),
        ("https://de.wikipedia.org/wiki/Mercury", [("web:wikipedia.org", "url")]),
        ("https://wiki.example.org/wiki/Mercury", [("wiki:simplewiki:9", "url")]),
        # other scripts
        ("東京", [("wiki:jawiki:17", "title")]),
        ("https://ja.wikipedia.org/wiki/%E6%9D%B1%E4%BA%AC", [("wiki:jawiki:17", "url"), ("web:wikipedia.org", "url")]),
        ("القاهرة", [("wiki:arwiki:18", "title")]),
        ("თბილისი", [("wiki:kawiki:19", "title")]),
        ("https://ka.wikipedia.org/wiki/თბილისი", [("wiki:kawiki:19", "url"), ("web:wikipedia.org", "url")]),
        # sites
        ("alice.github.io", [("web:alice.github.io", "url")]),
        ("https://www.alice.github.io:8080/a?b#c", [("web:alice.github.io", "url")]),
        ("bücher.example", [("web:xn--bcher-kva.example", "url")]),
        ("http://XN--BCHER-KVA.example./", [("web:xn--bcher-kva.example", "url")]),
        ("https://empty.example/x", [("web:empty.example", "url")]),
        # books
        ("https://www.gutenberg.org/ebooks/1342", [("book:gutenberg:1342", "url")]),
        ("0-306-40615-2", [("book:isbn:9780306406157", "isbn")]),
        ("ISBN 978-0-14-143951-8", [("book:gutenberg:1342", "isbn")]),
        # keys and ids
        ("wiki:enwiki:12", [("wiki:enwiki:12", "key")]),
        ("web:WWW.alice.github.io", [("web:alice.github.io", "key")]),
        (SHARED_KEY, [(SHARED_KEY, "key")]),
        (ids.format_id(ids.source_id("wiki:enwiki:12")), [("wiki:enwiki:12", "id")]),
        (ids.format_id(ids.source_id("wiki:enwiki:12")).upper(), [("wiki:enwiki:12", "id")]),
    ],
)
def test_lookup(small: Snapshot, query: str, expected: list[tuple[str, str]]) -> None:
    found = keys(small, query)
    if query in ("Mercury", "aNaRcHiSm"):  # matches of equal rank have no order
        found.sort()
    assert found == expected


def test_the_json_of_a_match_is_complete(small: Snapshot) -> None:
    (match,) = lookup(small, "Pride and Prejudice").matches
    text = SOURCES["book:gutenberg:1342"][1][0]
    assert match.to_dict() == {
        "source_id": ids.format_id(ids.source_id("book:gutenberg:1342")),
        "key": "book:gutenberg:1342",
        "kind": "book",
        "title": "Pride and Prejudice",
        "num_documents": 1,
        "num_bytes": len(text),
        "shared_with": [],
        "matched_by": "title",
    }
    shape = lookup(small, "nothing of the kind").to_dict()
    assert shape == {"query": "nothing of the kind", "found": False, "matches": [], "suggestions": [], "notes": []}
    assert json.loads(json.dumps(lookup(small, "東京").to_dict()))["found"] is True


def test_the_note_for_a_dangling_redirect_names_its_target(small: Snapshot) -> None:
    for query in ("Nowhere", "nowhere", "https://en.wikipedia.org/wiki/Nowhere"):
        assert ("wiki:enwiki:14", "title") not in keys(small, query)
    answer = lookup(small, "Nowhere")
    assert answer.notes == ("'Nowhere' redirects to 'Utopia', which is not in this snapshot",)
    assert not answer.found
    with pytest.raises(NotFoundError, match="redirects to 'Utopia'"):
        resolve(small, "Nowhere")


def test_shared_with_for_owners_and_for_the_shared_source(small: Snapshot) -> None:
    everyone = [*OWNERS, SHARED_KEY, "wiki:enwiki:13"]
    found = shared_with(small, [ids.source_id(key) for key in everyone])
    for owner in OWNERS:
        assert found[ids.source_id(owner)] == tuple(sorted(set(OWNERS) - {owner}))
    assert found[ids.source_id(SHARED_KEY)] == tuple(sorted(OWNERS))
    assert ids.source_id("wiki:enwiki:13") not in found
    assert shared_with(small, []) == {}
    (match,) = lookup(small, "Anarchism").matches
    assert match.source.shared_with == ("web:alice.github.io", "web:empty.example")


def test_shared_with_if_two_groups_of_owners_overlap(registry: Registry) -> None:
    names = ["web:a.x", "web:b.x", "web:c.x"]
    ids_by_key = {name: ids.source_id(name) for name in names}
    pairs = list(itertools.combinations(names, 2))[:2]  # a+b, a+c
    for pair in pairs:
        shared = ids.shared_key(ids_by_key[name] for name in pair)
        ids_by_key[shared] = ids.source_id(shared)
    owners = [
        {"source_id": ids.source_id(ids.shared_key(ids_by_key[name] for name in pair)), "owner_id": ids_by_key[owner]}
        for pair in pairs
        for owner in pair
    ]
    owners.sort(key=lambda row: (row["source_id"], row["owner_id"]))
    row = {"kind": "web", "title": None, "num_documents": 0, "num_bytes": 0, "placements": []}
    sources = [
        {"source_id": ids_by_key[key], "key": key, **row} for key in sorted(ids_by_key, key=ids_by_key.__getitem__)
    ]
    writer = SnapshotWriter(registry, registry.root / "work")
    for name, table in (("owners", owners), ("sources", sources)):
        with writer.table(name) as file:
            file.write(pa.Table.from_pylist(table, schema=schema.TABLES[name]))
    made = writer.commit(configuration={}, inputs=[])
    found = shared_with(made, list(ids_by_key.values()))
    assert [found[ids_by_key[name]] for name in names] == [("web:b.x", "web:c.x"), ("web:a.x",), ("web:a.x",)]


@pytest.mark.parametrize(
    ("query", "suggestion"),
    [
        ("Anarchsim", "Anarchism"),
        ("Prejudice", "Pride and Prejudice"),
        ("prejudice pride", "Pride and Prejudice"),
        ("Pride and Predujice", "Pride and Prejudice"),
        ("Mercuri", "Mercury"),
        ("Jane Austen", "Pride and Prejudice / Jane Austen"),
        ("東京都", "東京"),
    ],
)
def test_suggestions(small: Snapshot, query: str, suggestion: str) -> None:
    answer = lookup(small, query)
    assert not answer.found
    assert suggestion in answer.suggestions
    assert len(answer.suggestions) <= 5
    with pytest.raises(NotFoundError, match="did you mean: .*" + suggestion):
        resolve(small, query)


def test_suggestions_name_only_sources_that_the_snapshot_holds(small: Snapshot) -> None:
    assert "Nowhere" not in lookup(small, "Nowher").suggestions
    assert lookup(small, "zzzzqqqq").suggestions == lookup(small, "").suggestions == ()


def test_resolve_takes_the_narrowest(small: Snapshot) -> None:
    assert resolve(small, "https://en.wikipedia.org/wiki/Anarchism").key == "wiki:enwiki:12"
    assert resolve(small, "Node.js").key == "wiki:enwiki:16"
    assert resolve(small, "https://en.wikipedia.org/").key == "web:wikipedia.org"


def test_the_url_of_a_missing_article_does_not_resolve_to_its_site(small: Snapshot) -> None:
    assert lookup(small, "https://en.wikipedia.org/wiki/Unheard_of").matches[0].source.key == "web:wikipedia.org"
    with pytest.raises(NotFoundError, match=r"name it: web:wikipedia\.org"):
        resolve(small, "https://en.wikipedia.org/wiki/Unheard_of")


@pytest.mark.parametrize("query", ["Mercury", "aNaRcHiSm"])
def test_resolve_refuses_an_ambiguous_title(small: Snapshot, query: str) -> None:
    with pytest.raises(UsageError, match=r"ambiguous: .*; name one of these keys") as caught:
        resolve(small, query)
    assert all(key in str(caught.value) for key, _ in keys(small, query))


def test_list_sources(small: Snapshot) -> None:
    everything = list_sources(small)
    assert {s.key for s in everything} == {*SOURCES, SHARED_KEY}
    assert [s.source_id for s in everything] == sorted(s.source_id for s in everything)
    assert {s.key for s in list_sources(small, kind="book")} == {
        "book:gutenberg:1342",
        "book:isbn:9780306406157",
    }
    assert {s.key for s in list_sources(small, match="ANARCH")} == {"wiki:enwiki:12", "wiki:enwiki:13"}
    assert {s.key for s in list_sources(small, match="github")} == {"web:alice.github.io"}
    assert list_sources(small, kind="web", match="mercury") == []
    assert list_sources(small, limit=3) == everything[:3]
    assert list_sources(small, limit=0) == []
    assert list_sources(small, kind="nonsense") == []


@given(st.text(max_size=30))
@settings(max_examples=60)
def test_no_query_makes_a_lookup_fail(small: Snapshot, query: str) -> None:
    for prefix in ("", "https://en.wikipedia.org/wiki/"):
        answer = lookup(small, prefix + query)
        assert answer.query == prefix + query
        assert json.dumps(answer.to_dict())


QUERIES = ["Anarchism", "https://en.wikipedia.org/wiki/Anarchism", "Anarchsim"]
PROGRAM = """
import json, sys, time
from registry.lookup import lookup
from registry.snapshot import Registry
found = lookup(Registry.open(sys.argv[1]).snapshot(), sys.argv[2])
print(json.dumps({"seconds": time.process_time(), "modules": sorted(sys.modules), "answer": found.to_dict()}))
"""


@pytest.mark.parametrize("query", QUERIES)
def test_a_lookup_starts_fast_and_imports_little(small: Snapshot, query: str) -> None:
    root = small.path.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    runs = []
    for _ in range(3):
        command = [sys.executable, "-c", PROGRAM, str(root), query]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    needless = {
        "sqlalchemy",
        "alembic",
        "tldextract",
        "requests",
        "w3lib",
        "pandas",
        "pyarrow.dataset",
        "pyarrow.flight",
    }
    assert needless.isdisjoint(runs[0]["modules"])
    assert "pyarrow.parquet" in runs[0]["modules"]
    assert runs[0]["answer"]["matches"] or runs[0]["answer"]["suggestions"]
    assert min(run["seconds"] for run in runs) < 1.5  # CPU time with the start of Python: 0.45 s when written


@pytest.fixture
def many_titles(registry: Registry) -> Callable[[int], Snapshot]:
    def make(count: int) -> Snapshot:
        titles = [
            f"Article {i:07d} of {word}" for i, word in zip(range(count), itertools.cycle(["rivers", "stars", "towns"]))
        ]
        source_id = ids.source_id("wiki:enwiki:1")
        table = [(ids.alias_hash(fold_title(t)), t) for t in titles]
        table.sort()
        writer = SnapshotWriter(registry, registry.root / "work")
        fields = {"kind": ["title"] * count, "source_id": [source_id] * count, "scope": ["enwiki"] * count}
        columns = {
            "alias_hash": [h for h, _ in table],
            "alias": [t for _, t in table],
            **fields,
            "target": [None] * count,
        }
        with writer.table("aliases") as file:
            file.write(pa.table(columns, schema=schema.ALIASES))
        row = {
            "source_id": source_id,
            "key": "wiki:enwiki:1",
            "kind": "wiki",
            "num_documents": 0,
            "num_bytes": 0,
            "placements": [],
        }
        with writer.table("sources") as file:
            file.write(pa.Table.from_pylist([row], schema=schema.SOURCES))
        with writer.table("owners"):
            pass
        return writer.commit(configuration={}, inputs=[])

    return make


def test_suggestions_compare_a_bounded_number_of_titles_letter_by_letter(
    many_titles: Callable[[int], Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    original = difflib.get_close_matches

    def count(word: str, titles: list[str], **options: Any) -> list[str]:
        compared.append(len(titles))
        return original(word, titles, **options)

    monkeypatch.setattr(difflib, "get_close_matches", count)
    snapshot = many_titles(30_000)
    assert lookup(snapshot, "Artical 0000123 of rivers").suggestions
    assert compared == [_MAX_COMPARED]  # all 30,000 have the prefix and length of the query; 60,000 would take 2 s
    assert lookup(snapshot, "0000123").suggestions == ("Article 0000123 of rivers",)


SPELLINGS = [
    *SOURCES,
    *(title for title, _ in SOURCES.values() if title),
    *(alias for alias, *_ in ALIASES),
    "Mercurry",
    "anarch",
    "Nowhere",
    "https://en.wikipedia.org/wiki/Anarchism",
    "https://en.wikipedia.org/wiki/No_such_page",
    "https://en.wikipedia.org/wiki/Mercury",
    "https://alice.github.io/page",
    "alice.github.io",
    "ISBN 978-0-14-143951-8",
    "",
    " ",
]


@given(queries=st.lists(st.sampled_from(SPELLINGS) | st.text(max_size=6), max_size=12))
def test_many_queries_have_the_answers_of_each_by_itself(small: Snapshot, queries: list[str]) -> None:
    assert lookup_all(small, queries) == [lookup(small, query) for query in queries]
    for query, found in zip(queries, resolve_all(small, queries), strict=True):
        if isinstance(found, Unresolved):
            with pytest.raises((NotFoundError, UsageError)) as error:
                resolve(small, query)
            assert (type(error.value), str(error.value)) == (type(found.error()), str(found.error()))
        else:
            assert found == resolve(small, query)


def test_only_the_first_queries_that_name_nothing_have_suggestions(small: Snapshot) -> None:
    queries = ["Mercurry", "wiki:enwiki:12", "Anarchsm"]
    assert [len(answer.suggestions) > 0 for answer in lookup_all(small, queries)] == [True, False, True]
    first, _, second = lookup_all(small, queries, max_suggested=1)
    assert first.suggestions
    assert second.suggestions == ()
