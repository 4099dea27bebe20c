"""Test the reader of web archives: which records become pages, and the reasons why others do not."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import TypeAlias

import pytest

from pipelines.document import Document, Form
from pipelines.ingest import IngestConfig, ingest
from pipelines.readers.web import archive as module
from pipelines.readers.web.archive import read_archive
from pipelines.report import IngestReport
from pipelines.text.extract import HtmlExtractor
from registry.errors import InputError
from registry.identity import WebSource
from registry.schema import Status
from registry.snapshot import Registry
from tests.pipelines.readers.archives import WORDS, arc_record, by_record, page, record, response

Rows: TypeAlias = list[dict[str, object]]

URL = "http://Example.com:80/a/../b?y=2&x=1#top"


def read(*records: bytes, web_source: WebSource = WebSource.DOMAIN) -> list[Document]:
    return list(read_archive(io.BytesIO(by_record(records)), "crawl.warc.gz", web_source))


def one(*records: bytes) -> Document:
    (document,) = read(*records)
    return document


def test_a_page_is_a_document_of_its_domain() -> None:
    found = one(record(URL, response(page(), media_type="text/html; charset=latin-1")))
    assert (found.key, found.locator, found.url) == ("web:example.com", "http://example.com/b?x=1&y=2", URL)
    assert (found.form, found.charset, found.captured) == (Form.HTML, "latin-1", "2024-01-02T03:04:05Z")
    assert (found.input_file, found.input_offset, found.input_stored) == ("crawl.warc.gz", 0, True)


@pytest.mark.parametrize(
    ("web_source", "key"),
    [
        (WebSource.DOMAIN, "web:alice.github.io"),
        (WebSource.HOST, "web:www.alice.github.io"),
        (WebSource.PAGE, "web:https://www.alice.github.io/x?q=1"),
    ],
)
def test_the_key_follows_from_the_web_source(web_source: WebSource, key: str) -> None:
    (found,) = read(record("https://www.Alice.github.io/x?q=1", response(page())), web_source=web_source)
    assert found.key == key


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (record(URL, response(b"", status="404 Not Found")), "http-status"),
        (record(URL, response(b"", status="503 Busy")), "http-status"),
        (record(URL, response(b"", status="206 Partial Content")), "http-status"),
        (record(URL, response(b"", status="301 Moved", fields="Location: /x\r\n")), "redirect"),
        (record(URL, response(b"GIF89a", media_type="image/gif")), "media-type"),
        (record(URL, response(b"\x00\x01", media_type="application/octet-stream")), "media-type"),
        (record("http://example.com/robots.txt", response(b"User-agent: *", media_type="text/plain")), "media-type"),
        (record("dns:example.com", b"20240102030405\nexample.com. 60 IN A 1.2.3.4", media_type="text/dns"), "not-http"),
        (record("urn:uuid:1234", b"notes", kind="resource", media_type="text/plain"), "not-http"),
        (record(URL, b"", kind="revisit", fields="WARC-Profile: x"), "revisit"),
        (record(URL, b"more", kind="continuation", fields="WARC-Segment-Number: 2"), "segment"),
        (record(URL, response(page()), fields="WARC-Segment-Number: 3"), "segment"),
        (record(URL, b"GET / HTTP/1.1\r\n\r\n", kind="request"), "no-response"),
    ],
)
def test_a_record_that_is_no_page_is_filtered_with_its_reason(data: bytes, reason: str) -> None:
    found = one(data)
    assert (found.status, found.reason) == (Status.FILTERED, reason)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (record(None, response(page())), "no-url"),
        (record("http:///nothing", response(page())), "bad-host"),
        (record("http://[::1/x", response(page())), "bad-url"),
        (record(URL, response(b"\x1f\x8b\x08\xff" * 20, fields="Content-Encoding: gzip\r\n")), "content-encoding"),
    ],
)
def test_an_unreadable_record_fails_with_its_reason(data: bytes, reason: str) -> None:
    found = one(data)
    assert (found.status, found.reason) == (Status.FAILED, reason)


@pytest.mark.parametrize("kind", ["warcinfo", "metadata", "unheard-of"])
def test_a_record_about_records_gives_no_document(kind: str) -> None:
    assert read(record(URL, b"x: y", kind=kind), record(URL, response(page()))) != []
    assert len(read(record(URL, b"x: y", kind=kind), record(URL, response(page())))) == 1


def test_a_request_with_an_answer_in_the_file_gives_no_document() -> None:
    request = record(URL, b"GET / HTTP/1.1\r\n\r\n", kind="request")
    answer = record(URL, response(page()))
    for items in ((request, answer), (answer, request), (request, request, answer)):
        assert one(*items).status is Status.KEPT


def test_the_number_of_waiting_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING", 10)
    items = [record(f"http://example.com/{number}", b"GET", kind="request") for number in range(50)]
    assert len(read(*items)) == 10


def test_html_without_a_media_type_is_recognised_by_its_start() -> None:
    for content in (page(), b"\xef\xbb\xbf<!-- x --> <HTML>"):
        assert one(record(URL, response(content, media_type=""))).form is Form.HTML
    assert one(record(URL, page(), kind="resource", media_type="text/html")).form is Form.HTML


def test_plain_text_and_conversions_are_read_as_text() -> None:
    plain = one(record(URL, response(WORDS.encode("utf-16"), media_type="text/plain; charset=utf-16")))
    assert (plain.form, plain.charset) == (Form.TEXT, "utf-16")
    wet = one(record(URL, WORDS.encode(), kind="conversion", media_type="text/plain"))
    assert (wet.form, wet.markup) == (Form.TEXT, WORDS.encode())


def test_angle_brackets_around_a_url_are_removed() -> None:
    assert one(record(f"<{URL}>", response(page()))).key == "web:example.com"


def test_arc_dates_are_converted_to_iso_8601() -> None:
    data = arc_record("http://a.example/", response(page()), date="20080430204825")
    (found,) = read_archive(io.BytesIO(data), "x.arc")
    assert found.captured == "2008-04-30T20:48:25Z"


@pytest.mark.parametrize("date", ["2014", "2014-01", "2014-01-02", "2014-01-02T03:04:05.678Z", "2014-01-02T03:04Z"])
def test_dates_of_any_precision_are_kept(date: str) -> None:
    assert one(record(URL, response(page()), date=date)).captured == date
    assert one(record(URL, response(page()), date="blue monday")).captured == ""


@pytest.mark.parametrize("data", [b"no archive\n" * 9, b"\x00" * 100, b"", b"PK\x03\x04...."])
def test_a_file_that_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="x is no web archive"):
        list(read_archive(io.BytesIO(data), "x"))


class TestIngest:
    """Ingest of archives into a snapshot."""

    @staticmethod
    def ingested(folder: Path, *archives: list[bytes], **config: object) -> tuple[IngestReport, Rows]:
        paths = []
        for number, items in enumerate(archives):
            paths.append(folder / f"crawl-{number}.warc.gz")
            paths[-1].write_bytes(by_record(items))
        config = IngestConfig(web=tuple(map(str, paths)), **config)  # type: ignore[arg-type, assignment]
        report = ingest(config, registry_uri=folder / "registry")  # type: ignore[arg-type]
        rows = Registry.open(folder / "registry").snapshot().table("documents").to_pylist()
        return report, rows

    def test_the_newest_text_wins_and_later_answers_without_text_do_not(self, tmp_path: Path) -> None:
        url, words = "http://a.example/x", "Nothing of this was in the page when it was read before, not a word of it"
        items = [
            record(url, response(page()), date="2020-01-01T00:00:00Z"),
            record(url, response(page(words)), date="2021-01-01T00:00:00Z"),
            record(url, b"", kind="revisit", date="2022-01-01T00:00:00Z"),
            record(url, response(b"gone", status="404 Not Found"), date="2023-01-01T00:00:00Z"),
            record(url, response(b"", status="301 Moved"), date="2024-01-01T00:00:00Z"),
        ]
        report, rows = self.ingested(tmp_path, items)
        assert (report.read, report.kept, report.superseded) == (5, 1, 1)
        assert report.filtered == {"revisit": 1, "http-status": 1, "redirect": 1}
        (kept,) = [row for row in rows if row["status"] == "kept"]
        assert kept["captured"] == "2021-01-01T00:00:00Z"
        assert len({row["doc_id"] for row in rows}) == 1

    def test_titles_of_web_pages_are_no_aliases(self, tmp_path: Path) -> None:
        report, rows = self.ingested(tmp_path, [record("http://a.example/", response(page(title="Home")))])
        snapshot = Registry.open(tmp_path / "registry").snapshot()
        assert rows[0]["title"] == "Home"
        assert snapshot.table("aliases").num_rows == 0
        assert report.sources == {"web": 1}

    @pytest.mark.parametrize(("web_source", "num_sources"), [("domain", 1), ("host", 2), ("page", 3)])
    def test_the_manifest_records_the_web_source(self, tmp_path: Path, web_source: str, num_sources: int) -> None:
        items = [
            record(f"http://{url}", response(page(f"{WORDS} {number} times {number}")))
            for number, url in enumerate(("www.a.example/", "www.a.example/2", "blog.a.example/"))
        ]
        report, _ = self.ingested(tmp_path, items, web_source=WebSource(web_source))
        assert report.sources == {"web": num_sources}
        configuration = Registry.open(tmp_path / "registry").snapshot().manifest["configuration"]
        assert configuration["granularity"]["web"] == web_source
        assert configuration["key_schemes"]["web"].startswith("web:<")

    def test_a_file_that_is_no_archive_fails_and_the_others_are_read(self, tmp_path: Path) -> None:
        (tmp_path / "other.warc").write_bytes(b"nothing of the kind\n")
        (tmp_path / "crawl.warc.gz").write_bytes(by_record([record(URL, response(page()))]))
        report = ingest(IngestConfig(web=(str(tmp_path),)), registry_uri=tmp_path / "registry")
        assert (report.kept, report.failed) == (1, {"not-an-archive": 1})

    def test_the_configuration_names_the_extractor_and_its_release(self) -> None:
        config = IngestConfig(web=("x",))
        assert config.shaping()["extractors"]["html"].startswith("resiliparse ")
        other = dataclasses.replace(config, html=HtmlExtractor.TRAFILATURA)
        assert other.shaping()["extractors"]["html"].startswith("trafilatura ")


def test_real_archives_fail_only_for_known_reasons(data_dir: Path) -> None:
    found = [
        document
        for path in sorted((data_dir / "web" / "odd").glob("*"))
        if "double-single" not in path.name
        for document in read_archive(path, path.name)
    ]
    mementos = [document for document in found if document.input_file == "ipwb--5mementos.warc"]
    assert len(mementos) == 7  # bare line feeds
    assert {document.reason for document in found if document.status is Status.FAILED} == {
        "bad-record",
        "no-url",
        "truncated-record",
    }
    assert sum(document.status is Status.KEPT for document in found) > 250
