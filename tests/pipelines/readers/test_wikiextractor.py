"""Test the WikiExtractor reader, and that every form of Wikipedia gives the same articles under the same keys."""

from __future__ import annotations

import gzip
import html
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.document import Document, Redirect, WikiSite
from pipelines.readers.wikipedia import wikiextractor
from pipelines.readers.wikipedia.articles import read_articles
from pipelines.text.disambiguation import is_disambiguation_title
from registry.errors import InputError
from registry.schema import Status
from tests.costs import assert_linear
from tests.pipelines.readers.dumps import COMPRESSORS, Page, dump_xml

Article = tuple[int, str, str]
ENGLISH = WikiSite("enwiki", "en.wikipedia.org")
ARTICLES: list[Article] = [
    (12, "Anarchism", "Anarchism is a political philosophy.\nIt has a history & a <future>."),
    (25, 'The "A" & B', "A text.\n\nAnarchism\n\nAnother section."),
    (39, "Albedo", "Ünïcode — albedo."),
]


def docs(articles: list[Article], host: str = "https://en.wikipedia.org/wiki", escape: bool = True) -> bytes:
    """Return a file as WikiExtractor writes it; titles are escaped as in the dump."""
    parts = []
    for page_id, title, text in articles:
        body = html.escape(text, quote=False) if escape else text
        name = html.escape(title, quote=False)
        parts.append(f'<doc id="{page_id}" url="{host}?curid={page_id}" title="{name}">\n{title}\n\n{body}\n\n</doc>\n')
    return "".join(parts).encode()


def json_lines(articles: list[Article]) -> bytes:
    """Return a file as `WikiExtractor --json` writes it."""
    url = "https://en.wikipedia.org/wiki?curid="
    rows = [
        {
            "id": str(n),
            "revid": "7",
            "url": f"{url}{n}",
            "title": html.escape(title, quote=False),
            "text": html.escape(t),
        }
        for n, title, t in articles
    ]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(path: Path, articles: list[Article], host: str = "https://en.wikipedia.org/wiki/", **options: Any) -> Path:
    """Write a Parquet file in the format of Hugging Face's wikimedia/wikipedia."""
    columns = {
        "id": [str(page_id) for page_id, _, _ in articles],
        "url": [host + title.replace(" ", "%20") for _, title, _ in articles],
        "title": [title for _, title, _ in articles],
        "text": [text for _, _, text in articles],
    }
    pq.write_table(pa.table(columns), path, **{"row_group_size": 2, "write_page_checksum": True, **options})
    return path


def read(tmp_path: Path, data: bytes, name: str = "wiki_00") -> list[Document | Redirect | WikiSite]:
    path = tmp_path / "input"
    path.write_bytes(data)
    return list(read_articles(path, name))


def documents(tmp_path: Path, data: bytes, name: str = "wiki_00") -> list[Document]:
    return [item for item in read(tmp_path, data, name) if isinstance(item, Document)]


def outcomes(found: list[Document]) -> list[tuple[str | None, str | None]]:
    return [(document.key and document.key.rpartition(":")[2], document.reason) for document in found]


