"""The dump reader: every page of namespace 0 ends as a document or a redirect, whatever the state of the file."""

from __future__ import annotations

import io
import os
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.document import Document, Redirect, WikiSite
from pipelines.readers.pages import PageSplitter
from pipelines.readers.streams import open_stream
from pipelines.readers.wikipedia import read_wikipedia
from registry.errors import InputError
from registry.schema import Status
from tests.pipelines.dumps import COMPRESSORS, Page, Revision, dump_xml, multistream, siteinfo, write_dump

NAME = "enwiki-test-pages-articles.xml"


def read(data: bytes, name: str = NAME) -> list[Document | Redirect | WikiSite]:
    return list(read_wikipedia(io.BytesIO(data), name))


def documents(data: bytes, name: str = NAME) -> list[Document]:
    return [item for item in read(data, name) if isinstance(item, Document)]


def outcomes(data: bytes) -> list[tuple[str | None, str | None]]:
    return [(document.title, document.reason) for document in documents(data)]


# What a page is.


def test_a_page_becomes_a_document_and_its_offset_leads_back_to_it() -> None:
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


def test_other_namespaces_are_no_documents() -> None:
    pages = [Page("Talk:A", ns=1), Page("A: the letter"), Page("Template:B", "{{x", ns=10), Page("Portal:C", ns=100)]
    assert outcomes(dump_xml(pages)) == [("A: the letter", None)]


def test_without_ns_elements_the_title_tells() -> None:
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
def test_redirects_in_any_language(page: Page, target: str) -> None:
    assert read(dump_xml([page]))[1:] == [Redirect("enwiki", "A", target)]


@pytest.mark.parametrize("text", ["#Foo [[Bar]] and words", "# [[Bar]]", "#REDIRECT Bar", "#REDIRECT [[#Below]]", ""])
def test_what_only_looks_like_a_redirect_is_a_document(text: str) -> None:
    assert outcomes(dump_xml([Page("A", text)])) == [("A", None)]


def test_the_newest_revision_of_a_page_counts() -> None:
    older = Revision(text="old", timestamp="2001-01-01T00:00:00Z")
    newer = Revision(text="new", timestamp="2021-01-01T00:00:00Z")
    (document,) = documents(dump_xml([Page("A", "middle", timestamp="2010-01-01T00:00:00Z", revisions=(older, newer))]))
    assert (document.markup, document.captured) == ("new", "2021-01-01T00:00:00Z")


def test_of_revisions_of_one_second_the_last_counts() -> None:
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


def test_short_template_names_count_on_their_own_wiki_only() -> None:
    (document,) = documents(dump_xml([Page("A", "{{dp}}")], siteinfo("nlwiki", None)))
    assert document.is_disambiguation


# Which wiki it is.


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
def test_the_wiki_is_told_by_siteinfo_then_name_then_language(info: str | bool, name: str, site: WikiSite) -> None:
    assert read(dump_xml([Page("A")], info), name)[0] == site


def test_a_dump_that_does_not_say_its_wiki_is_refused() -> None:
    with pytest.raises(InputError, match="does not say which wiki"):
        read(b"<page><title>A</title><id>1</id></page>", "pages.xml")


@pytest.mark.parametrize("data", [b"", b"hello", b"<html><body></body></html>", bytes(3 << 20), COMPRESSORS["gz"](b"")])
def test_what_is_no_dump_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(InputError, match=re.escape(f"{NAME} is no MediaWiki dump")):
        read(data)


@pytest.mark.parametrize("data", [dump_xml([]), b"<mediawiki/>"])
def test_a_dump_without_pages_is_a_dump(data: bytes) -> None:
    assert read(data) == [WikiSite("enwiki", "en.wikipedia.org")]


@pytest.mark.parametrize("compress", [None, *COMPRESSORS, "multistream"])
def test_the_bytes_decide_and_not_the_name(tmp_path: Path, compress: str | None) -> None:
    pages = [Page(f"Title {number}", "text " * 50) for number in range(250)]
    path = write_dump(tmp_path / "dump", pages, compress=compress)
    assert list(read_wikipedia(path, NAME)) == read(dump_xml(pages))


# What is broken.


