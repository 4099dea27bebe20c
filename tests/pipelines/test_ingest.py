"""Ingesting dumps into a snapshot and its children: no document is lost, and the id depends only on content."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.conservation import Accounts
from pipelines.dedup.minhash import DedupConfig
from pipelines.filters.rules import FilterConfig
from pipelines.ingest import IngestConfig, ingest
from pipelines.inputs import InputKind, find_inputs
from pipelines.report import IngestReport
from registry import ids
from registry.errors import DamagedError, InputError, RefusedError, ServiceError, UsageError
from registry.lookup import lookup
from registry.schema import Status
from registry.snapshot import Registry, Snapshot
from tests.pipelines.readers.dumps import Page, siteinfo, write_dump

module = importlib.import_module("pipelines.ingest")  # `pipelines.ingest` is the function
VOCABULARY = [f"{a}{b}{c}" for a, b, c in itertools.product("bdfklmnprst", "aeiou", "lmnrst")]
GERMAN = siteinfo("dewiki", "https://de.wikipedia.org/wiki/Hauptseite")
FRENCH = siteinfo("frwiki", "https://fr.wikipedia.org/wiki/Accueil")


def prose(seed: int, count: int = 150) -> str:
    return " ".join(random.Random(seed).choices(VOCABULARY, k=count))


def nearly(text: str) -> str:
    """The same text except for one word, and shorter, so that the original is preferred."""
    words = text.split()
    return " ".join([*words[:40], "x", *words[41:-1]])


def run(registry: Path, *paths: Path, **options: Any) -> tuple[IngestReport, Snapshot]:
    config = {name: options.pop(name) for name in ("filters", "dedup", "shard_bytes") if name in options}
    report = ingest(IngestConfig(wikipedia=tuple(map(str, paths)), **config), registry_uri=registry, **options)
    return report, Registry.open(registry).snapshot(report.snapshot)


def rows(snapshot: Snapshot, name: str = "documents") -> list[dict[str, Any]]:
    return snapshot.table(name).to_pylist()


def statuses(snapshot: Snapshot) -> dict[tuple[str, str], str]:
    """(input, title) -> status and reason."""
    return {
        (row["input_file"], row["title"]): f"{row['status']} {row['reason'] or ''}".strip() for row in rows(snapshot)
    }


def of(scope: str, page: int) -> int:
    return ids.source_id(f"wiki:{scope}:{page}")


def assert_whole(report: IngestReport, snapshot: Snapshot) -> None:
    """Check every property of a snapshot that its files and its report show."""
    snapshot.verify()
    filtered, failed = sum(report.filtered.values()), sum(report.failed.values())
    assert report.read == report.kept + filtered + report.duplicate + report.superseded + failed
    documents = rows(snapshot)
    assert report.read == len(documents)
    kept = {row["doc_id"]: row for row in documents if row["status"] == Status.KEPT}
    assert len(kept) == report.kept == sum(batch.num_rows for batch in snapshot.shard_batches())
    for row in documents:
        if row["status"] == Status.DUPLICATE:
            assert row["survivor_id"] in kept
    for source in rows(snapshot, "sources"):
        texts = dict(snapshot.texts(source["source_id"]))
        assert len(texts) == source["num_documents"]
        assert sum(len(text.encode()) for text in texts.values()) == source["num_bytes"]
        assert {kept[doc]["source_id"] for doc in texts} <= {source["source_id"]}


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    """Three wikis: an article in two of them, a near copy, a stub, redirects."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    english = [
        Page("Alpha", prose(1)),
        Page("Beta", prose(2)),
        Page("Gamma", prose(3)),
        Page("Stub", "Short."),
        Page("Alef", "#REDIRECT [[Alpha]]", redirect="Alpha"),
        Page("Later", "#REDIRECT [[Epsilon]]", redirect="Epsilon"),
    ]
    write_dump(folder / "enwiki.xml", english)
    german = [Page("Alpha (de)", prose(1)), Page("Delta", prose(4))]
    write_dump(folder / "dewiki.xml.bz2", german, siteinfo=GERMAN, compress="bz2")
    write_dump(folder / "frwiki.xml.gz", [Page("Bêta", nearly(prose(2)))], siteinfo=FRENCH, compress="gz")
    (folder / "README.txt").write_text("Not a dump.")
    return folder


