"""Test the readers of books in plain text: keys, names, and texts without header, licence and credits."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import os
import random
from pathlib import Path

import pytest

from pipelines.document import Document
from pipelines.readers.books import book as books
from pipelines.readers.books.book import read_book
from pipelines.readers.books.edition import isbns_in, title_of_file
from pipelines.readers.books.gutenberg import read_gutenberg, without_credits
from pipelines.text.extract import normalise
from pipelines.text.languages import language_code
from registry.errors import InputError
from registry.schema import AliasKind, Status
from tests.costs import assert_linear
from tests.pipelines.readers.dumps import COMPRESSORS

BODY = "CHAPTER I\n\nIt was a dark and stormy night; see [eBook #99] and ISBN 0-306-40615-2.\n\nTHE END"
HEADER = """The Project Gutenberg eBook of {title}

This ebook is for the use of anyone anywhere at no cost. See also [eBook #928].

Title: {title}

Author: Jacob Grimm
        Wilhelm Grimm

Translator: Edgar Taylor

Editor: A. N. Other

Release date: April 1, 2001 [eBook #2591]
                Most recently updated: June 28, 2021

Language: {language}

Credits: Emma Dudding


"""
LICENCE = "\n\nUpdated editions will replace the previous one.\nSTART: FULL LICENSE\nISBN 978-3-16-148410-0\n"


def gutenberg(body: str = BODY, title: str = "Grimms' Fairy Tales", language: str = "English") -> str:
    name = title.upper()
    return (
        HEADER.format(title=title, language=language)
        + f"*** START OF THE PROJECT GUTENBERG EBOOK {name} ***\n\n{body}\n\n"
        + f"*** END OF THE PROJECT GUTENBERG EBOOK {name} ***{LICENCE}"
    )


def read(tmp_path: Path, data: bytes | str, name: str = "a_book.txt") -> Document:
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    (document,) = read_book(path, name)
    return document


def titles(document: Document) -> set[str]:
    return {alias for kind, alias in document.aliases if kind is AliasKind.TITLE}


# Project Gutenberg.


def test_a_gutenberg_text_is_read_with_its_header(tmp_path: Path) -> None:
    data = b"\xef\xbb\xbf" + gutenberg().replace("\n", "\r\n").encode()
    document = read(tmp_path, data)
    assert (document.key, document.locator) == ("book:gutenberg:2591", "book:gutenberg:2591")
    assert (document.title, document.language) == ("Grimms' Fairy Tales", "en")
    assert document.url == "https://www.gutenberg.org/ebooks/2591"
    assert document.captured == "2021-06-28T00:00:00Z"
    assert document.text == BODY
    assert titles(document) == {
        f"Grimms' Fairy Tales / {author}"
        for author in ("Jacob Grimm", "Wilhelm Grimm", "Jacob Grimm and Wilhelm Grimm")
    }
    assert (AliasKind.ISBN, "9780306406157") in document.aliases
    assert (document.input_offset, document.input_length, document.input_stored) == (0, len(data), True)
    assert document.status is Status.KEPT


START_MARKERS = [
    "*** START OF THE PROJECT GUTENBERG EBOOK ALICE ***",
    "*** START OF THIS PROJECT GUTENBERG EBOOK ALICE ***",
    "***START OF THE PROJECT GUTENBERG EBOOK ALICE***",
    "***START OF THIS PROJECT GUTENBERG ETEXT ALICE***",
    "*** START OF THE PROJECT GUTENBERG EBOOK A VERY LONG TITLE THAT\nGOES ON, AND ON ***",
    "** START OF THE PROJECT GUTENBERG EBOOK ALICE",
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
    "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*",
    "*** START OF THE PROJECT GUTENBERG EBOOK ALICE ***\n\n***START**THE SMALL PRINT!**START***\nWhy?\n"
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
]
END_MARKERS = [
    "*** END OF THE PROJECT GUTENBERG EBOOK ALICE ***",
    "*** END OF THIS PROJECT GUTENBERG EBOOK ALICE ***",
    "***END OF THE PROJECT GUTENBERG EBOOK ALICE***",
    "End of the Project Gutenberg EBook of Alice, by Lewis Carroll\n\n*** END OF THE PROJECT GUTENBERG EBOOK ALICE ***",
    "End of Project Gutenberg's Alice's Adventures in\nWonderland, by Lewis Carroll",
    "End of The Project Gutenberg Etext of Alice",
    "*** START: FULL LICENSE ***",
    "",
]


@pytest.mark.parametrize("end", END_MARKERS)
@pytest.mark.parametrize("start", START_MARKERS)
def test_every_form_of_start_and_end_marker_is_recognised(start: str, end: str) -> None:
    header = (
        "**The Project Gutenberg Etext of Alice in Wonderland, by Lewis Carroll**\n\nJanuary, 1991  [Etext #11]\n\n"
    )
    found = read_gutenberg(f"{header}{start}\n\n{BODY}\n\n{end}{LICENCE if end else ''}")
    assert found
    edition, body = found
    assert normalise(body) == BODY
    assert (edition.gutenberg_number, edition.title, edition.authors) == (11, "Alice in Wonderland", ("Lewis Carroll",))


def test_an_old_header_without_an_end_mark_is_recognised() -> None:
    found = read_gutenberg(f"Project Gutenberg Etext of Alice\nby Lewis Carroll\n\nJanuary, 1991 [Etext #11]\n\n{BODY}")
    assert found
    assert (found[0].gutenberg_number, found[0].title, found[0].authors) == (11, "Alice", ("Lewis Carroll",))
    assert normalise(found[1]) == BODY


@pytest.mark.parametrize(
    "text",
    [
        f"A plain book.\n\n{BODY}",
        f"I found it at Project Gutenberg, [eBook #12].\n\n{BODY}",
        "word " * 400 + "\n*** START OF THE PROJECT GUTENBERG EBOOK X ***\n[eBook #12]",
        "",
    ],
)
def test_a_text_that_only_mentions_gutenberg_has_no_header(text: str) -> None:
    assert read_gutenberg(text) is None


def test_a_number_outside_the_header_is_ignored(tmp_path: Path) -> None:
    start = "*** START OF THE PROJECT GUTENBERG EBOOK ALICE ***"
    text = f"{start}\n\nRelease date: May 1, 2000 [eBook #99]\n\nJanuary, 1991 [Etext #98]"
    document = read(tmp_path, text)
    assert document.key is not None
    assert document.key.startswith("book:sha256:")
    assert document.title == "ALICE"


def test_two_different_numbers_without_a_release_date_are_ignored() -> None:
    start = "\n*** START OF THE PROJECT GUTENBERG EBOOK ALICE ***\n\ntext"
    found = read_gutenberg(f"The Project Gutenberg eBook of Alice\n\nsee [eBook #11] and [eBook #12]{start}")
    assert found
    assert found[0].gutenberg_number is None
    same = read_gutenberg(f"The Project Gutenberg eBook of Alice\n\nsee [eBook #11] and [EBook #11]{start}")
    assert same
    assert same[0].gutenberg_number == 11


def test_a_title_over_several_lines_is_joined(tmp_path: Path) -> None:
    text = gutenberg().replace("Title: Grimms' Fairy Tales", "Title: Moby Dick;\n       Or, The Whale")
    document = read(tmp_path, text)
    assert document.title == "Moby Dick; Or, The Whale"
    assert "Moby Dick; Or, The Whale / Jacob Grimm" in titles(document)


@pytest.mark.parametrize(
    "credits",
    [
        "Produced by David Widger",
        "E-text prepared by A, B,\nand the Online Distributed Proofreading Team",
        "This etext was prepared by David Price",
        "Produced by X\n\n* * * * *\n+----+\n| Transcriber's Note: |\n| Typos were mended. |\n+----+",
        "[Transcriber's Notes: all is well.]\n\nProduced by Y",
    ],
)
def test_credits_at_the_start_are_removed(credits: str) -> None:
    assert without_credits(f"{credits}\n\n{BODY}") == BODY


def test_a_later_paragraph_that_looks_like_credits_is_kept() -> None:
    text = f"CHAPTER I\n\nProduced by magic.\n\n{BODY}"
    assert without_credits(text) == text


@pytest.mark.parametrize(
    ("names", "code"),
    [
        *[
            ("English", "en"),
            ("Spanish", "es"),
            ("Chinese", "zh"),
            ("English and French", "en"),
            ("French, German", "fr"),
        ],
        *[("en-GB", "en"), ("eng", "en"), ("ger", "de"), ("zh_Hant", "zh"), ("Old English", ""), ("", "")],
        *[("Norwegian (Bokmål)", "no"), ("Klingon, Latin", "la")],
    ],
)
def test_the_language_code_of_names_and_codes(names: str, code: str) -> None:
    assert language_code(names) == code


@pytest.mark.parametrize("declared", ["ISO-8859-1", "Windows-1252", "ASCII"])
def test_the_encoding_that_the_header_declares_is_used(declared: str, tmp_path: Path) -> None:
    text = gutenberg(body="Café ‘déjà vu’ über naïve Ærø", language="French").replace(
        "Language:", f"Character set encoding: {declared}\n\nLanguage:"
    )
    document = read(tmp_path, text.encode("windows-1252"))
    assert document.text == "Café ‘déjà vu’ über naïve Ærø"
    assert document.language == "fr"


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
def test_compressed_books_are_decompressed(name: str, tmp_path: Path) -> None:
    document = read(tmp_path, COMPRESSORS[name](gutenberg().encode()), f"pg2591.txt.{name}")
    plain = read(tmp_path, gutenberg())
    assert (document.key, document.text) == (plain.key, plain.text)
    assert (document.input_length, document.input_stored) == (len(gutenberg().encode()), False)


# Other books.


def test_a_plain_text_with_an_isbn_has_it_as_its_key(tmp_path: Path) -> None:
    page = "A Book\n\nISBN-13: 978-0-306-40615-7 (hardcover)\nISBN 3-16-148410-X (paperback)\n\n"
    document = read(tmp_path, page + "word " * 3000 + "ISBN 0-19-852663-6", "x")
    assert document.key == "book:isbn:9780306406157"
    assert (AliasKind.ISBN, "9783161484100") in document.aliases
    assert not any("9780198526636" in alias for _, alias in document.aliases)


@pytest.mark.parametrize(
    "line",
    ["ISBN 978-0-306-40615-8", "ISBN", "number 978-0-306-40615-7", "ISBN 9780306406157123", "ISSN 2049-3630"],
)
def test_invalid_or_unlabelled_isbns_are_ignored(line: str) -> None:
    assert isbns_in(f"A Book\n{line}\n") == ()


def test_a_plain_text_without_isbn_has_its_hash_as_its_key(tmp_path: Path) -> None:
    text = "A tale of two words.\n\nThe end."
    document = read(tmp_path, text.replace("\n", "\r\n"), "a-tale_of.two.txt")
    assert document.key == f"book:sha256:{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    assert document.title == "a tale of two"
    assert document.key == read(tmp_path, gzip.compress(text.encode()), "other.txt.gz").key


def test_labelled_title_and_author_are_read(tmp_path: Path) -> None:
    document = read(tmp_path, "Title: The Tale\nAuthor: Jane Roe\n\nOnce upon a time.")
    assert document.title == "The Tale"
    assert titles(document) == {"The Tale / Jane Roe"}


def test_a_file_name_becomes_a_title() -> None:
    assert title_of_file("a/b/moby-dick_or.the_whale.TXT.gz") == "moby dick or the whale"
    assert title_of_file("...") is None


# Files that are no book.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\r\n \t\r\n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (gzip.compress(b""), "empty"),
        (b"%PDF-1.4 text", "a PDF"),
        (b"{\\rtf1 text}", "RTF"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), "binary"),
        (random.Random(1).randbytes(5000), "binary"),
    ],
)
def test_a_file_that_is_no_book_is_refused_with_its_format(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{message}.*; expected"):
        read(tmp_path, data, "thing.txt")


@pytest.mark.parametrize("start", ["<!DOCTYPE html>\n", '<?xml version="1.0"?>\n<!-- x -->\n<!-- y -->', ""])
def test_a_web_page_fails_as_html_page(start: str, tmp_path: Path) -> None:
    document = read(tmp_path, start + "<html><head><title>404 | Not here</title></head><body>Sorry</body></html>")
    assert (document.status, document.reason, document.key) == (Status.FAILED, "html-page", None)
    assert document.title == "404 | Not here"


def test_a_book_about_html_is_kept(tmp_path: Path) -> None:
    assert read(tmp_path, "How to write <html> and <body> tags.\n\nA manual.").status is Status.KEPT


def test_a_header_without_a_book_fails_as_no_text(tmp_path: Path) -> None:
    document = read(
        tmp_path, "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n*** END OF THE PROJECT GUTENBERG EBOOK X ***"
    )
    assert (document.status, document.reason) == (Status.FAILED, "no-text")


def test_a_damaged_book_fails_with_its_own_key(tmp_path: Path) -> None:
    words = " ".join(random.Random(3).choices(["alpha", "beta", "gamma", "delta"], k=50_000))
    data = gzip.compress(gutenberg(body=words).encode())
    document = read(tmp_path, data[: len(data) // 2], "pg.txt.gz")
    assert (document.status, document.reason) == (Status.FAILED, "truncated-stream")
    assert (document.key, document.text) == ("book:gutenberg:2591", "")
    plain = read(tmp_path, gzip.compress(words.encode())[:9000], "plain.txt.gz")
    assert (plain.status, plain.key) == (Status.FAILED, None)


def test_a_decompression_bomb_is_read_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "MAX_BOOK_BYTES", 1 << 20)
    bomb = read(tmp_path, gzip.compress(gutenberg().encode() + bytes(1 << 25)), "bomb.txt.gz")
    assert (bomb.status, bomb.reason, bomb.key) == (Status.FAILED, "too-large", "book:gutenberg:2591")
    assert bomb.input_length <= 1 << 20


def test_randomly_damaged_books_never_crash_the_reader(tmp_path: Path) -> None:
    rng, data = random.Random(11), gutenberg().encode()
    seeds = [
        data,
        gzip.compress(data, mtime=0),
        "Title: Ünï\n\nISBN 0-306-40615-2".encode("utf-16"),
        data.replace(b"\n", b"\r\n"),
    ]
    outcomes: dict[str, int] = {}
    for _ in range(400):
        mutant = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 8)):
            position = rng.randrange(len(mutant))
            mutant[position : position + rng.randint(0, 5)] = rng.randbytes(rng.randint(0, 5))
        if rng.random() < 0.3:
            del mutant[rng.randrange(1, len(mutant)) :]
        try:
            document = read(tmp_path, bytes(mutant))
        except InputError:
            outcome = "refused"
        else:
            outcome = document.reason or document.status.value
            assert document.status is Status.KEPT or not document.text
            assert document.key or document.status is Status.FAILED
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes.keys() <= {"kept", "refused", "html-page", "no-text", "truncated-stream", "corrupt-stream"}
    assert min(outcomes["kept"], outcomes["corrupt-stream"], outcomes["truncated-stream"]) > 10


START = "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n"


@pytest.mark.parametrize(
    "unit",
    [
        *["*\n", "\t \n", "*", "End of Project Gutenberg\n", "*** END OF THE PROJECT GUTENBERG\n", "produced by x\n\n"],
        *["ISBN 1-2-3-4 ", "Title : ", "[ebook ", "March, ", "_-_!"],
    ],
)
def test_hostile_texts_take_linear_time(unit: str) -> None:
    def run(size: int) -> None:
        for text in (START + unit * 20 * size, "Project Gutenberg\n" + unit * 20 * size + START):
            found = read_gutenberg(text)
            isbns_in(without_credits(normalise(found[1] if found else text)))

    assert_linear(run)


# Real books.


def _manifest(data_dir: Path) -> dict[str, dict[str, str]]:
    path = data_dir / "MANIFEST.tsv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    names = ("title=", "author=", "pg=", "lang=", "words=")
    found = {}
    for row in rows:
        if row[0].startswith("books/") and row[0].endswith(".txt"):
            cuts = sorted((row[5].index(name), name[:-1]) for name in (*names, "start="))
            found[row[0]] = {
                name: row[5][start + len(name) + 1 : end].strip()
                for (start, name), (end, _) in itertools.pairwise(cuts)
            }
    return found


def test_every_real_book_matches_the_manifest(data_dir: Path) -> None:
    keys = set()
    for file, facts in _manifest(data_dir).items():
        (document,) = read_book(data_dir / file, os.path.basename(file))
        if facts["pg"] == "None":
            assert document.reason == "html-page", file
            continue
        assert document.key == f"book:gutenberg:{facts['pg']}", file
        assert document.title == facts["title"], file
        assert document.language == language_code(facts["lang"]), file
        if facts["author"] != "None":
            assert f"{facts['title']} / {facts['author']}" in titles(document)
        assert "PROJECT GUTENBERG EBOOK" not in document.text.upper(), file
        assert "Produced by" not in document.text[:500], file
        num_words = len(document.text.split())
        assert int(facts["words"]) - 3300 < num_words < int(facts["words"]), file  # the licence has 3,000
        keys.add(document.key)
    assert len(keys) == 22