FORMS: dict[str, Callable[[Path], bytes]] = {
    "doc": lambda folder: docs(ARTICLES),
    "old doc": lambda folder: docs(ARTICLES, "http://en.wikipedia.org/wiki", escape=False),
    "mobile": lambda folder: docs(ARTICLES, "https://en.m.wikipedia.org/wiki"),
    "json": lambda folder: json_lines(ARTICLES),
    "parquet": lambda folder: parquet(folder / "made.parquet", ARTICLES).read_bytes(),
    "dump": lambda folder: dump_xml([Page(title, text, page_id=page_id) for page_id, title, text in ARTICLES]),
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_an_article_is_the_same_in_every_form(form: str, tmp_path: Path) -> None:
    site, *found = read(tmp_path, FORMS[form](tmp_path), "some name")
    assert site == ENGLISH
    identities = [(d.key, d.locator, d.url, d.title, d.scope) for d in found if isinstance(d, Document)]
    assert identities == [
        (f"wiki:enwiki:{n}",) * 2 + (url, title, "enwiki")
        for (n, title, _), url in zip(
            ARTICLES,
            [f"https://en.wikipedia.org/wiki/{page}" for page in ("Anarchism", "The_%22A%22_%26_B", "Albedo")],
            strict=True,
        )
    ]
    texts = [d.markup.strip() for d in found if isinstance(d, Document) and isinstance(d.markup, str)]
    assert texts == [text for _, _, text in ARTICLES]


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
@pytest.mark.parametrize("form", ["doc", "json"])
def test_offsets_count_decompressed_bytes(form: str, name: str, tmp_path: Path) -> None:
    data = FORMS[form](tmp_path)
    found = documents(tmp_path, COMPRESSORS[name](data))
    assert len(found) == len(ARTICLES)
    for document, (page_id, _, _) in zip(found, ARTICLES, strict=True):
        piece = data[document.input_offset : document.input_offset + document.input_length].decode()
        assert re.match(rf'<doc id="{page_id}"|{{"id": "{page_id}"', piece)
        assert piece.rstrip().endswith(("</doc>", "}"))
        assert not document.input_stored


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**12),
            st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1),
            st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_text_is_read_back(tmp_path_factory: pytest.TempPathFactory, articles: list[Article]) -> None:
    folder = tmp_path_factory.mktemp("forms")
    made = parquet(folder / "made.parquet", articles).read_bytes()
    for data in (docs(articles), json_lines(articles), made):
        found = documents(folder, data)
        assert [(d.title, d.reason) for d in found] == [(title, None) for _, title, _ in articles]
        for document, (_, title, text) in zip(found, articles, strict=True):
            assert isinstance(document.markup, str)
            without = text.lstrip().removeprefix(title) if data is not made else text
            assert document.markup.strip() in (text.strip(), without.strip())


# The wiki that the articles are of.


@pytest.mark.parametrize(
    ("url", "name", "site"),
    [
        ("https://de.wikipedia.org/wiki", "x", WikiSite("dewiki", "de.wikipedia.org")),
        ("https://fr.wiktionary.org/wiki", "x", WikiSite("frwiktionary", "fr.wiktionary.org")),
        ("https://wiki.example.org/w", "x", WikiSite("wiki_example_org", "wiki.example.org")),
        ("", "a/zh_yuewiki-2020-wiki_00", WikiSite("zh_yuewiki", "zh-yue.wikipedia.org")),
        ("https://de.wikipedia.org/wiki", "enwiki-x", WikiSite("dewiki", "de.wikipedia.org")),
    ],
)
def test_the_wiki_follows_from_the_url_then_the_name(url: str, name: str, site: WikiSite, tmp_path: Path) -> None:
    found = read(tmp_path, docs(ARTICLES, url), name)
    assert [item for item in found if isinstance(item, WikiSite)] == [site]
    assert found[0] == site


def test_without_url_and_name_the_language_decides_the_wiki(tmp_path: Path) -> None:
    english = (12, "Bridge", "A bridge leads over a river or a valley, so that nobody has to walk through it.")
    german = (7, "Brücke", "Eine Brücke führt über einen Fluss oder ein Tal, damit niemand hindurch muss.")
    for data, scope in ((docs([english] * 9, ""), "enwiki"), (docs([german] * 9, ""), "dewiki")):
        found = read(tmp_path, data, "stubs--wiki_00")
        assert {item.scope for item in found if isinstance(item, WikiSite)} == {scope}


def test_an_article_of_an_unknown_wiki_fails_and_the_next_is_read(tmp_path: Path) -> None:
    data = docs(ARTICLES[1:2]) + docs(ARTICLES[2:], "http://[x")
    found = documents(tmp_path, data, "stubs--wiki_00")
    assert outcomes(found) == [("25", None), (None, "no-wiki")]


def test_each_wiki_is_yielded_once(tmp_path: Path) -> None:
    data = docs(ARTICLES) + docs(ARTICLES, "https://de.wikipedia.org/wiki") + docs(ARTICLES)
    sites = [item for item in read(tmp_path, data) if isinstance(item, WikiSite)]
    assert sites == [ENGLISH, WikiSite("dewiki", "de.wikipedia.org")]


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        *[("Athene (disambiguation)", True), ("Bank (Begriffsklärung)", True), ("曖昧 (曖昧さ回避)", True)],
        *[("Disambiguation", False), ("(disambiguation)", False), ("Mercury (planet)", False)],
    ],
)
def test_disambiguation_titles_are_recognised(title: str, expected: bool, tmp_path: Path) -> None:
    assert is_disambiguation_title(title) is expected
    assert documents(tmp_path, docs([(1, title, "A may refer to B.")]))[0].is_disambiguation is expected


# Broken articles: only they are lost.

GOOD = docs(ARTICLES[:1]), docs(ARTICLES[2:])


