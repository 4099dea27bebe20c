"""Test damaged and hostile dumps: a broken page is reported with its offset, and all other pages are read."""

from __future__ import annotations

import io
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.document import Document
from pipelines.readers.streams import open_stream
from pipelines.readers.wikipedia.page_splitter import PageSplitter
from tests.costs import LARGE, SMALL, assert_linear
from tests.pipelines.readers.dumps import COMPRESSORS, Page, dump_xml, multistream
from tests.pipelines.readers.test_xml_dump import NAME, documents, outcomes


def test_only_the_malformed_page_is_lost_and_keeps_its_key() -> None:
    good = dump_xml([Page("A", "one"), Page("B", "two"), Page("C", "three")])
    bad = good.replace(b">two<", b">two &nope; <").replace(b">one<", b">one \xff\xfe<")
    found = documents(bad)
    assert [(d.key, d.title, d.reason) for d in found] == [
        ("wiki:enwiki:1", "A", "malformed-page"),
        ("wiki:enwiki:2", "B", "malformed-page"),
        ("wiki:enwiki:3", "C", None),
    ]
    assert bad[found[1].input_offset :].startswith(b"<page>\n    <title>B")


def test_only_the_page_without_an_end_is_lost() -> None:
    data = dump_xml([Page("A"), Page("B"), Page("C")]).replace(b"</page>", b"", 1)
    assert outcomes(data) == [("A", "malformed-page"), ("B", None), ("C", None)]


@pytest.mark.parametrize("missing", [b"<title>A</title>", b"<id>1</id>"])
def test_a_page_without_title_or_id_fails(missing: bytes) -> None:
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


HOSTILE_PAGES: dict[str, Callable[[int], str]] = {
    "blanks after a redirect": lambda n: "#REDIRECT" + " " * (300 * n) + "x",
    "blanks before it": lambda n: " " * (300 * n) + "#",
    "blanks in a template": lambda n: "{{" + " " * (300 * n) + "\x85" * n,
    "templates": lambda n: "{{x " * (100 * n),
    "comments": lambda n: "<!--" * (100 * n),
}


@pytest.mark.parametrize("name", HOSTILE_PAGES)
def test_hostile_pages_take_linear_time(name: str) -> None:
    dumps = {n: dump_xml([Page("A", HOSTILE_PAGES[name](n))]) for n in (SMALL, LARGE)}
    assert all(len(documents(data)) == 1 for data in dumps.values())
    assert_linear(lambda n: documents(dumps[n]))


@pytest.mark.parametrize("head", ["<siteinfo>", "<mediawiki ", "<?xml ", "<!ENTITY ", " "])
def test_hostile_heads_take_linear_time(head: str) -> None:
    dumps = {n: dump_xml([Page("A")], head * (1000 * n // len(head))) for n in (SMALL, LARGE)}
    assert all(documents(data) for data in dumps.values())
    assert_linear(lambda n: documents(dumps[n]))


def test_a_page_over_the_limit_fails_and_the_next_is_read() -> None:
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
def test_a_flipped_byte_loses_few_pages(form: str) -> None:
    whole = {document.key: document for document in documents(FORMS[form])}
    num_lost = []
    for position in random.Random(3).sample(range(2000, len(FORMS[form]) - 100), 30):
        data = bytearray(FORMS[form])
        data[position] ^= 0xFF
        found = documents(bytes(data))
        same = [document for document in found if _is_same(document, whole.get(document.key))]
        num_lost.append(len(whole) - len(same))
        assert len(same) == len(whole) or any(document.reason for document in found)
    assert max(num_lost) <= (2 if form == "plain" else 10)
    assert any(num_lost), "no flip hit a page"


def _is_same(found: Document, expected: Document | None) -> bool:
    return expected is not None and (found.title, found.markup, found.reason) == (expected.title, expected.markup, None)


def test_a_damaged_stream_of_a_multistream_dump_is_one_failure() -> None:
    parts = list(multistream(PAGES, pages_per_stream=10))
    parts[4] = parts[4][:50] + b"?" * 20 + parts[4][70:]
    found = documents(b"".join(parts))
    assert [document.reason for document in found if document.reason] == ["corrupt-stream"]
    assert [document.title for document in found if not document.reason] == [
        page.title for number, page in enumerate(PAGES) if not 30 <= number < 40
    ]


@given(data=st.binary(max_size=500))
def test_no_bytes_between_pages_lose_a_page(data: bytes) -> None:
    start, end = dump_xml([Page("A"), Page("B")]).split(b"  <page>\n    <title>B", 1)
    titles = [
        document.title for document in documents(start + data + b"<page>\n    <title>B" + end) if not document.reason
    ]
    assert titles == ["A", "B"]
