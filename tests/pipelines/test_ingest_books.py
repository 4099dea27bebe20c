"""Ingesting books and other forms of Wikipedia: every file is accounted for, every name finds its book."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestration.explain import explain
from pipelines.ingest import IngestConfig, ingest
from pipelines.report import IngestReport
from registry import ids
from registry.errors import InputError, NotFoundError
from registry.lookup import lookup, resolve
from registry.schema import Status
from registry.snapshot import Registry, Snapshot
from tests.pipelines.readers.dumps import Page, write_dump
from tests.pipelines.readers.test_books import gutenberg
from tests.pipelines.readers.test_epub import METADATA, XHTML, files, zipped
from tests.pipelines.readers.test_wikiextractor import docs, json_lines, parquet
from tests.pipelines.test_ingest import assert_whole, prose, rows


def run(registry: Path, **inputs: Any) -> tuple[IngestReport, Snapshot]:
    config = IngestConfig(**{kind: tuple(map(str, paths)) for kind, paths in inputs.items()})
    report = ingest(config, registry_uri=registry)
    return report, Registry.open(registry).snapshot(report.snapshot)


def fill(folder: Path) -> Path:
    """Write a book of Gutenberg, an EPUB with two ISBNs, a plain text, and a web page that is no book."""
    folder.mkdir()
    (folder / "pg2591.txt").write_text(gutenberg(body=prose(1)))
    isbns = "<dc:identifier>urn:isbn:9780306406157</dc:identifier><dc:identifier>978-3-16-148410-0</dc:identifier>"
    chapter = XHTML.format(f"<p>{prose(2)}</p>")
    (folder / "alice.epub").write_bytes(zipped(files(METADATA + isbns, **{"OEBPS/text/a.xhtml": chapter})))
    (folder / "a-plain_text.txt").write_text(prose(3))
    (folder / "404.txt").write_text("<!DOCTYPE html><html><head><title>404 | Nothing</title></head></html>")
    (folder / "cover.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A directory of books."""
    return fill(tmp_path / "shelf")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """A snapshot of a shelf; read-only, since tests share it."""
    folder = tmp_path_factory.mktemp("books")
    return run(folder / "registry", books=[fill(folder / "shelf")])[1]


GRIMM, ALICE = "book:gutenberg:2591", "book:isbn:9780306406157"


@pytest.mark.parametrize(
    ("query", "key"),
    [
        *[(query, GRIMM) for query in ("Grimms' Fairy Tales", "grimms' fairy tales / JACOB GRIMM", GRIMM)],
        *[(query, GRIMM) for query in ("Grimms' Fairy Tales / Jacob Grimm and Wilhelm Grimm", "BOOK:Gutenberg:02591")],
        *[(query, GRIMM) for query in ("https://www.gutenberg.org/ebooks/2591", "http://www.gutenberg.org/2591")],
        *[(query, GRIMM) for query in ("gutenberg.org/files/2591/2591-0.txt", "www.gutenberg.org/etext/2591")],
        *[
            (query, ALICE)
            for query in ("978-0-306-40615-7", "9780306406157", "0-306-40615-2", "ISBN 0306406152", ALICE)
        ],
        *[
            (query, ALICE)
            for query in ("urn:isbn:9780306406157", "3-16-148410-X", "9783161484100", "978 3 16 148410 0")
        ],
        *[(query, ALICE) for query in ("Alice's Adventures", "alice's adventures / carroll, lewis")],
    ],
)
def test_every_name_finds_its_book(query: str, key: str, snapshot: Snapshot) -> None:
    matches = [match for match in lookup(snapshot, query).matches if match.source.kind == "book"]
    assert [match.source.key for match in matches] == [key]
    assert resolve(snapshot, query).key == key
    found = explain(snapshot, query)
    assert (found["origin"], found["status"]) == (key, "kept")
    assert found["shard"]


def test_every_file_is_accounted_for(shelf: Path, tmp_path: Path) -> None:
    report, snapshot = run(tmp_path / "registry", books=[shelf])
    assert_whole(report, snapshot)
    assert (report.read, report.kept, report.failed) == (4, 3, {"html-page": 1})
    assert report.sources == {"book": 3}
    assert [Path(path).name for path in report.left_out] == ["cover.jpg"]
    assert report.failures[0].input_file == "404.txt"
    assert "404 | Nothing" in report.failures[0].detail
    found = explain(snapshot, "404.txt")
    assert (found["status"], found["reason"], found["title"]) == ("failed", "html-page", "404 | Nothing")
    assert explain(snapshot, found["doc_id"]) == found
    assert explain(snapshot, "a-plain_text.txt")["title"] == "a plain text"
    assert lookup(snapshot, "A plain text").found
    for unknown in ("405.txt", "Alice's Adventures / A Translator", "9780306406158"):
        assert not lookup(snapshot, unknown).found
        with pytest.raises(NotFoundError):
            explain(snapshot, unknown)


def test_a_child_keeps_every_name(shelf: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "registry", books=[shelf])[1]
    (tmp_path / "more.txt").write_text(gutenberg(body=prose(9), title="Another").replace("#2591", "#2592"))
    report, child = run(tmp_path / "registry", books=[tmp_path / "more.txt"])
    assert_whole(report, child)
    assert child.parent == first.id
    for query in ("Grimms' Fairy Tales / Wilhelm Grimm", "316148410X", "gutenberg.org/ebooks/2592", "a plain text"):
        assert lookup(child, query).found, query
    known = {(row["alias"], row["source_id"]) for row in rows(first, "aliases")}
    assert known < {(row["alias"], row["source_id"]) for row in rows(child, "aliases")}
    assert len(rows(child, "aliases")) == len({tuple(row.items()) for row in rows(child, "aliases")})


