"""Test wikitext to text: each kind of markup, damage, hostile input, and agreement with mwparserfromhell."""

from __future__ import annotations

import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.document import Document, Form
from pipelines.readers.wikipedia.xml_dump import read_wikipedia
from pipelines.text.extract import extract, wikitext_to_text
from registry.schema import Kind, Status
from tests.costs import LARGE, SMALL, assert_linear

CASES = {
    "nested templates": ("a {{x|{{y|}}|[[z]]}} b", "a b"),
    "template arguments": ("a {{{1|{{x}}}}} b", "a b"),
    "template over lines": ("{{Infobox\n| a = {{b\n|c}}\n|}}\nText", "Text"),
    "table": ('a\n{| class="x"\n! h\n|-\n| b || c\n|}\nd', "a\n\nd"),
    "table in a table": ("{|\n|\n{|\n|x\n|}\n|y\n|}\nz", "z"),
    "indented table": ("a\n::{|\n|x\n|}\nb", "a\n\nb"),
    "HTML table": ("a <table><tr><td><table></table>b</td></tr></table> c", "a c"),
    "template in a table": ("{|\n|{{x\n|}}\n|}\ny", "y"),
    "reference": ('a<ref name="x">b {{cite}}</ref>, c<ref name=y/>.', "a, c."),
    "references": ("a\n\n== References ==\n<references>\n<ref>x</ref></references>", "a"),
    "math": ("where <math>x < y</math> holds", "where holds"),
    "gallery": ("a\n<gallery>\nFile:x.jpg|b\n</gallery>\nc", "a\n\nc"),
    "code": ('a <syntaxhighlight lang="py">b = [[1]]</syntaxhighlight> <code>c</code>', "a c"),
    "comment": ("a<!-- b -->c\n<!-- a line -->\nd", "ac\nd"),
    "nowiki": ("<nowiki>[[a]] {{b}} ''c''</nowiki> <nowiki/>d", "[[a]] {{b}} ''c'' d"),
    "link": ("[[a]] [[b|c]] [[bus]]es [[d#e|f]] [[:Category:g]]", "a c buses f Category:g"),
    "pipe trick": ("[[Foo (bar)|]] [[Help:X|]] [[Seattle, Washington|]]", "Foo X Seattle"),
    "file": ("[[File:a.jpg|thumb|b [[c|d]] e]]f [[Datei:g.png]][[Файл:h.svg|мини|i]]j", "f j"),
    "file of an unknown namespace": ("[[Bestaand:a.JPG|duum|b]]c", "c"),
    "link to a file": ("[[:File:a.jpg]]", "File:a.jpg"),
    "category": ("a\n[[Category:b]]\n[[Kategorie:c|d]]\n[[カテゴリ:e]]", "a"),
    "interlanguage": ("a\n[[de:B]]\n[[zh-min-nan:C]]\n[[simple:D]]", "a"),
    "a title with a colon": (
        "[[CSI: Miami]] [[Re:Zero]] [[2001: A Space Odyssey]]",
        "CSI: Miami Re:Zero 2001: A Space Odyssey",
    ),
    "external link": (
        "[http://a.b c [[d]] e] [https://f.g] [//h.i j] [mailto:k@l m] http://n.o",
        "c d e j m http://n.o",
    ),
    "external link, wide blank": ("[http://a.b\u3000目標]", "目標"),
    "quotes": ("'''a''' ''b'' '''''c''''' d's ''''e''''", "a b c d's 'e'"),
    "quotes around a template": ("a ''{{lang|ar|x}}'' b", "a b"),
    "heading": ("== a ==\nb\n===c===\nd", "a\n\nb\n\nc\n\nd"),
    "empty sections": ("a\n== b ==\n=== c ===\n== d ==\ne\n== f ==\n{{x}}", "a\n\nd\n\ne"),
    "lists": ("* a\n** b\n# c\n; d : e\n: f\n----\ng", "a\nb\nc\nd : e\nf\n\ng"),
    "tags": ('a<br/>b<sup>2</sup> <span style="x">c</span><div>d</div>', "a\nb2 c\nd"),
    "what is no tag": ("if a < b and <nick> c > d", "if a < b and <nick> c > d"),
    "entities": ("a&nbsp;b &amp; &lt;c&gt; &eacute; &#169; &#x263A; &unknown; AT&T", "a b & <c> é © ☺ &unknown; AT&T"),
    "entities are no markup": ("&#42; a &#91;&#91;b&#93;&#93;", "* a [[b]]"),
    "joiners": ("می&zwnj;خواهم", "می\u200cخواهم"),
    "behaviour switches": ("__NOTOC__a__БЕЗ_ОГЛАВЛЕНИЯ__ __init__", "a __init__"),
    "language variants": ("-{zh-hans:计; zh-hant:計}-算 -{a}- -{H|zh-cn:x}-", "计算 a"),
    "what templates leave": ("'''A''' ({{IPA|x}}; born 1) and ({{y}}) is {{z}}, b", "A (born 1) and is, b"),
    "lines without a word": ("a\n*{{x}}.\n* b", "a\n\nb"),
    "blanks": ("  a \t b\u00a0c\n\n\n\nd  ", "a b c\n\nd"),
    "unclosed template": ("a {{b|c d\n\ne", "a b|c d\n\ne"),
    "unclosed table": ("a\n{|\n| b\n| c\n\nd", "a\n\nd"),
    "unclosed link": ("a [[b c\n\nd", "a b c\n\nd"),
    "unclosed file": ("a\n[[File:x.jpg|thumb|y [[z]]\nb", "a\nb"),
    "unclosed reference": ("a<ref>b\n\nc<ref>d</ref> e", "ab\n\nc e"),
    "unclosed comment": ("a <!-- b\n\nc", "a b\n\nc"),
    "unclosed math": ("a <math>b\n\nc", "a b\n\nc"),
    "stray closing marks": ("a }} b ]] c </ref> d --> |}\n|}\ne", "a b c d --> |}\n\ne"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_markup(name: str) -> None:
    markup, text = CASES[name]
    assert wikitext_to_text(markup) == text


def hostile(n: int) -> dict[str, str]:
    """Return markup for which a quadratic pass would take minutes; every size grows with `n`."""
    return {
        "templates": "{{{{" * (50 * n),
        "template openings and ends": "{{a|" * (50 * n) + "}}" * (50 * n),
        "crossed": "{{a|[[" * (30 * n) + "}}" * (30 * n),
        "links": "[[" * (50 * n),
        "nested links": "[[a|" * (50 * n) + "]]" * (50 * n),
        "files": "[[File:" * (50 * n),
        "references": "<ref>" * (50 * n),
        "elements of two kinds": "<math>" * (30 * n) + "<ref>" * (30 * n),
        "ends of elements": "</ref>" * (50 * n),
        "unfinished tags": "<ref " * (50 * n),
        "comments": "<!--" * (50 * n),
        "tables": "{|\n" * (50 * n),
        "tables and templates": "{|\n{{" * (40 * n) + "|}" * 100,
        "HTML tables": "<table>" * (50 * n),
        "indentation": (": " * (50 * n) + "{|") * 4,
        "external links": "[http://x " * (50 * n),
        "external link of links": "[http://x" + " [[a]]" * (50 * n),
        "blanks in a link": "[//x" + " " * (200 * n),
        "quotes": "'" * (200 * n),
        "headings": ("=" * 200 + "\n") * n,
        "brackets": "(;" * (100 * n),
        "blanks in brackets": "(" + " " * (200 * n),
        "underscores": "_" * (200 * n),
        "ampersands": "&a" * (100 * n),
        "variants": "-{a;" * (50 * n),
        "newlines": "\n" * (200 * n),
        "pipe trick": "[[x" + " " * (200 * n) + "x|]]",
        "pipe trick of brackets": "[[x" + "( " * (100 * n) + "x|]]",
        "file names": "[[x:" + ".jpg " * (50 * n) + "x|]]",
    }


@pytest.mark.parametrize("name", hostile(1))
def test_hostile_markup_takes_linear_time(name: str) -> None:
    markup = {n: hostile(n)[name] for n in (SMALL, LARGE)}
    assert len(markup[LARGE]) > 3 * len(markup[SMALL])
    assert_linear(lambda n: wikitext_to_text(markup[n]))


MARKS = """
    {{ }} {{{ }}} [[ ]] [ ] {| |} | || |- ! ' '' ''' == === * # : ; <ref> </ref> <ref/> <nowiki> </nowiki> <!-- --> <br>
    <math> </math> <table> </table> File: Category: de: http://x & &amp; &#0; &#xD800; -{ }- __ __TOC__ ( ) , a Б 世
"""
FRAGMENTS = st.sampled_from([*MARKS.split(), "\n", "\n\n", " "])


@given(st.lists(st.one_of(FRAGMENTS, st.text(max_size=5)), max_size=60).map("".join))
def test_any_markup_gives_normalised_text(markup: str) -> None:
    text = wikitext_to_text(markup)
    assert text == text.strip()
    assert "\n\n\n" not in text
    assert not re.search(r"[ \t]{2}|[ \t]$|^[ \t]", text, re.MULTILINE)
    assert not re.search("[\ufdd0-\ufdef]", text) or re.search("[\ufdd0-\ufdef]", markup)


WORDS = st.lists(st.text("abcdefghij", min_size=2, max_size=8), min_size=1, max_size=20)


@given(
    WORDS, st.sampled_from(["{{x|", "[[", "[[File:x|", "<ref>", "<!--", "{|", "<math>", "[http://x ", "'''", "<table>"])
)
def test_an_unclosed_mark_never_loses_the_paragraphs_after_it(words: list[str], mark: str) -> None:
    rest = " ".join(words)
    assert wikitext_to_text(f"before\n\n{mark}\n\n{rest}").endswith(rest)


@given(WORDS)
def test_plain_text_is_unchanged(words: list[str]) -> None:
    assert wikitext_to_text(" ".join(words)) == " ".join(words)


def test_extract_sets_the_text_and_drops_the_markup() -> None:
    document = Document(kind=Kind.WIKI, key="wiki:enwiki:1", locator="", form=Form.WIKITEXT, markup="'''A''' [[b]]")
    extract(document)
    assert (document.text, document.markup) == ("A b", "")


def test_extract_gives_no_text_to_a_document_that_has_ended() -> None:
    document = Document(kind=Kind.WIKI, key="wiki:enwiki:1", locator="", markup="{}")
    document.end(Status.FILTERED, "not-wikitext")
    extract(document)
    assert (document.text, document.markup, document.reason) == ("", "", "not-wikitext")


# Comparison with mwparserfromhell, which keeps what is removed here: tables, references, files, categories.

_REMOVED_TAGS = {
    "ref",
    "references",
    "table",
    "gallery",
    "math",
    "timeline",
    "score",
    "syntaxhighlight",
    "source",
    "imagemap",
}
_REMOVED_LINKS = re.compile(r"\s*(?:file|image|category|[a-z]{2,3}|simple|[a-z]+-[a-z-]+):", re.IGNORECASE)


def _peer_text(markup: str) -> str:
    import mwparserfromhell

    code = mwparserfromhell.parse(markup)
    removed = [tag for tag in code.ifilter_tags() if str(tag.tag).strip().lower() in _REMOVED_TAGS]
    removed += [link for link in code.ifilter_wikilinks() if _REMOVED_LINKS.match(str(link.title))]
    for node in removed:
        try:
            code.remove(node)
        except ValueError:  # within another that was removed
            continue
    return str(code.strip_code())


def _agreement(ours: str, theirs: str) -> float:
    """Return the F1 score over words, counted with repetition."""
    counts, peer = Counter(ours.split()), Counter(theirs.split())
    return 2 * (counts & peer).total() / max(1, counts.total() + peer.total())


def _gensim_articles() -> list[Document]:
    spec = find_spec("gensim")
    if spec is None or spec.origin is None or find_spec("mwparserfromhell") is None:
        pytest.skip("gensim and mwparserfromhell are not installed")
    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    items = read_wikipedia(Path(spec.origin).parent / "test" / "test_data" / name, name)
    return [item for item in items if isinstance(item, Document)]


def test_97_percent_of_words_agree_with_mwparserfromhell() -> None:
    articles = _gensim_articles()[::12]
    assert sum(len(article.markup) for article in articles) > 300_000
    scores = sorted(_agreement(wikitext_to_text(a.markup), _peer_text(a.markup)) for a in articles)
    assert sum(scores) / len(scores) >= 0.97, scores


def test_real_articles_keep_prose_and_lose_markup(data_dir: Path) -> None:
    num_articles = num_marks = num_chars = 0
    for path in sorted((data_dir / "wikipedia" / "minidumps").glob("*.xml.bz2")):
        for item in read_wikipedia(path, path.name):
            if isinstance(item, Document) and item.markup:
                extract(item)
                num_articles += 1
                num_chars += len(item.text)
                num_marks += len(re.findall(r"\{\{|\}\}|\[\[|\]\]|'''|\{\||\|thumb\||\d+px\|", item.text))
    assert num_articles > 80
    assert num_chars > 1_000_000
    assert num_marks <= num_articles // 20