@pytest.mark.parametrize(
    ("bad", "key", "reason"),
    [
        (docs(ARTICLES[1:2]).replace(b"</doc>", b""), "25", "malformed-page"),
        (docs(ARTICLES[1:2]).replace(b'id="25"', b'id="x"'), None, "malformed-page"),
        (docs(ARTICLES[1:2]).replace(b'id="25"', b'id="' + b"9" * 30 + b'"'), None, "malformed-page"),
        (docs(ARTICLES[1:2]).replace(b"url=", b"link="), None, "malformed-page"),
        (docs(ARTICLES[1:2]).replace(b"title=", b"name="), None, "malformed-page"),
        (docs([(25, "", "text")]), None, "malformed-page"),
        (docs(ARTICLES[1:2]).replace(b"A text", b"\xff\xfe"), None, "malformed-page"),
        (b"stray words\n", None, "malformed-page"),
    ],
)
def test_only_the_broken_article_is_lost(bad: bytes, key: str | None, reason: str, tmp_path: Path) -> None:
    found = documents(tmp_path, GOOD[0] + bad + GOOD[1])
    assert outcomes(found) == [("12", None), (key, reason), ("39", None)]
    assert found[1].input_offset == len(GOOD[0])
    assert found[1].detail
    assert found[1].markup == ""


@pytest.mark.parametrize(
    "bad",
    ["{", "[]", "{}", '{"id": "x", "url": "https://en.wikipedia.org/x", "title": "T", "text": ""}', "[" * 100_000],
)
def test_only_the_broken_line_is_lost(bad: str, tmp_path: Path) -> None:
    lines = json_lines(ARTICLES).splitlines(keepends=True)
    found = documents(tmp_path, lines[0] + bad.encode() + b"\n" + lines[2])
    assert outcomes(found) == [("12", None), (None, "malformed-page"), ("39", None)]


def test_a_file_that_ends_within_an_article_is_truncated(tmp_path: Path) -> None:
    data = docs(ARTICLES)
    found = documents(tmp_path, data[: data.rindex(b"albedo")])
    assert outcomes(found) == [("12", None), ("25", None), ("39", "truncated")]
    assert outcomes(documents(tmp_path, data.rstrip())) == [("12", None), ("25", None), ("39", None)]


