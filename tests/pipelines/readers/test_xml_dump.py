"""Test the dump reader: every page of namespace 0 becomes a document or a redirect, also in damaged files."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.document import Document, Redirect, WikiSite
from pipelines.readers.wikipedia.xml_dump import read_wikipedia
from registry.errors import InputError
from registry.schema import Status
from tests.pipelines.readers.dumps import COMPRESSORS, Page, Revision, dump_xml, siteinfo, write_dump

NAME = "enwiki-test-pages-articles.xml"


def read(data: bytes, name: str = NAME) -> list[Document | Redirect | WikiSite]:
    return list(read_wikipedia(io.BytesIO(data), name))


def documents(data: bytes, name: str = NAME) -> list[Document]:
    return [item for item in read(data, name) if isinstance(item, Document)]


def outcomes(data: bytes) -> list[tuple[str | None, str | None]]:
    return [(document.title, document.reason) for document in documents(data)]


# Pages: documents, redirects, and other namespaces.


def test_a_page_becomes_a_document_with_its_byte_range() -> None:
    data = dump_xml([Page("A & B", "Text", page_id=12, timestamp="2016-12-01T08:15:00Z"), Page("Ünïcode <x>")])
    site, first, second = read(data)
    assert site == WikiSite("enwiki", "en.wikipedia.org")
    assert isinstance(first, Document)
    assert (first.key, first.locator, first.scope) == ("wiki:enwiki:12", "wiki:enwiki:12", "enwiki")
    assert (first.title, first.url) == ("A & B", "https://en.wikipedia.org/wiki/A_%26_B")
    assert (first.markup, first.captured, first.status) == ("Text", "2016-12-01T08:15:00Z", Status.KEPT)
    assert isinstance(second, Document)
    assert second.title == "Ünïcode <x>"
    for document in (first, second):
        fragment = data[document.input_offset : document.input_offset + document.input_length]
        assert fragment.startswith(b"<page>")
        assert fragment.endswith(b"</page>")


def test_pages_of_other_namespaces_are_left_out() -> None:
    pages = [Page("Talk:A", ns=1), Page("A: the letter"), Page("Template:B", "{{x", ns=10), Page("Portal:C", ns=100)]
    assert outcomes(dump_xml(pages)) == [("A: the letter", None)]


def test_without_ns_elements_the_title_gives_the_namespace() -> None:
    titles = ["Talk:A", "2001: A Space Odyssey", "USER TALK:B", "file:c.png", "C", ":D"]
    pages = [Page(title, "text", ns=None) for title in titles]
    kept = [("2001: A Space Odyssey", None), ("C", None), (":D", None)]
    assert outcomes(dump_xml(pages)) == kept
    assert outcomes(dump_xml(pages, siteinfo=False)) == kept


@pytest.mark.parametrize(
    ("page", "target"),
    [
        (Page("A", "#REDIRECT [[other]]", redirect="Target & more"), "Target & more"),
        (Page("A", "#redirect [[Target_page#Section|label]] {{R from x}}"), "Target page"),
        (Page("A", "#REDIRECT: [[:Target]] some words of an old dump"), "Target"),
        (Page("A", "\n #Перенаправление [[Цель]]\n[[Категория:X]]"), "Цель"),
        (Page("A", "#転送 [[目標]]"), "目標"),
        (Page("A", "#NeverSeenWord [[Target]]"), "Target"),
        (Page("A", "#NeverSeenWord [[Target]]", redirect=""), "Target"),
        (Page("A", "#REDIRECT [[B%C3%A9]]"), "Bé"),
    ],
)
def test_redirects_in_any_language_are_recognised(page: Page, target: str) -> None:
    assert read(dump_xml([page]))[1:] == [Redirect("enwiki", "A", target)]


@pytest.mark.parametrize("text", ["#Foo [[Bar]] and words", "# [[Bar]]", "#REDIRECT Bar", "#REDIRECT [[#Below]]", ""])
def test_a_page_that_only_looks_like_a_redirect_is_a_document(text: str) -> None:
    assert outcomes(dump_xml([Page("A", text)])) == [("A", None)]


def test_the_newest_revision_of_a_page_is_read() -> None:
    older = Revision(text="old", timestamp="2001-01-01T00:00:00Z")
    newer = Revision(text="new", timestamp="2021-01-01T00:00:00Z")
    (document,) = documents(dump_xml([Page("A", "middle", timestamp="2010-01-01T00:00:00Z", revisions=(older, newer))]))
    assert (document.markup, document.captured) == ("new", "2021-01-01T00:00:00Z")


def test_of_revisions_with_one_time_stamp_the_last_is_read() -> None:
    (document,) = documents(dump_xml([Page("A", "last", revisions=(Revision(text="first"),))]))
    assert document.markup == "last"


def test_other_content_models_are_filtered() -> None:
    pages = [Page("Q1", "{}", model="wikibase-item", format="application/json"), Page("A", model=None, format=None)]
    assert outcomes(dump_xml(pages)) == [("Q1", "not-wikitext"), ("A", None)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("'''A''' may be:\n* [[B]]\n{{disambiguation|geo}}", True),
        ("{{Disambig}}", True),
        ("{{ Template:Human name_disambiguation \n}}", True),
        ("{{Begriffsklärung}}", True),
        ("{{неоднозначность|тип}}", True),
        ("{{曖昧さ回避}}", True),
        ("x __DISAMBIG__", True),
        ("{{nota disambigua|x}} {{dablink|y}} {{disambiguation needed}} {{R from incomplete disambiguation}}", False),
        ("<!-- {{disambig}} -->", False),
        ("{{dp}}", False),
    ],
)
def test_disambiguation_pages_are_marked(text: str, expected: bool) -> None:
    (document,) = documents(dump_xml([Page("A", text)]))
    assert document.is_disambiguation is expected


def test_short_template_names_mark_pages_only_on_their_own_wiki() -> None:
    (document,) = documents(dump_xml([Page("A", "{{dp}}")], siteinfo("nlwiki", None)))
    assert document.is_disambiguation


# The wiki that a dump is of.


@pytest.mark.parametrize(
    ("info", "name", "site"),
    [
        (siteinfo("dewiktionary", None), "x.xml", WikiSite("dewiktionary", "de.wiktionary.org")),
        (siteinfo(None, "http://it.wikipedia.org/wiki/Pagina"), "x.xml", WikiSite("itwiki", "it.wikipedia.org")),
        (siteinfo("tmp-wp", "https://wiki.example.org/x"), "x.xml", WikiSite("tmp-wp", "wiki.example.org")),
        (False, "zh_yuewiki-20240101-pages-articles.xml", WikiSite("zh_yuewiki", "zh-yue.wikipedia.org")),
        (False, "articles.xml", WikiSite("enwiki", "en.wikipedia.org")),  # by xml:lang
        ("<siteinfo><dbname>&x;", "frwiki-x.xml", WikiSite("frwiki", "fr.wikipedia.org")),
    ],
)
def test_the_wiki_follows_from_siteinfo_then_name_then_language(info: str | bool, name: str, site: WikiSite) -> None:
    assert read(dump_xml([Page("A")], info), name)[0] == site


def test_a_dump_of_an_unknown_wiki_is_refused() -> None:
    with pytest.raises(InputError, match="does not say which wiki"):
        read(b"<page><title>A</title><id>1</id></page>", "pages.xml")


@pytest.mark.parametrize("data", [b"", b"hello", b"<html><body></body></html>", bytes(3 << 20), COMPRESSORS["gz"](b"")])
def test_a_file_that_is_no_dump_is_refused_with_its_name(data: bytes) -> None:
    with pytest.raises(InputError, match=re.escape(f"{NAME} is no MediaWiki dump")):
        read(data)


@pytest.mark.parametrize("data", [dump_xml([]), b"<mediawiki/>"])
def test_a_dump_without_pages_gives_its_wiki(data: bytes) -> None:
    assert read(data) == [WikiSite("enwiki", "en.wikipedia.org")]


@pytest.mark.parametrize("compress", [None, *COMPRESSORS, "multistream"])
def test_compression_is_recognised_by_the_bytes_not_the_name(tmp_path: Path, compress: str | None) -> None:
    pages = [Page(f"Title {number}", "text " * 50) for number in range(250)]
    path = write_dump(tmp_path / "dump", pages, compress=compress)
    assert list(read_wikipedia(path, NAME)) == read(dump_xml(pages))


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1), max_size=5))
def test_any_text_is_read_back_unchanged(texts: list[str]) -> None:
    pages = [Page(f"T{number}", text) for number, text in enumerate(texts)]
    assert [document.markup for document in documents(dump_xml(pages)) if not document.reason] == texts


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to ask for a process's peak memory")
def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    def peak_kb(num_pages: int) -> int:
        pages = (Page(f"Title {number}", "word " * 2000) for number in range(num_pages))
        path = write_dump(tmp_path / f"{num_pages}.xml", pages)
        code = (
            "import sys; from pipelines.readers.wikipedia.xml_dump import read_wikipedia\n"
            f"n = sum(1 for _ in read_wikipedia(sys.argv[1], 'enwiki-x')); assert n == {num_pages} + 1\n"
            # not ru_maxrss, which a child process inherits from its parent
            "print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])"
        )
        root = Path(__file__).parents[3]
        run = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=True)
        return int(run.stdout)

    small, large = peak_kb(100), peak_kb(4000)  # 1 MB and 40 MB
    assert small > 10_000
    assert large < small + 4096


# Real dumps.


def test_the_excerpt_in_gensim_is_read_whole() -> None:
    spec = find_spec("gensim")
    if spec is None or spec.origin is None:
        pytest.skip("gensim is not installed")
    folder = Path(spec.origin).parent / "test" / "test_data"
    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    items = list(read_wikipedia(folder / name, name))
    found = [item for item in items if isinstance(item, Document)]
    assert len(found) == 106
    assert not any(document.reason for document in found)
    assert sum(document.is_disambiguation for document in found) == 8
    # The file has 100 redirects; "Wikipedia:Adding Wikipedia articles to Nupedia" is one of namespace 4.
    assert sum(isinstance(item, Redirect) for item in items) == 99


def _manifest(data_dir: Path) -> dict[str, dict[str, int]]:
    """Return the counts of each Wikipedia dump: pages, and articles (namespace 0, no redirect)."""
    path = data_dir / "MANIFEST.tsv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return {
        row[0]: {key: int(value) for key, value in re.findall(r"(pages|articles|disamb)=(\d+)", row[5])}
        for row in rows
        if row[0].startswith("wikipedia/") and "pages=" in row[5]
    }


def test_every_article_of_every_real_dump_is_read(data_dir: Path) -> None:
    manifest = _manifest(data_dir)
    failures = {}
    for file, counts in manifest.items():
        found = [d for d in read_wikipedia(data_dir / file, os.path.basename(file)) if isinstance(d, Document)]
        assert sum(document.status is not Status.FAILED for document in found) == counts["articles"], file
        failed = [document.reason for document in found if document.status is Status.FAILED]
        if failed:
            failures[os.path.basename(file)] = failed
        assert len({document.input_offset for document in found}) == len(found)
    assert len(manifest) > 50, "no real dumps were read"
    assert all(reasons == ["truncated"] for reasons in failures.values()), failures
    assert all("truncated" in file or "corrupt" in file for file in failures), failures


@pytest.mark.parametrize(
    ("file", "num_disambiguation"),
    # The manifest counts hatnotes in the Italian dump, and no Japanese template; these were counted by hand.
    [
        ("enwiki-sample-pages-articles-multistream.xml.bz2", 8),
        ("enwik8_first4MB_corrupt_tail.xml", 15),
        ("it_small-dump.xml.gz", 29),
        ("jawiki-truncated-100k.xml.xz", 6),
        ("tinywiki-pages-articles.xml", 1),
    ],
)
def test_disambiguation_pages_of_real_dumps_are_recognised(data_dir: Path, file: str, num_disambiguation: int) -> None:
    path = data_dir / "wikipedia" / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    found = [item for item in read_wikipedia(path, file) if isinstance(item, Document)]
    assert sum(document.is_disambiguation for document in found) == num_disambiguation
