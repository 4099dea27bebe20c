"""The keyed stage in DuckDB gives what the pure decisions give for the same documents in memory."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.dedup import decisions as dedup
from pipelines.dedup.minhash import DedupConfig, bands, fingerprint, jaccard, shingles, signature
from pipelines.document import Document, Redirect, WikiSite
from pipelines.resolve.duckdb.engine import resolve
from pipelines.resolve.resolution import write_resolution
from pipelines.stage import staging
from registry import ids, schema
from registry.errors import DamagedError
from registry.schema import Kind, Status
from registry.snapshot import Registry, SnapshotWriter

CONFIG = DedupConfig()
WORDS = [f"word{number}" for number in range(3000)]
Rows = list[dict[str, Any]]


def text_of(seed: int, count: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def edited(text: str, seed: int, changes: int) -> str:
    words, chooser = text.split(), random.Random(seed)
    for _ in range(changes):
        words[chooser.randrange(len(words))] = f"edit{chooser.random()}"
    return " ".join(words)


def article(
    page: int, text: str, *, wiki: str = "enwiki", file: str = "a.xml", captured: str = "2020", **more: Any
) -> Document:
    key = f"wiki:{wiki}:{page}"
    document = Document(kind=Kind.WIKI, key=key, locator=key, text=text, scope=wiki, captured=captured, input_file=file)
    document.title = more.get("title", f"Article {page}")
    document.input_offset = more.get("offset", page * 100)
    if "end" in more:
        document.end(*more["end"])
    return document


def stage(folder: Path, items: Iterable[Document | Redirect | WikiSite], index: int = 0) -> Path:
    staged = folder / staging.folder_name(index, f"{index:064x}")
    with staging.StageWriter(staged, index) as writer:
        for item in items:
            if isinstance(item, Document):
                kept = item.status is Status.KEPT
                found = fingerprint(item.text, CONFIG) if kept else None
                writer.document(staging.document_row(item), item.text, found)
            elif isinstance(item, Redirect):
                writer.redirect(item)
            else:
                writer.site(item)
    return staged


def resolved(
    folder: Path, items: list[Any], parts: int = 1, config: DedupConfig = CONFIG, threads: int = 1
) -> dict[str, Rows]:
    """Resolve `items` spread over `parts` staged directories; return all tables of the snapshot, and the texts."""
    folders = [stage(folder / "stage", items[part::parts], part) for part in range(parts)]
    work = folder / "work"
    work.mkdir()
    writer = SnapshotWriter(Registry.open(folder / "registry", create=True), folder / "snapshot")
    with contextlib.closing(resolve(folders, config, work=work, threads=threads)) as resolution:
        write_resolution(resolution, writer, work, shard_bytes=5000)
    found = {name: pq.read_table(folder / "snapshot" / f"{name}.parquet").to_pylist() for name in schema.TABLES}
    for name in ("shards", "displaced"):
        files = sorted((folder / "snapshot" / name).glob("*"))
        found[name] = [row for file in files for row in pq.read_table(file).to_pylist()]
    return found


def by_page(tables: dict[str, Rows]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["input_file"], row["input_offset"]): row for row in tables["documents"]}


def corpus(seed: int) -> list[Document]:
    """Originals, exact and near copies within and across wikis, older captures, failures."""
    chooser = random.Random(seed)
    found: list[Document] = []
    for page in range(60):
        base = text_of(chooser.randrange(12))
        text = chooser.choice([base, base.upper() + "!", edited(base, page, chooser.choice([1, 2, 6]))])
        wiki = chooser.choice(["enwiki", "dewiki", "frwiki"])
        found.append(
            article(chooser.randrange(40), text, wiki=wiki, offset=page, captured=chooser.choice(["2019", "2020"]))
        )
        if chooser.random() < 0.1:
            found[-1].end(chooser.choice([Status.FILTERED, Status.FAILED]), "why")
    return found


def expected(documents: list[Document]) -> dict[int, tuple[Any, ...]]:
    """offset -> (status, source, reason, survivor), decided by the pure functions in memory."""
    rows = [staging.document_row(document) for document in documents]
    answer: dict[int, tuple[Any, ...]] = {i: (d.status, None, d.reason, None) for i, d in enumerate(documents)}
    by_doc = defaultdict(list)
    for i, (row, document) in enumerate(zip(rows, documents, strict=True)):
        if document.status is not Status.FAILED:
            by_doc[row["doc_id"]].append(
                dedup.Capture(i, row["captured"], row["text_sha256"], "a.xml", row["input_offset"])
            )
    for doc_id, captures in by_doc.items():
        for capture in captures:
            if capture != dedup.newest(captures):
                answer[capture.row] = (Status.SUPERSEDED, None, dedup.NEWER_CAPTURE, doc_id)
    groups = defaultdict(list)
    for i, row in enumerate(rows):
        if answer[i][0] is Status.KEPT:
            words = fingerprint(documents[i].text, CONFIG).normal_hash
            groups[words].append(dedup.Member(i, row["doc_id"], row["origin_id"], row["num_bytes"]))
    decided = {
        group.representative: (group, members) for members in groups.values() for group in [dedup.exact_group(members)]
    }
    order = sorted(
        decided,
        key=lambda i: dedup.preference(
            settled=False,
            num_owners=len(decided[i][0].owners),
            num_bytes=rows[i]["num_bytes"],
            doc_id=rows[i]["doc_id"],
        ),
    )
    sets = [shingles(documents[i].text) for i in order]
    prints = [bands(signature(found, CONFIG), CONFIG) for found in sets]
    pairs = ((a, b) for b in range(len(order)) for a in range(b) if (prints[a] == prints[b]).any())
    edges = (dedup.Edge(a, b, jaccard(sets[a], sets[b])) for a, b in pairs)
    near = {e.other: e for e in dedup.star_clusters(e for e in edges if e.jaccard >= CONFIG.threshold)}
    for rank, i in enumerate(order):
        group, members = decided[i]
        for member in members:
            if rank in near:
                survivor = rows[order[near[rank].preferred]]["doc_id"]
                answer[member.row] = (Status.DUPLICATE, None, dedup.NEAR, survivor)
            elif member.row != i:
                answer[member.row] = (Status.DUPLICATE, group.source_id, dedup.EXACT, rows[i]["doc_id"])
            else:
                answer[member.row] = (Status.KEPT, group.source_id, None, None)
    return answer


@pytest.mark.parametrize("seed", range(6))
def test_the_engine_decides_as_the_pure_functions_do(seed: int, tmp_path: Path) -> None:
    documents = corpus(seed)
    tables = resolved(tmp_path, list(documents), parts=3)
    found = {
        row["input_offset"]: (row["status"], row["source_id"], row["reason"], row["survivor_id"])
        for row in tables["documents"]
    }
    assert found == expected(documents)
    statuses = {status for status, *_ in found.values()}
    reasons = {reason for _, _, reason, _ in found.values()}
    assert {Status.KEPT, Status.DUPLICATE, Status.SUPERSEDED} <= statuses
    assert {dedup.NEAR, dedup.EXACT} <= reasons


def test_the_order_and_division_of_documents_do_not_matter(tmp_path: Path) -> None:
    documents: list[Any] = [
        *corpus(7),
        Redirect("enwiki", "Elsewhere", "Article 3"),
        WikiSite("enwiki", "en.wikipedia.org"),
    ]
    shuffled = list(documents)
    random.Random(1).shuffle(shuffled)
    files = []
    for name, items, parts, threads in (("one", documents, 1, 1), ("other", shuffled, 4, 3)):
        (tmp_path / name).mkdir()
        resolved(tmp_path / name, items, parts, threads=threads)
        folder = tmp_path / name / "snapshot"
        files.append({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.parquet")})
    assert files[0] == files[1]
    assert len(files[0]) > 5


def test_every_member_is_within_the_threshold_of_a_kept_survivor(tmp_path: Path) -> None:
    documents = corpus(3)
    tables = resolved(tmp_path, list(documents))
    texts = {document.input_offset: document.text for document in documents}
    kept = {row["doc_id"]: row for row in tables["documents"] if row["status"] == Status.KEPT}
    near = [row for row in tables["documents"] if row["status"] == Status.DUPLICATE]
    assert any(row["reason"] == dedup.NEAR for row in near)
    for row in near:
        survivor = kept[row["survivor_id"]]
        true = jaccard(shingles(texts[row["input_offset"]]), shingles(texts[survivor["input_offset"]]))
        assert true >= CONFIG.threshold
        assert row["jaccard"] == pytest.approx(true, abs=1e-6)
        assert row["cluster_id"] == survivor["cluster_id"] == survivor["doc_id"]


def test_equal_text_in_two_wikis_is_kept_once_under_a_shared_source(tmp_path: Path) -> None:
    text = text_of(1)
    tables = resolved(
        tmp_path, [article(1, text), article(2, text.upper() + ".", wiki="dewiki"), article(3, text_of(2))]
    )
    first, second = (ids.source_id(key) for key in ("wiki:enwiki:1", "wiki:dewiki:2"))
    shared = ids.source_id(ids.shared_key([first, second]))
    assert sorted(row["owner_id"] for row in tables["owners"]) == sorted([first, second])
    assert {row["source_id"] for row in tables["owners"]} == {shared}
    assert [row["source_id"] for row in tables["shards"]].count(shared) == 1
    sources = {row["source_id"]: row for row in tables["sources"]}
    assert sources[shared]["kind"] == Kind.SHARED
    assert sources[shared]["num_documents"] == 1
    assert sources[first]["num_documents"] == sources[second]["num_documents"] == 0
    assert sources[first]["title"] == "Article 1"
    assert not tables["displaced"]


def test_a_near_copy_at_another_source_is_displaced_and_one_within_its_source_only_recorded(tmp_path: Path) -> None:
    text = text_of(1)
    copy = edited(text, 1, 1)
    home = [article(9, text_of(5, 300)), article(9, edited(text_of(5, 300), 2, 1))]
    home[1].locator, home[1].input_offset = "another page of the same source", 901
    tables = resolved(
        tmp_path, [article(1, text + " and more than the copy has"), article(2, copy, wiki="dewiki"), *home]
    )
    documents = {(row["input_file"], row["input_offset"]): row for row in tables["documents"]}
    displaced = documents["a.xml", 200]
    assert (displaced["status"], displaced["reason"], displaced["source_id"]) == (Status.DUPLICATE, dedup.NEAR, None)
    assert tables["displaced"] == [
        {"source_id": ids.source_id("wiki:dewiki:2"), "doc_id": displaced["doc_id"], "text": copy}
    ]
    statuses = sorted(documents["a.xml", offset]["status"] for offset in (900, 901))
    assert statuses == [Status.DUPLICATE, Status.KEPT]
    banded = {row["doc_id"] for row in tables["bands"]}
    assert banded == {row["doc_id"] for row in [*tables["shards"], *tables["displaced"]]}


def test_a_displaced_group_of_equals_stays_one_text_under_its_owners(tmp_path: Path) -> None:
    text = text_of(1, 400)
    copy = edited(text, 1, 2)
    items = [article(page, text, wiki=wiki) for page, wiki in enumerate(["enwiki", "dewiki", "frwiki"])]
    items += [article(page, copy, wiki=wiki) for page, wiki in ((7, "itwiki"), (8, "eswiki"))]
    tables = resolved(tmp_path, items)
    losers = [ids.source_id("wiki:itwiki:7"), ids.source_id("wiki:eswiki:8")]
    assert [row["source_id"] for row in tables["displaced"]] == [ids.source_id(ids.shared_key(losers))]
    near = [row for row in tables["documents"] if row["reason"] == dedup.NEAR]
    assert sorted(row["origin_id"] for row in near) == sorted(losers)
    assert len(tables["owners"]) == 5


def test_failed_captures_supersede_nothing_and_filtered_ones_do(tmp_path: Path) -> None:
    items = [
        article(1, text_of(1), captured="2019", offset=1),
        article(1, "", captured="2021", offset=2, end=(Status.FAILED, "truncated")),
        article(2, text_of(2), captured="2019", offset=3),
        article(2, "short", captured="2021", offset=4, end=(Status.FILTERED, "short")),
    ]
    found = {row["input_offset"]: row["status"] for row in resolved(tmp_path, items)["documents"]}
    assert found == {1: Status.KEPT, 2: Status.FAILED, 3: Status.SUPERSEDED, 4: Status.FILTERED}


def test_redirects_are_followed_across_files_and_may_have_no_source(tmp_path: Path) -> None:
    redirects = {
        "Two hops": "One hop",
        "One hop": "Article 1",
        "Case": "ARTICLE 1",
        "Round": "About",
        "About": "Round",
        "Nowhere": "Never written",
        "Filtered": "Article_2",
        "Ambiguous": "aRTICLE tWIN",
    }
    items: list[Any] = [Redirect("enwiki", title, target) for title, target in redirects.items()]
    items += [Redirect("dewiki", "Foreign", "Article 1"), article(1, text_of(1))]
    items += [article(2, "", end=(Status.FILTERED, "empty"))]
    items += [article(3, text_of(3), title="Article Twin"), article(4, text_of(4), title="Article twin")]
    tables = resolved(tmp_path, items, parts=4)
    found = {row["alias"]: row for row in tables["aliases"] if row["kind"] == "redirect"}
    one, two = ids.source_id("wiki:enwiki:1"), ids.source_id("wiki:enwiki:2")
    for alias, source in {"Two hops": one, "One hop": one, "Case": one, "Filtered": two}.items():
        assert found[alias]["source_id"] == source, alias
    for alias in ("Round", "About", "Nowhere", "Foreign", "Ambiguous"):
        assert found[alias]["source_id"] is None, alias
    assert found["Nowhere"]["target"] == "Never written"
    assert {row["alias"] for row in tables["aliases"] if row["kind"] == "title"} >= {"Article 1", "Article 2"}
    assert all(row["scope"] in ("enwiki", "dewiki") for row in tables["aliases"])


def test_two_keys_with_one_id_are_refused_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "doc_id", lambda key, locator: 42)
    items = [article(1, text_of(1)), article(2, text_of(2))]
    with pytest.raises(DamagedError, match=r"wiki:enwiki:1.*wiki:enwiki:2"):
        resolved(tmp_path, items)


def test_boilerplate_makes_a_linear_number_of_pairs(tmp_path: Path) -> None:
    items = [article(page, f"{text_of(1)} tail {page} {page}") for page in range(120)]
    with contextlib.closing(resolve([stage(tmp_path, items)], DedupConfig(bucket_limit=3), work=tmp_path)) as found:
        num_pairs = found.tables.count("pairs")
        statuses = [row["status"] for batch in found.documents() for row in batch.to_pylist()]
    assert 119 <= num_pairs <= 3 * 14 * 120
    assert statuses.count(Status.KEPT) == 1


def test_no_documents_give_an_empty_snapshot(tmp_path: Path) -> None:
    tables = resolved(tmp_path, [])
    assert not any(itertools.chain.from_iterable(tables.values()))


def test_a_registry_path_that_looks_like_a_pattern_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "it's [a] *dir* with key=1"
    folder.mkdir()
    assert len(resolved(folder, [article(1, text_of(1))])["shards"]) == 1