def test_a_malformed_page_costs_itself_and_keeps_its_key() -> None:
    good = dump_xml([Page("A", "one"), Page("B", "two"), Page("C", "three")])
    bad = good.replace(b">two<", b">two &nope; <").replace(b">one<", b">one \xff\xfe<")
    found = documents(bad)
    assert [(d.key, d.title, d.reason) for d in found] == [
        ("wiki:enwiki:1", "A", "malformed-page"),
        ("wiki:enwiki:2", "B", "malformed-page"),
        ("wiki:enwiki:3", "C", None),
    ]
    assert bad[found[1].input_offset :].startswith(b"<page>\n    <title>B")


def test_a_page_without_an_end_costs_itself() -> None:
    data = dump_xml([Page("A"), Page("B"), Page("C")]).replace(b"</page>", b"", 1)
    assert outcomes(data) == [("A", "malformed-page"), ("B", None), ("C", None)]


@pytest.mark.parametrize("missing", [b"<title>A</title>", b"<id>1</id>"])
def test_a_page_without_identity_is_a_failure(missing: bytes) -> None:
    (document,) = documents(dump_xml([Page("A")]).replace(missing, b""))
    assert (document.key, document.reason) == (None, "malformed-page")
    assert document.locator == f"{NAME}:{document.input_offset}"


def test_entities_of_a_doctype_do_not_expand() -> None:
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    doctype = (
        f'<?xml version="1.0"?><!DOCTYPE mediawiki [<!ENTITY l0 "lol">{levels}<!ENTITY f SYSTEM "file:///etc/hosts">]>'
    )
    data = dump_xml([Page("Bomb", "BOMB"), Page("File", "FILE"), Page("Good")])
    data = doctype.encode() + data.replace(b"BOMB", b"&l11;").replace(b"FILE", b"&f;")
    assert outcomes(data) == [("Bomb", "malformed-page"), ("File", "malformed-page"), ("Good", None)]


def test_deep_nesting_does_not_exhaust_the_stack() -> None:
    data = dump_xml([Page("Deep", "DEEP"), Page("Good")]).replace(b"DEEP", b"<a>" * 300_000 + b"</a>" * 300_000)
    assert outcomes(data) == [("Deep", "malformed-page"), ("Good", None)]


def test_a_giant_page_is_a_failure_and_the_next_is_read() -> None:
    data = dump_xml([Page("A"), Page("Giant", "x" * 400_000), Page("C")])
    fragments = list(PageSplitter(open_stream(io.BytesIO(data)), max_page_bytes=100_000))
    assert [fragment.failure and fragment.failure.reason for fragment in fragments] == [None, "too-large", None]
    assert fragments[1].length > 400_000
    assert len(fragments[1].data) < 200_000
    assert data[fragments[2].offset :].startswith(b"<page>\n    <title>C")


def test_an_unreadable_start_is_one_failure() -> None:
    (document,) = documents(COMPRESSORS["bz2"](dump_xml([Page("A")]))[:30])
    assert (document.key, document.reason) == (None, "truncated-stream")


def _pages(num_pages: int = 120) -> list[Page]:
    rng = random.Random(5)
    words = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(500)]
    return [Page(f"Title {number}", " ".join(rng.choices(words, k=150))) for number in range(num_pages)]