def test_an_article_in_two_wikis_is_shared_and_a_near_copy_displaced(dumps: Path, tmp_path: Path) -> None:
    report, snapshot = run(tmp_path / "registry", dumps)
    assert_whole(report, snapshot)
    assert (report.read, report.kept, report.duplicate, report.shared_sources) == (7, 4, 2, 1)
    assert report.filtered == {"short": 1}
    assert report.sources == {"wiki": 7}
    assert report.left_out == (str(dumps / "README.txt"),)
    owners = rows(snapshot, "owners")
    assert {row["owner_id"] for row in owners} == {of("enwiki", 1), of("dewiki", 1)}
    (displaced,) = [
        row for name in snapshot.shards("displaced") for row in pq.read_table(snapshot.file(name)).to_pylist()
    ]
    assert displaced["source_id"] == of("frwiki", 1)
    (wipeout,) = report.wipeouts
    assert (wipeout.key, wipeout.survivors) == ("wiki:frwiki:1", ("wiki:enwiki:2",))
    assert snapshot.manifest["wikis"] == [
        {"scope": scope, "host": f"{scope[:2]}.wikipedia.org"} for scope in ("dewiki", "enwiki", "frwiki")
    ]
    assert list((tmp_path / "registry" / "work").iterdir()) == []


def test_articles_are_found_by_redirect_url_and_key(dumps: Path, tmp_path: Path) -> None:
    _, snapshot = run(tmp_path / "registry", dumps)
    for query, source in {
        "alef": of("enwiki", 1),
        "https://en.m.wikipedia.org/wiki/Stub": of("enwiki", 4),
        "https://de.wikipedia.org/wiki/Delta": of("dewiki", 2),
        "wiki:frwiki:1": of("frwiki", 1),
    }.items():
        assert lookup(snapshot, query).matches[0].source.source_id == source, query


def test_the_id_does_not_depend_on_workers_order_or_folder(dumps: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deeper"
    shutil.copytree(dumps, moved)
    files = [moved / name for name in ("frwiki.xml.gz", "dewiki.xml.bz2", "enwiki.xml")]
    first = run(tmp_path / "a", dumps)[0].snapshot
    assert run(tmp_path / "b", *files, workers=2)[0].snapshot == first
    assert run(tmp_path / "c", moved, moved / "enwiki.xml", Path(f"{moved}/*.gz"))[0].snapshot == first


@pytest.mark.parametrize(
    "change", [{"shard_bytes": 1000}, {"filters": FilterConfig(min_words=1)}, {"dedup": DedupConfig(threshold=1.0)}]
)
def test_settings_that_shape_content_are_part_of_the_id(change: dict[str, Any], dumps: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "a", dumps)[0].snapshot != run(tmp_path / "b", dumps, **change)[0].snapshot


def test_of_a_page_in_two_dumps_the_newest_capture_is_kept(tmp_path: Path) -> None:
    old = write_dump(tmp_path / "old.xml", [Page("A", prose(1), timestamp="2019-01-01T00:00:00Z")])
    new = write_dump(tmp_path / "new.xml", [Page("A", prose(9), timestamp="2021-01-01T00:00:00Z")])
    report, snapshot = run(tmp_path / "registry", old, new)
    assert_whole(report, snapshot)
    assert statuses(snapshot) == {("new.xml", "A"): "kept", ("old.xml", "A"): "superseded newer-capture"}
    assert snapshot.texts(of("enwiki", 1))[0][1] == prose(9)


def test_near_copies_within_a_wiki_are_displaced_by_article(tmp_path: Path) -> None:
    dump = write_dump(tmp_path / "a.xml", [Page("A", prose(1)), Page("B", nearly(prose(1))), Page("C", prose(1))])
    report, snapshot = run(tmp_path / "registry", dump)
    assert_whole(report, snapshot)
    found = {row["title"]: row for row in rows(snapshot)}
    assert [found[title]["status"] for title in "ABC"].count("duplicate") == 2
    assert found["B"]["reason"] == "near"
    assert 0.75 <= found["B"]["jaccard"] < 1


def test_a_truncated_file_is_reported_and_the_rest_ingested(dumps: Path, tmp_path: Path) -> None:
    whole = (dumps / "enwiki.xml").read_bytes()
    (dumps / "enwiki.xml").write_bytes(whole[: whole.index(b"<title>Gamma") + 300])
    report, snapshot = run(tmp_path / "registry", dumps)
    assert_whole(report, snapshot)
    assert report.failed == {"truncated": 1}
    (failure,) = report.failures
    assert failure.input_file == "enwiki.xml"
    assert failure.input_offset == whole.rindex(b"<page>", 0, whole.index(b"<title>Gamma"))
    assert failure.detail
    assert any("enwiki.xml" in line and "truncated" in line for line in report.lines())


def test_a_file_that_is_no_dump_is_reported_and_the_rest_ingested(dumps: Path, tmp_path: Path) -> None:
    report, snapshot = run(tmp_path / "registry", dumps, dumps / "README.txt")
    assert_whole(report, snapshot)
    assert report.failed == {"not-a-dump": 1}
    assert report.failures[0].input_file == "README.txt"
    assert report.left_out == ()


@pytest.mark.parametrize("content", [b"", b"plain words", b"\x89PNG\r\n", b"<html><body>hello</body></html>"])
def test_an_ingest_of_only_files_that_are_no_dumps_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "thing.xml").write_bytes(content)
    with pytest.raises(InputError, match=r"thing\.xml"):
        run(tmp_path / "registry", tmp_path / "thing.xml")
    assert Registry.open(tmp_path / "registry").ids() == []
    assert list((tmp_path / "registry" / "work").iterdir()) == []


