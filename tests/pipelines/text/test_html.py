"""Test web pages to title and main content: encodings, boilerplate, and pages made to be slow."""

from __future__ import annotations

import pytest

from pipelines.document import Document, Form
from pipelines.text.extract import HtmlExtractor, decode, extract, html_to_text, normalise
from registry.errors import RecordError
from registry.schema import Kind
from tests.costs import assert_linear
from tests.pipelines.readers.archives import WORDS, page

GERMAN = "Die Straße führt über größere Brücken nach Süden, wo es wärmer wird und Bäume blühen."
RUSSIAN = "Это довольно длинное предложение на русском языке, по которому видно кодировку страницы."
JAPANESE = "これは文字コードを見分けるために書かれた、それなりに長い日本語の文章です。"


@pytest.mark.parametrize("extractor", HtmlExtractor)
def test_main_content_and_title_without_boilerplate(extractor: HtmlExtractor) -> None:
    title, text = html_to_text(page(title="Of  foxes\n").decode(), extractor)
    assert title == "Of foxes"
    assert WORDS in text
    assert "Imprint" not in text
    assert "Home" not in text


@pytest.mark.parametrize(
    ("payload", "charset", "text"),
    [
        (GERMAN.encode(), "", GERMAN),
        (GERMAN.encode("latin-1"), "iso-8859-1", GERMAN),
        (GERMAN.encode("cp1252"), "", GERMAN),
        (GERMAN.encode(), "iso-8859-1", GERMAN),  # wrong header: valid UTF-8 is rarely UTF-8 by chance
        (GERMAN.encode("latin-1"), "utf-8", GERMAN),  # wrong header again
        (GERMAN.encode("utf-16"), "", GERMAN),
        (b"\xef\xbb\xbf" + GERMAN.encode(), "latin-1", GERMAN),
        (RUSSIAN.encode("cp1251"), "windows-1251", RUSSIAN),
        (RUSSIAN.encode("cp1251"), "", RUSSIAN),
        (f"<meta charset=koi8-r>{RUSSIAN}".encode("koi8-r"), "", f"<meta charset=koi8-r>{RUSSIAN}"),
        (JAPANESE.encode("shift_jis"), "", JAPANESE),
        (JAPANESE.encode("euc-jp"), "x-euc-jp", JAPANESE),
        (JAPANESE.encode("iso-2022-jp"), "iso-2022-jp", JAPANESE),
        (b"plain", "no-such-encoding", "plain"),
        (b"", "", ""),
    ],
)
def test_payloads_are_decoded_by_their_encoding(payload: bytes, charset: str, text: str) -> None:
    assert decode(payload, charset) == text


def test_bytes_invalid_in_every_encoding_are_decoded_nevertheless() -> None:
    assert isinstance(decode(bytes(range(256)), "utf-8"), str)


def test_text_is_normalised() -> None:
    assert normalise("a\r\nb\0c \t d\r\r\r\r\ne\ud800") == "a\nbc d\n\ne"


def test_extract_sets_title_and_text_by_form() -> None:
    found = Document(kind=Kind.WEB, key="web:a.example", locator="", form=Form.HTML, markup=page(title="T"))
    extract(found)
    assert (found.title, found.markup) == ("T", "")
    assert WORDS in found.text
    plain = Document(kind=Kind.WEB, key="web:a.example", locator="", markup=GERMAN.encode("latin-1"), charset="latin1")
    extract(plain)
    assert plain.text == GERMAN


@pytest.mark.parametrize("tag", ["div", "b", "x-y", "table><tr><td", "svg", "q"])
def test_deeply_nested_html_is_refused_before_it_is_parsed(tag: str) -> None:
    with pytest.raises(RecordError, match="too-deep"):
        html_to_text(f"<{tag}>" * 50_000)


@pytest.mark.parametrize(
    "piece", ["<p>word ", "<li>word", "<br>", "<td>x", "<div>a</div>", "&amp;", "<", "<!--", "<a b='"]
)
def test_long_pages_take_linear_time(piece: str) -> None:
    assert_linear(lambda size: html_to_text(piece * size * 9))