PAGES = _pages()
FORMS = {
    "plain": dump_xml(PAGES),
    **{name: compress(dump_xml(PAGES)) for name, compress in COMPRESSORS.items()},
    "multistream": b"".join(multistream(PAGES, pages_per_stream=10)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_dump_is_a_prefix_and_one_failure(form: str) -> None:
    data, whole = FORMS[form], documents(FORMS[form])
    num_read = []
    for cut in random.Random(2).sample(range(len(data) // 10, len(data) - 20), 12):
        *prefix, last = documents(data[:cut])
        assert prefix == whole[: len(prefix)]
        assert last.reason in ("truncated", "truncated-stream")
        num_read.append(len(prefix))
    assert len(PAGES) == len(whole)
    if form != "bz2":  # all of this dump is one block
        assert max(num_read) > len(PAGES) // 2


@pytest.mark.parametrize("form", ["plain", "multistream"])
def test_a_flipped_byte_costs_few_pages(form: str) -> None:
    whole = {document.key: document for document in documents(FORMS[form])}
    num_lost = []
    for place in random.Random(3).sample(range(2000, len(FORMS[form]) - 100), 30):
        data = bytearray(FORMS[form])
        data[place] ^= 0xFF
        found = documents(bytes(data))
        same = [document for document in found if _is_same(document, whole.get(document.key))]
        num_lost.append(len(whole) - len(same))
        assert len(same) == len(whole) or any(document.reason for document in found)
    assert max(num_lost) <= (2 if form == "plain" else 10)
    assert any(num_lost), "no flip hit a page"


def _is_same(found: Document, expected: Document | None) -> bool:
    return expected is not None and (found.title, found.markup, found.reason) == (expected.title, expected.markup, None)


def test_a_hole_in_a_multistream_dump_is_one_failure_at_its_place() -> None:
    parts = list(multistream(PAGES, pages_per_stream=10))
    parts[4] = parts[4][:50] + b"?" * 20 + parts[4][70:]
    found = documents(b"".join(parts))
    assert [document.reason for document in found if document.reason] == ["corrupt-stream"]
    assert [document.title for document in found if not document.reason] == [
        page.title for number, page in enumerate(PAGES) if not 30 <= number < 40
    ]


@given(data=st.binary(max_size=500))
def test_no_bytes_between_pages_break_it(data: bytes) -> None:
    start, end = dump_xml([Page("A"), Page("B")]).split(b"  <page>\n    <title>B", 1)
    titles = [
        document.title for document in documents(start + data + b"<page>\n    <title>B" + end) if not document.reason
    ]
    assert titles == ["A", "B"]


@settings(max_examples=40)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), min_size=1), max_size=5))
def test_any_text_comes_back_as_it_was(texts: list[str]) -> None:
    pages = [Page(f"T{number}", text) for number, text in enumerate(texts)]
    assert [document.markup for document in documents(dump_xml(pages)) if not document.reason] == texts


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    def peak_kb(num_pages: int) -> int:
        pages = (Page(f"Title {number}", "word " * 2000) for number in range(num_pages))
        path = write_dump(tmp_path / f"{num_pages}.xml", pages)
        code = (
            "import resource, sys; from pipelines.readers.wikipedia import read_wikipedia\n"
            f"n = sum(1 for _ in read_wikipedia(sys.argv[1], 'enwiki-x')); assert n == {num_pages} + 1\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        root = Path(__file__).parents[2]
        run = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=True)
        return int(run.stdout)

    small, large = peak_kb(100), peak_kb(3000)  # 1 MB and 30 MB
    assert large < small + 4096


# Real dumps.


def test_the_excerpt_that_gensim_carries() -> None:
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
    # The file has 100 redirects; the one of "Wikipedia:Adding Wikipedia articles to Nupedia" is of namespace 4.
    assert sum(isinstance(item, Redirect) for item in items) == 99


def _manifest(data_dir: Path) -> dict[str, dict[str, int]]:
    """The counts of each Wikipedia dump: pages, and articles (namespace 0, no redirect)."""
    path = data_dir / "MANIFEST.tsv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return {
        row[0]: {key: int(value) for key, value in re.findall(r"(pages|articles|disamb)=(\d+)", row[5])}
        for row in rows
        if row[0].startswith("wikipedia/") and "pages=" in row[5]
    }


def test_of_every_real_dump_every_article_is_read(data_dir: Path) -> None:
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
    # The manifest counts hatnotes in the Italian dump, and knows no Japanese template; these were counted by hand.
    [
        ("enwiki-sample-pages-articles-multistream.xml.bz2", 8),
        ("enwik8_first4MB_corrupt_tail.xml", 15),
        ("it_small-dump.xml.gz", 29),
        ("jawiki-truncated-100k.xml.xz", 6),
        ("tinywiki-pages-articles.xml", 1),
    ],
)
def test_disambiguation_pages_of_real_dumps(data_dir: Path, file: str, num_disambiguation: int) -> None:
    path = data_dir / "wikipedia" / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    found = [item for item in read_wikipedia(path, file) if isinstance(item, Document)]
    assert sum(document.is_disambiguation for document in found) == num_disambiguation