def test_a_dump_without_articles_is_an_empty_snapshot(tmp_path: Path) -> None:
    report, snapshot = run(tmp_path / "registry", write_dump(tmp_path / "a.xml", []))
    assert_whole(report, snapshot)
    assert report.read == 0


@pytest.mark.parametrize("registry", ["/proc/nulls-registry", "/dev/null/registry"])
def test_a_registry_that_cannot_be_written_is_refused_at_once(registry: str, dumps: Path) -> None:
    with pytest.raises((ServiceError, UsageError), match="registry"):
        run(Path(registry), dumps)


def test_the_same_ingest_twice_at_once_is_refused(dumps: Path, tmp_path: Path) -> None:
    refused: list[bool] = []

    def again(message: str, share: float | None) -> None:
        if message.startswith("finding") and not refused:
            with pytest.raises(RefusedError, match="running already"):
                run(tmp_path / "registry", dumps)
            refused.append(True)

    run(tmp_path / "registry", dumps, on_progress=again)
    assert refused


def test_a_dry_run_writes_nothing(dumps: Path, tmp_path: Path) -> None:
    report = ingest(IngestConfig(wikipedia=(str(dumps),)), registry_uri=tmp_path / "registry", dry_run=True)
    assert report.snapshot is None
    assert report.inputs == ("dewiki.xml.bz2", "enwiki.xml", "frwiki.xml.gz")
    assert not (tmp_path / "registry").exists()
    assert "would read 3 files" in report.lines()[0]


def test_a_report_is_json_and_lines(dumps: Path, tmp_path: Path) -> None:
    report, _ = run(tmp_path / "registry", dumps)
    found = json.loads(json.dumps(report.to_dict()))
    promised = "snapshot read kept filtered duplicate superseded failed sources shared_sources seconds"
    assert set(promised.split()) <= set(found)
    assert any("kept 4" in line for line in report.lines())


def test_progress_reaches_the_end(dumps: Path, tmp_path: Path) -> None:
    shares = []
    run(tmp_path / "registry", dumps, on_progress=lambda message, share: shares.append(share))
    known = [share for share in shares if share is not None]
    assert known == sorted(known)
    assert known[-1] == 1.0