def test_of_two_editions_with_one_number_the_newer_is_kept(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text(gutenberg(body=prose(1)).replace("June 28, 2021", "June 28, 2011"))
    (tmp_path / "new.txt").write_text(gutenberg(body=prose(2)))
    report, snapshot = run(tmp_path / "registry", books=[tmp_path])
    assert_whole(report, snapshot)
    assert (report.kept, report.superseded) == (1, 1)
    assert snapshot.texts(ids.source_id(GRIMM))[0][1] == prose(2)


def test_a_failed_book_can_be_looked_up_and_supersedes_nothing(shelf: Path, tmp_path: Path) -> None:
    isbn = "<dc:identifier>urn:isbn:9780306406157</dc:identifier>"
    broken = files(METADATA + isbn)
    del broken["OEBPS/text/b.xhtml"]
    (shelf / "alice-broken.epub").write_bytes(zipped(broken))
    report, snapshot = run(tmp_path / "registry", books=[shelf])
    assert_whole(report, snapshot)
    assert (report.kept, report.failed) == (3, {"html-page": 1, "missing-file": 1})
    found = explain(snapshot, ALICE)
    assert (found["status"], found["captures"][0]["reason"]) == ("kept", "missing-file")
    assert explain(snapshot, "alice-broken.epub")["reason"] == "missing-file"


def test_an_ingest_of_only_a_binary_file_is_refused_and_the_file_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\0\1\2")
    with pytest.raises(InputError, match=r"a\.txt: a binary file"):
        run(tmp_path / "registry", books=[tmp_path / "a.txt"])


def test_a_folder_without_books_is_refused_with_ten_files_named(tmp_path: Path) -> None:
    for number in range(13):
        (tmp_path / f"{number:02}.txt").write_bytes(b"%PDF-1.4")
    with pytest.raises(InputError, match=r"00\.txt: a PDF.*09\.txt: a PDF.*and 3 more files$"):
        run(tmp_path / "registry", books=[tmp_path])


def test_an_article_in_three_forms_is_three_captures_of_one_document(tmp_path: Path) -> None:
    articles = [(12, "Alpha", prose(1)), (25, "Beta", prose(2))]
    (tmp_path / "wiki_00").write_bytes(docs(articles))
    (tmp_path / "wiki_01").write_bytes(json_lines([(12, "Alpha", prose(5))]))
    parquet(tmp_path / "train-00000-of-00001.parquet", [(12, "Alpha", prose(6)), (39, "Gamma", prose(3))])
    write_dump(tmp_path / "enwiki.xml", [Page("Alpha", prose(7), page_id=12)])
    report, snapshot = run(tmp_path / "registry", wikipedia=[tmp_path])
    assert_whole(report, snapshot)
    assert (report.read, report.kept, report.superseded) == (6, 3, 3)
    assert snapshot.manifest["wikis"] == [{"scope": "enwiki", "host": "en.wikipedia.org"}]
    assert snapshot.texts(ids.source_id("wiki:enwiki:12"))[0][1] == prose(7)  # the only one with a date
    for query in ("beta", "https://en.wikipedia.org/wiki/Gamma", "https://en.wikipedia.org/wiki?curid=25"):
        assert lookup(snapshot, query).found, query
    row = explain(snapshot, "Gamma")
    assert (row["input_file"], row["input_offset"]) == ("train-00000-of-00001.parquet", 1)


def test_parquet_files_of_another_kind_are_reported(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "wiki_00").write_bytes(docs([(12, "Alpha", prose(1))]))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "other.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "other.parquet").read_bytes()[:50])
    report, snapshot = run(tmp_path / "registry", wikipedia=[tmp_path])
    assert_whole(report, snapshot)
    assert (report.kept, report.failed) == (1, {"not-a-dump": 1, "corrupt-rows": 1})


# Real data.


@pytest.mark.slow
def test_real_books_in_a_snapshot(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "books"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    report, snapshot = run(tmp_path / "registry", books=[folder])
    assert_whole(report, snapshot)
    assert report.read == len(list(folder.iterdir())) == 25
    assert report.failed == {"html-page": 1}
    assert report.filtered == {}
    assert report.kept + report.duplicate == 24
    keys = [row["key"] for row in rows(snapshot, "sources")]
    assert sum(key.startswith("book:gutenberg:") for key in keys) == 22
    for query in (
        "Alice's Adventures in Wonderland / Lewis Carroll",
        "alice's adventures in wonderland",
        "https://www.gutenberg.org/ebooks/11",
        "book:gutenberg:11",
    ):
        assert resolve(snapshot, query).key == "book:gutenberg:11", query
        assert explain(snapshot, query)["input_file"] == "classics__alice_in_wonderland.txt"
    assert resolve(snapshot, "love among the chickens / p. g. wodehouse").num_documents == 1
    assert (
        explain(snapshot, "https://standardebooks.org/ebooks/p-g-wodehouse/love-among-the-chickens")["status"] == "kept"
    )
    assert explain(snapshot, "not_a_book_gutenberg_404.html.txt")["reason"] == "html-page"


@pytest.mark.slow
def test_real_articles_in_a_snapshot(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "articles"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    report, snapshot = run(tmp_path / "registry", wikipedia=[folder])
    assert_whole(report, snapshot)
    assert report.read == 1530 + 1586 + 1659 + 648
    assert report.failed == {}
    assert report.filtered["empty"] > 2700  # redirects: only their titles were extracted
    assert report.kept + report.duplicate > 2400
    assert sum(report.filtered.values()) >= 12  # titles with "(disambiguation)"
    assert explain(snapshot, "https://en.wikipedia.org/wiki/Anarchism")["status"] == Status.KEPT
    assert resolve(snapshot, "anarchism").key == "wiki:enwiki:12"