@pytest.mark.parametrize("form", ["doc", "json"])
def test_stream_damage_is_reported_once_and_reading_continues(form: str, tmp_path: Path) -> None:
    rng = random.Random(2)
    many = [(n, f"T{n}", " ".join(rng.choices(["alpha", "beta", "gamma", "delta"], k=900))) for n in range(1, 200)]
    data = docs(many) if form == "doc" else json_lines(many)
    cut = documents(tmp_path, gzip.compress(data)[:-9000])
    assert Counter(d.reason for d in cut)["truncated-stream"] == 1
    assert len(cut) > 50
    assert cut[-1].status is Status.FAILED
    parts = [COMPRESSORS["bz2"](data[i : i + 100_000]) for i in range(0, len(data), 100_000)]
    spoiled = bytearray(parts[1])
    spoiled[len(spoiled) // 2] ^= 255
    found = documents(tmp_path, b"".join([parts[0], bytes(spoiled), *parts[2:]]))
    reasons = Counter(d.reason for d in found)
    assert reasons.keys() == {None, "corrupt-stream"}
    assert reasons["corrupt-stream"] == 1
    keys = [d.key for d in found if d.status is Status.KEPT]
    assert keys[0] == "wiki:enwiki:1"
    assert keys[-1] == "wiki:enwiki:199"
    assert 150 < len(keys) < 199


@pytest.mark.parametrize("form", ["doc", "json"])
def test_an_article_without_end_is_held_up_to_a_limit(form: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield docs(ARTICLES[:1]) if form == "doc" else json_lines(ARTICLES[:1])
        yield (
            b'<doc id="7" url="https://en.wikipedia.org/wiki?curid=7" title="Giant">\n'
            if form == "doc"
            else b'{"id": "'
        )
        yield from (b"word " * 2000 for _ in range(500))
        yield b"</doc>\n" + docs(ARTICLES[2:]) if form == "doc" else b"\n" + json_lines(ARTICLES[2:])

    splitter = wikiextractor._ArticleSplitter(chunks(), max_bytes=50_000)
    fragments = list(splitter.lines() if splitter.head().startswith(b"{") else splitter.docs())
    assert [f.failure.reason if f.failure else None for f in fragments] == [None, "too-large", None]
    assert fragments[1].length > 5_000_000
    assert len(fragments[1].data) <= 1 << 16
    assert fragments[2].offset - fragments[1].offset - fragments[1].length in (0, 1)  # a line end


def test_half_of_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    data = json_lines([(1, "A\ud800B", "text \udfff")])
    assert b"ud800" in data
    (document,) = documents(tmp_path, data)
    assert (document.title, document.markup) == ("A?B", "text ?")


def test_at_most_one_article_is_held_in_memory(tmp_path: Path) -> None:
    chunks = iter([docs([(n, f"T{n}", "word " * 100)]) for n in range(1, 3000)])
    splitter = wikiextractor._ArticleSplitter(chunks)
    assert not splitter.head().startswith(b"{")
    held = [len(splitter._buffer) for fragment in splitter.docs()]
    assert len(held) == 2999
    assert max(held) < wikiextractor._LANGUAGE_BYTES + 2000


def test_stray_text_is_reported_in_pieces() -> None:
    chunks = iter([b"junk line\n" * 6000] * 100 + [docs(ARTICLES)])
    fragments = list(wikiextractor._ArticleSplitter(chunks).docs())
    reasons = [fragment.failure.reason if fragment.failure else None for fragment in fragments]
    assert reasons[-3:] == [None] * 3
    assert set(reasons[:-3]) == {"malformed-page"}
    assert sum(fragment.length for fragment in fragments[:-3]) > 5_990_000


def test_two_articles_on_one_line(tmp_path: Path) -> None:
    url = 'url="https://en.wikipedia.org/wiki?curid=1"'
    data = f'<doc id="1" {url} title="A">text</doc><doc id="2" {url} title="B">more <doc> text</doc>\n'
    found = documents(tmp_path, data.encode())
    assert [(d.title, d.markup) for d in found] == [("A", "text"), ("B", "more <doc> text")]


# Random damage and hostile files.


@pytest.mark.parametrize("form", ["doc", "json", "parquet"])
def test_randomly_damaged_files_never_crash_the_reader(form: str, tmp_path: Path) -> None:
    rng, data = random.Random(17), FORMS[form](tmp_path)
    seeds = [data] if form == "parquet" else [data, gzip.compress(data, mtime=0)]
    reasons: Counter[str | None] = Counter()
    for _ in range(300):
        mutant = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 5)):
            position = rng.randrange(4, len(mutant))
            mutant[position : position + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
        try:
            found = documents(tmp_path, bytes(mutant))
        except InputError:
            reasons["refused"] += 1
            continue
        assert len(found) <= 20
        for document in found:
            assert document.key or document.status is Status.FAILED
            assert document.reason or document.status is Status.KEPT
        reasons.update(document.reason for document in found)
    assert reasons[None] > 20
    assert sum(reasons.values()) - reasons[None] > 100
    assert reasons.keys() <= {
        *(None, "refused", "malformed-page", "no-wiki", "truncated", "corrupt-rows", "truncated-stream"),
        *("corrupt-stream", "too-large"),
    }


@pytest.mark.parametrize(
    "unit", [b'title="', b"</doc> ", b"   <doc \n", b' a="b"', b"\t" * 10, b"<doc >\n", b"{\n", b"word " * 10, b"&amp"]
)
def test_hostile_files_take_linear_time(unit: bytes) -> None:
    def run(size: int) -> None:
        for start in (b'<doc id="1" url="https://en.wikipedia.org/" title="x">', b"<doc ", b"{"):
            data = start + unit * 10 * size
            splitter = wikiextractor._ArticleSplitter(iter([data[i : i + 4096] for i in range(0, len(data), 4096)]))
            for fragment in splitter.lines() if splitter.head().startswith(b"{") else splitter.docs():
                list(wikiextractor._read_fragment(fragment, "x", lambda: ""))

    assert_linear(run)


# Real files.


def test_every_real_article_is_read(data_dir: Path) -> None:
    path = data_dir / "MANIFEST.tsv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    counts = dict(re.findall(r"^(articles/\S+)\t.*\bdocs=(\d+)", path.read_text(), re.MULTILINE))
    assert len(counts) == 13
    for file, count in counts.items():
        base = os.path.basename(file)
        found = [item for item in read_articles(data_dir / file, base) if isinstance(item, Document)]
        assert len(found) == int(count), file
        assert {document.reason for document in found} == {None}
        assert all((document.key or "").startswith("wiki:enwiki:") for document in found)
        assert len({document.input_offset for document in found}) == len(found)