def test_a_lost_document_prevents_the_commit(dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = module.write_resolution

    def loses_one(resolution: Any, writer: Any, work: Path, *, shard_bytes: int) -> int:
        num_texts = write(resolution, writer, work, shard_bytes=shard_bytes)
        path = writer.staging / "documents.parquet"
        pq.write_table(pq.read_table(path).slice(1), path)
        return num_texts

    monkeypatch.setattr(module, "write_resolution", loses_one)
    with pytest.raises(DamagedError, match="nothing was committed"):
        run(tmp_path / "registry", dumps)
    assert Registry.open(tmp_path / "registry").ids() == []


@pytest.mark.parametrize("wrong", [{"wikipedia": ()}, {"wikipedia": ("x",), "shard_bytes": 0}])
def test_a_configuration_without_inputs_or_with_empty_shards_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        IngestConfig(**wrong)


class TestInputs:
    """Input names do not depend on where the files are."""

    def test_a_directory_without_dumps_or_a_missing_path_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("x")
        (tmp_path / "enwiki-index.txt.bz2").write_text("x")
        with pytest.raises(InputError, match=r"no dump.*\*\.xml\.bz2"):
            find_inputs({InputKind.WIKIPEDIA: [str(tmp_path)]})
        with pytest.raises(InputError, match="no such file"):
            find_inputs({InputKind.WIKIPEDIA: [str(tmp_path / "missing.xml")]})
        with pytest.raises(InputError, match="matches no file"):
            find_inputs({InputKind.WIKIPEDIA: [str(tmp_path / "*.xml")]})

    def test_folders_distinguish_equal_names_and_equal_files_are_read_once(self, tmp_path: Path) -> None:
        for path, content in {"a/x": "1", "b/x": "2", "c/x": "2", "a/y": "3"}.items():
            folder, name = path.split("/")
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.xml").write_text(content)
        found = find_inputs({InputKind.WIKIPEDIA: [str(tmp_path), str(tmp_path / "a" / "x.xml")]})
        assert [file.name for file in found.files] == ["a/x.xml", "b/x.xml", "y.xml"]

    def test_a_file_given_by_name_is_read_whatever_its_name(self, tmp_path: Path) -> None:
        (tmp_path / "dump").write_text("x")
        assert [file.name for file in find_inputs({InputKind.WIKIPEDIA: [f"file://{tmp_path}/dump"]}).files] == ["dump"]


class TestChildren:
    """An ingest into a registry with a snapshot makes a child of it."""

    def test_an_ingest_without_new_files_gives_the_same_snapshot(self, dumps: Path, tmp_path: Path) -> None:
        first, _ = run(tmp_path / "registry", dumps)
        again, _ = run(tmp_path / "registry", dumps / "enwiki.xml")
        assert again.snapshot == first.snapshot
        assert (again.read, again.kept, again.is_new) == (first.read, first.kept, False)
        assert Registry.open(tmp_path / "registry").ids() == [first.snapshot]

    def test_another_configuration_is_refused_and_the_field_named(self, dumps: Path, tmp_path: Path) -> None:
        run(tmp_path / "registry", dumps)
        with pytest.raises(UsageError, match=r"dedup\.threshold: 0\.75 there, 0\.8 here.*fresh registry"):
            run(tmp_path / "registry", dumps, dedup=DedupConfig(threshold=0.8))

    def test_a_child_holds_the_parent_and_the_new_documents(self, dumps: Path, tmp_path: Path) -> None:
        _, parent = run(tmp_path / "registry", dumps / "enwiki.xml", dumps / "frwiki.xml.gz")
        dangling = lookup(parent, "Later").matches
        write_dump(dumps / "more.xml", [Page("Epsilon", prose(8), page_id=50)])
        report, child = run(tmp_path / "registry", dumps / "dewiki.xml.bz2", dumps / "more.xml", workers=2)
        assert_whole(report, child)
        assert child.parent == parent.id
        assert not dangling
        assert lookup(child, "Later").matches[0].source.source_id == of("enwiki", 50)
        whole, fresh = run(tmp_path / "fresh", dumps)
        counts = ("read", "kept", "filtered", "duplicate", "superseded", "failed", "sources", "shared_sources")
        assert {name: getattr(report, name) for name in counts} == {name: getattr(whole, name) for name in counts}
        assert statuses(child)["enwiki.xml", "Alpha"] == "kept"  # settled; a fresh ingest may choose the other
        assert statuses(child).keys() == statuses(fresh).keys()
        for name in ("owners", "aliases"):
            assert rows(child, name) == rows(fresh, name), name
        assert len(rows(child, "bands")) == len(rows(fresh, "bands"))
        assert [e["name"] for e in child.manifest["inputs"]] == [e["name"] for e in fresh.manifest["inputs"]]

    def test_a_third_owner_joins_and_survivors_stay(self, tmp_path: Path) -> None:
        one = write_dump(tmp_path / "one.xml", [Page("A", prose(1)), Page("N", nearly(prose(5)))])
        two = write_dump(tmp_path / "two.xml", [Page("A", prose(1))], siteinfo=GERMAN)
        three = write_dump(
            tmp_path / "three.xml", [Page("A", prose(1)), Page("N", prose(5) + " longer")], siteinfo=FRENCH
        )
        run(tmp_path / "registry", one)
        run(tmp_path / "registry", two)
        report, last = run(tmp_path / "registry", three)
        assert_whole(report, last)
        owned = [row for row in rows(last, "owners") if row["owner_id"] == of("frwiki", 1)]
        assert {row["owner_id"] for row in rows(last, "owners") if row["source_id"] == owned[0]["source_id"]} == {
            of(wiki, 1) for wiki in ("enwiki", "dewiki", "frwiki")
        }
        assert report.duplicate == 3
        assert statuses(last)["one.xml", "N"] == "kept"  # the longer one is new
        assert statuses(last)["three.xml", "N"] == "duplicate near"

    def test_a_newer_capture_brings_displaced_texts_back(self, tmp_path: Path) -> None:
        old = [Page("A", prose(1)), Page("S", prose(7)), Page("Kept", prose(6))]
        other = [Page("B", nearly(prose(1)) + " Q."), Page("T", prose(7))]
        new = [
            dataclasses.replace(page, text=prose(60 + n), timestamp="2022-01-01T00:00:00Z")
            for n, page in enumerate(old[:2])
        ]
        run(
            tmp_path / "registry",
            write_dump(tmp_path / "old.xml", old),
            write_dump(tmp_path / "other.xml", other, siteinfo=GERMAN),
        )
        report, child = run(tmp_path / "registry", write_dump(tmp_path / "new.xml", new))
        assert_whole(report, child)
        found = statuses(child)
        assert found["old.xml", "A"] == found["old.xml", "S"] == "superseded newer-capture"
        assert found["other.xml", "B"] == found["other.xml", "T"] == found["new.xml", "A"] == "kept"
        assert child.texts(of("dewiki", 2))[0][1] == prose(7)
        assert report.shared_sources == 0

    def test_a_damaged_snapshot_is_repaired_by_ingesting_again(self, dumps: Path, tmp_path: Path) -> None:
        first, snapshot = run(tmp_path / "registry", dumps)
        snapshot.file("bands").write_bytes(b"")
        again, repaired = run(tmp_path / "registry", dumps)
        assert again.snapshot == first.snapshot
        assert_whole(again, repaired)

    def test_a_damaged_parent_is_not_continued(self, dumps: Path, tmp_path: Path) -> None:
        _, parent = run(tmp_path / "registry", dumps / "enwiki.xml")
        shard = parent.file(parent.shards()[0])
        shard.write_bytes(shard.read_bytes()[:-9])
        with pytest.raises(DamagedError, match="part-00000"):
            run(tmp_path / "registry", dumps / "dewiki.xml.bz2")
        assert Registry.open(tmp_path / "registry").ids() == [parent.id]

    def test_work_left_by_a_crash_after_the_commit_is_removed(self, dumps: Path, tmp_path: Path) -> None:
        _, snapshot = run(tmp_path / "registry", dumps)
        left = tmp_path / "registry" / "work" / snapshot.manifest["ingest"] / "stage"
        left.mkdir(parents=True)
        run(tmp_path / "registry", dumps)
        assert not left.exists()


def test_documents_are_counted_by_kind_and_status(dumps: Path, tmp_path: Path) -> None:
    _, snapshot = run(tmp_path / "registry", dumps, dumps / "README.txt")
    with Accounts(snapshot.path, tmp_path) as accounts:
        assert accounts.by_kind() == {
            "unknown": {"read": 1, "failed": 1},
            "wiki": {"read": 7, "kept": 4, "duplicate": 2, "filtered": 1},
        }
