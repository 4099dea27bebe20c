"""Removing sources from a snapshot: which texts go, stay or come back, and that the rest is unchanged."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.dedup.minhash import jaccard, shingles
from pipelines.ingest import IngestConfig, ingest
from pipelines.removal import remove as module
from pipelines.removal.remove import remove
from registry import ids
from registry.errors import NotFoundError, RefusedError, UsageError
from registry.lookup import lookup, resolve
from registry.snapshot import Registry, Snapshot
from tests.pipelines.readers.archives import by_record, record
from tests.pipelines.readers.dumps import Page, write_dump

WORDS = [f"{a}{b}" for a in ("ba", "de", "ki", "lo", "mu", "ra", "si", "to") for b in ("n", "l", "r", "s", "t")]


def text(seed: int, length: int = 60) -> str:
    """A text of its own."""
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def near(seed: int, variant: int, length: int = 60) -> str:
    """A near copy of `text(seed)`: one word differs; variant 0 differs only in case.

    Of 60 words, two variants are not near each other (Jaccard 0.70), and both are near the text (0.84).
    """
    words = text(seed, length).split()
    if not variant:
        return " ".join(words).upper()
    words[5 * variant % len(words)] = f"other{variant}"
    return " ".join(words)


def archive(path: Path, pages: dict[str, str]) -> Path:
    """An archive of plain-text pages: URL -> text."""
    path.write_bytes(
        by_record(
            record(f"http://{url}", content.encode(), kind="conversion", media_type="text/plain")
            for url, content in pages.items()
        )
    )
    return path


def ingested(folder: Path, pages: dict[str, str], **config: Any) -> Snapshot:
    path = archive(folder / "crawl.warc.gz", pages)
    ingest(IngestConfig(web=(str(path),), **config), registry_uri=folder / "registry")
    return Registry.open(folder / "registry").snapshot()


def newest(folder: Path) -> Snapshot:
    return Registry.open(folder / "registry").snapshot()


def texts(snapshot: Snapshot, folder: str = "shards") -> dict[tuple[str, str], str]:
    """(source key, URL) -> text."""
    keys = {row["source_id"]: row["key"] for row in snapshot.table("sources").to_pylist()}
    urls = {row["doc_id"]: row["url"] for row in snapshot.table("documents").to_pylist()}
    return {
        (keys[row["source_id"]], urls[row["doc_id"]].removeprefix("http://")): row["text"]
        for batch in snapshot.shard_batches(folder)
        for row in batch.to_pylist()
    }


def fates(snapshot: Snapshot) -> dict[str, tuple[str, str | None, str | None]]:
    """URL -> status, source key, URL of the survivor."""
    keys = {row["source_id"]: row["key"] for row in snapshot.table("sources").to_pylist()}
    rows = snapshot.table("documents").to_pylist()
    urls = {row["doc_id"]: row["url"].removeprefix("http://") for row in rows}
    return {
        urls[row["doc_id"]]: (row["status"], keys.get(row["source_id"]), urls.get(row["survivor_id"])) for row in rows
    }


def test_text_that_only_the_source_published_goes(tmp_path: Path) -> None:
    before = ingested(tmp_path, {"a.example/1": text(1), "a.example/2": text(2), "b.example/1": text(3)})
    report = remove(["http://a.example/1"], registry_uri=tmp_path / "registry")
    after = newest(tmp_path)
    assert (report.snapshot, report.parent, after.parent) == (after.id, before.id, before.id)
    assert [entry["key"] for entry in report.removed] == ["web:a.example"]
    assert texts(after) == {("web:b.example", "b.example/1"): text(3)}
    assert after.verify() > 0
    assert after.manifest["counts"]["read"] == 1
    assert not lookup(after, "a.example").found
    assert "web:a.example was removed from this registry" in lookup(after, "https://www.a.example/x").notes
    assert lookup(before, "a.example").found


def test_shared_text_stays_under_its_other_owners(tmp_path: Path) -> None:
    pages = {"a.example/": near(1, 0), "b.example/": text(1), "c.example/": text(1).title(), "d.example/": text(2)}
    before = ingested(tmp_path, pages)
    (shared,) = [key for key, _ in texts(before) if key.startswith("shared:")]
    wording = next(iter(t for (key, _), t in texts(before).items() if key == shared))
    report = remove(["a.example"], registry_uri=tmp_path / "registry")
    assert report.goes_on == 1
    both = ids.shared_key([ids.source_id("web:b.example"), ids.source_id("web:c.example")])
    assert {key: t for (key, _), t in texts(newest(tmp_path)).items()} == {both: wording, "web:d.example": text(2)}
    assert not lookup(newest(tmp_path), shared).found
    assert resolve(newest(tmp_path), both).shared_with == ("web:b.example", "web:c.example")
    remove(["b.example"], registry_uri=tmp_path / "registry")
    assert {key: t for (key, _), t in texts(newest(tmp_path)).items()} == {
        "web:c.example": wording,
        "web:d.example": text(2),
    }
    assert newest(tmp_path).table("owners").num_rows == 0
    assert [entry["key"] for entry in newest(tmp_path).removed] == sorted(
        ["web:a.example", "web:b.example"], key=lambda key: ids.source_id(key)
    )


def test_near_copies_that_were_displaced_come_back_with_their_own_wording(tmp_path: Path) -> None:
    pages = {
        "a.example/": text(1, 200) + " and more",
        "b.example/": near(1, 1, 200),
        "c.example/": near(1, 2, 200),
    }
    before = ingested(tmp_path, pages)
    assert list(texts(before)) == [("web:a.example", "a.example/")]
    report = remove(["a.example"], registry_uri=tmp_path / "registry")
    after = newest(tmp_path)
    assert report.came_back == 1
    (kept,) = [url for url, (status, _, _) in fates(after).items() if status == "kept"]
    other = ({"b.example/", "c.example/"} - {kept}).pop()
    assert fates(after)[other] == ("duplicate", None, kept)
    assert texts(after) == {(f"web:{kept[:-1]}", kept): pages[kept]}
    assert texts(after, "displaced") == {(f"web:{other[:-1]}", other): pages[other]}


def test_near_copies_at_the_removed_source_vanish(tmp_path: Path) -> None:
    before = ingested(tmp_path, {"a.example/": text(1) + " and more", "b.example/": near(1, 1)})
    assert texts(before, "displaced")
    report = remove(["b.example"], registry_uri=tmp_path / "registry")
    after = newest(tmp_path)
    assert (report.came_back, report.goes_on) == (0, 0)
    assert texts(after) == texts(before)
    assert texts(after, "displaced") == {}
    assert after.table("documents")["cluster_id"].to_pylist() == [None]


def test_only_touched_shards_are_rewritten(tmp_path: Path) -> None:
    pages = {
        f"s{number:02d}.example/{page}": text(100 * number + page, 200) for number in range(12) for page in range(3)
    }
    before = ingested(tmp_path, pages, shard_bytes=4000)
    report = remove(["s03.example"], registry_uri=tmp_path / "registry")
    after = newest(tmp_path)
    assert (report.shards_rewritten, report.shards_kept) == (1, len(before.shards()) - 1)
    files = [snapshot.manifest["files"] for snapshot in (before, after)]
    same = [name for name in after.shards() if files[0].get(f"{name}.parquet") == files[1][f"{name}.parquet"]]
    assert len(same) == len(before.shards()) - 1
    for name in same:
        assert len({Path(str(snapshot.file(name))).stat().st_ino for snapshot in (before, after)}) == 1
    rest = {key: value for key, value in texts(before).items() if key[0] != "web:s03.example"}
    assert texts(after) == rest
    for row in after.table("sources").to_pylist():
        found = sorted(body for _, body in after.texts(row["source_id"]))
        assert found == sorted(body for (key, _), body in rest.items() if key == row["key"])


def test_redirects_to_a_removed_article_have_no_source(tmp_path: Path) -> None:
    pages = [
        Page("Alpha", text(1), page_id=1),
        Page("Beta", text(2), page_id=2),
        Page("First", "#REDIRECT [[Alpha]]", redirect="Alpha", page_id=3),
    ]
    write_dump(tmp_path / "enwiki.xml", pages)
    ingest(IngestConfig(wikipedia=(str(tmp_path / "enwiki.xml"),)), registry_uri=tmp_path / "registry")
    remove(["First"], registry_uri=tmp_path / "registry")
    after = newest(tmp_path)
    assert not lookup(after, "Alpha").found
    assert "redirects to 'Alpha', which is not in this snapshot" in lookup(after, "First").notes[0]
    assert resolve(after, "Beta").key == "wiki:enwiki:2"


def test_a_later_crawl_does_not_bring_a_removed_source_back(tmp_path: Path) -> None:
    ingested(tmp_path, {"a.example/1": text(1), "b.example/1": text(2)})
    remove(["a.example"], registry_uri=tmp_path / "registry")
    path = archive(
        tmp_path / "later.warc.gz", {"a.example/3": text(3), "www.a.example/1": text(1), "c.example/": text(4)}
    )
    report = ingest(IngestConfig(web=(str(path),)), registry_uri=tmp_path / "registry")
    assert report.filtered == {"removed": 2}
    assert {key for key, _ in texts(newest(tmp_path))} == {"web:b.example", "web:c.example"}
    assert [entry["key"] for entry in newest(tmp_path).removed] == ["web:a.example"]
    assert resolve(newest(tmp_path), "a.example").num_documents == 0


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    before = ingested(tmp_path, {"a.example/": text(1) + " and more", "b.example/": near(1, 1)})
    report = remove(["a.example"], registry_uri=tmp_path / "registry", dry_run=True)
    assert (report.snapshot, report.came_back) == (None, 1)
    assert Registry.open(tmp_path / "registry").ids() == [before.id]
    done = remove(["a.example"], registry_uri=tmp_path / "registry")
    assert dataclasses.replace(done, snapshot=None, seconds=0) == dataclasses.replace(report, seconds=0)


def test_a_removal_that_is_not_possible_says_why(tmp_path: Path) -> None:
    before = ingested(tmp_path, {"a.example/": text(1), "b.example/": text(1)})
    registry = tmp_path / "registry"
    (shared,) = {key for key, _ in texts(before)}
    with pytest.raises(UsageError, match=r"remove its owners: web:a\.example, web:b\.example"):
        remove([shared], registry_uri=registry)
    with pytest.raises(NotFoundError):
        remove(["nowhere.example"], registry_uri=registry)
    with pytest.raises(UsageError, match="nothing to remove"):
        remove([], registry_uri=registry)
    remove(["a.example"], registry_uri=registry)
    with pytest.raises(NotFoundError, match="was removed from this registry"):
        remove(["a.example"], registry_uri=registry)


def test_a_removal_commits_nothing_after_a_concurrent_ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingested(tmp_path, {"a.example/": text(1), "b.example/": text(2)})
    commit = module._Removal._commit

    def late(self: Any, *arguments: Any) -> Any:
        path = archive(tmp_path / "later.warc.gz", {"c.example/": text(3)})
        ingest(IngestConfig(web=(str(path),)), registry_uri=tmp_path / "registry")
        return commit(self, *arguments)

    monkeypatch.setattr(module._Removal, "_commit", late)
    with pytest.raises(RefusedError):
        remove(["a.example"], registry_uri=tmp_path / "registry")
    assert lookup(newest(tmp_path), "a.example").found
    assert lookup(newest(tmp_path), "c.example").found
    assert not [path for path in (tmp_path / "registry" / "work").iterdir() if path.is_dir()]


def test_all_sources_can_go(tmp_path: Path) -> None:
    ingested(tmp_path, {"a.example/": text(1), "b.example/": near(1, 1), "c.example/": near(1, 0)})
    remove(["a.example", "b.example", "c.example"], registry_uri=tmp_path / "registry")
    assert texts(newest(tmp_path)) == {}
    assert newest(tmp_path).table("documents").num_rows == newest(tmp_path).table("sources").num_rows == 0


def test_a_displaced_text_of_several_sources_keeps_its_owners_and_comes_back_under_them(tmp_path: Path) -> None:
    survivors = {f"s{number}.example/": text(1, 200) + " and more" for number in range(5)}
    copies = {f"{name}.example/": near(1, 1, 200) for name in "abr"}
    ingested(tmp_path, survivors | copies)
    both = ids.shared_key([ids.source_id("web:a.example"), ids.source_id("web:b.example")])
    remove(["r.example"], registry_uri=tmp_path / "registry")
    assert [key for key, _ in texts(newest(tmp_path), "displaced")] == [both]  # `texts` reads keys from `sources`
    assert resolve(newest(tmp_path), both).shared_with == ("web:a.example", "web:b.example")
    remove([url[:-1] for url in survivors], registry_uri=tmp_path / "registry")
    assert [key for key, _ in texts(newest(tmp_path))] == [both]
    assert sorted(status for status, _, _ in fates(newest(tmp_path)).values()) == ["duplicate", "kept"]
    assert {source for _, source, _ in fates(newest(tmp_path)).values()} == {both}


@pytest.mark.parametrize("longest", ["a.example", "b.example"])
def test_the_representative_of_a_text_stays_if_it_is_not_removed(longest: str, tmp_path: Path) -> None:
    sites = ("a.example", "b.example", "r.example")
    pages = {f"{site}/one": text(1, 120) + " tail" + ("!" * 5 if site == longest else "") for site in sites}
    pages |= {f"{site}/two": near(1, 1, 120) for site in sites}  # with the same owners, so its text is not stored
    before = ingested(tmp_path, pages)
    assert not texts(before, "displaced")
    remove(["r.example"], registry_uri=tmp_path / "registry")
    found = fates(newest(tmp_path))
    assert found[f"{longest}/one"][0] == "kept"
    assert [survivor for _, _, survivor in found.values() if survivor] == [f"{longest}/one"] * 3


def test_the_url_of_a_removed_article_does_not_take_its_site(tmp_path: Path) -> None:
    write_dump(tmp_path / "enwiki.xml", [Page("Alpha", text(1), page_id=1), Page("Beta", text(2), page_id=2)])
    path = archive(tmp_path / "crawl.warc.gz", {"en.wikipedia.org/wiki/Gamma": text(3), "b.example/": text(4)})
    config = IngestConfig(wikipedia=(str(tmp_path / "enwiki.xml"),), web=(str(path),))
    ingest(config, registry_uri=tmp_path / "registry")
    article = "https://en.wikipedia.org/wiki/Alpha"
    report = remove([article], registry_uri=tmp_path / "registry")
    assert [entry["key"] for entry in report.removed] == ["wiki:enwiki:1"]
    for url in (article, "https://en.wikipedia.org/wiki/Never_read"):
        with pytest.raises(NotFoundError, match=r"name it: web:wikipedia\.org"):
            remove([url], registry_uri=tmp_path / "registry")
    report = remove(["wikipedia.org"], registry_uri=tmp_path / "registry")
    assert [entry["key"] for entry in report.removed] == ["web:wikipedia.org"]


def test_a_source_removed_twice_is_recorded_once(tmp_path: Path) -> None:
    ingested(tmp_path, {"a.example/1": text(1), "b.example/1": text(2)})
    remove(["a.example"], registry_uri=tmp_path / "registry")
    path = archive(tmp_path / "later.warc.gz", {"a.example/3": text(3), "c.example/": text(4)})
    ingest(IngestConfig(web=(str(path),)), registry_uri=tmp_path / "registry")
    remove(["a.example"], registry_uri=tmp_path / "registry")
    assert [entry["key"] for entry in newest(tmp_path).removed] == ["web:a.example"]


def test_texts_that_come_back_are_placed_with_the_rest_of_their_source(tmp_path: Path) -> None:
    sites, pages = [f"s{number}.example" for number in range(8)], {}
    for number, site in enumerate(sites):
        pages |= {f"{site}/{page}": text(10 * number + page, 100) for page in range(2)}
        for page in range(3):  # some ids are lower than those of the kept texts
            seed = 1000 + 10 * number + page
            pages |= {f"r.example/{seed}": text(seed, 120) + " and more", f"{site}/copy{page}": near(seed, 1, 120)}
    before = ingested(tmp_path, pages, shard_bytes=2500)
    report = remove(["r.example"], registry_uri=tmp_path / "registry")
    assert report.came_back == 24
    num_placements = [len(row["placements"]) for row in newest(tmp_path).table("sources").to_pylist()]
    assert (len(before.shards()) > 5, num_placements) == (True, [1] * 8)


PAGE = st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 3))  # site, text, variant


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(PAGE, min_size=2, max_size=14, unique=True), st.sets(st.integers(0, 4), min_size=1, max_size=3))
def test_in_any_corpus_nothing_else_is_lost_or_wrong(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int]], wanted: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    pages = {f"s{site}.example/{seed}-{variant}": near(seed, variant) for site, seed, variant in drawn}
    before = ingested(folder, pages)
    going = {f"s{site}.example" for site, _, _ in drawn if site in wanted}
    if not going:
        return
    remove(sorted(going), registry_uri=folder / "registry")
    after = newest(folder)
    after.verify()
    rest = {url: body for url, body in pages.items() if url.partition("/")[0] not in going}
    found = fates(after)
    assert found.keys() == rest.keys()
    check(found, rest, texts(after), texts(after, "displaced"))
    assert {url for url, fate in fates(before).items() if fate[0] == "kept" and url in rest} <= {
        url for url, fate in found.items() if fate[0] == "kept"
    }
    # An ingest of the rest gives as many texts, with the same owners, unless near copies could survive each other.
    fresh_folder = tmp_path_factory.mktemp("fresh")
    if rest and len({seed for _, seed, _ in drawn}) == len({(seed, variant) for _, seed, variant in drawn}):
        fresh = ingested(fresh_folder, rest)
        assert {key for key, _ in texts(fresh)} == {key for key, _ in texts(after)}
        assert fresh.table("owners").to_pylist() == after.table("owners").to_pylist()


def check(
    found: dict[str, tuple[str, str | None, str | None]],
    rest: dict[str, str],
    kept: dict[tuple[str, str], str],
    displaced: dict[tuple[str, str], str],
) -> None:
    """Check that every document has a kept text within the threshold, with the right owners."""
    by_url = {url: body for (_, url), body in kept.items()}
    for url, (status, source, survivor) in found.items():
        if status == "kept":
            assert by_url[url].lower() == rest[url].lower()
            assert (source, url) in kept
        else:
            assert status == "duplicate"
            assert survivor is not None
            assert found[survivor][0] == "kept"
            assert jaccard(shingles(rest[url]), shingles(by_url[survivor])) >= 0.75
    for (_, url), body in displaced.items():
        assert found[url][0] == "duplicate"
        assert body.lower() == rest[url].lower()
    for (owner, url), body in kept.items():
        publishers = {f"web:{u.partition('/')[0]}" for u in rest if rest[u].lower() == body.lower()}
        if owner.startswith("shared:"):
            assert owner == ids.shared_key([ids.source_id(key) for key in publishers])
        else:
            assert publishers == {owner}, url
