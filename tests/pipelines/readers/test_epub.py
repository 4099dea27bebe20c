"""Test the EPUB reader: text in reading order, metadata of the package, and limits against hostile archives."""

from __future__ import annotations

import io
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipelines.document import Document
from pipelines.readers.books import epub
from pipelines.readers.books.book import read_book
from pipelines.text.extract import full_text
from registry.errors import InputError
from registry.schema import AliasKind, Status
from tests.costs import assert_linear

CONTAINER = (
    '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0"><rootfiles>'
    '<rootfile full-path="{path}" media-type="application/oebps-package+xml"/></rootfiles></container>'
)
DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:opf="http://www.idpf.org/2007/opf"'
METADATA = (
    '<dc:title>Alice\'s Adventures</dc:title><dc:creator opf:role="aut" opf:file-as="Carroll, Lewis">Lewis Carroll'
    '</dc:creator><dc:creator opf:role="trl">A Translator</dc:creator><dc:language>en-GB</dc:language>'
)
XHTML = (
    '<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title/></head>'
    "<body>{}</body></html>"
)
Files = dict[str, str | bytes]


def package(items: str, spine: str, metadata: str = METADATA, guide: str = "", version: str = "2.0") -> str:
    return (
        f'<package xmlns="http://www.idpf.org/2007/opf" version="{version}" unique-identifier="uid">'
        f"<metadata {DC}>{metadata}</metadata><manifest>{items}</manifest><spine>{spine}</spine>{guide}</package>"
    )


def item(name: str, href: str, properties: str = "", media: str = "application/xhtml+xml") -> str:
    return f'<item id="{name}" href="{href}" media-type="{media}" properties="{properties}"/>'


def ref(name: str, linear: str = "yes") -> str:
    return f'<itemref idref="{name}" linear="{linear}"/>'


def files(metadata: str = METADATA, **more: str | bytes) -> Files:
    """Return a book of two chapters; the second comes first in the manifest and in the archive."""
    return {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER.format(path="OEBPS/content.opf"),
        "OEBPS/text/b.xhtml": XHTML.format("<h1>Two</h1><p>The second chapter.</p>"),
        "OEBPS/text/a.xhtml": XHTML.format("<h1>One</h1><p>The first chapter.</p>"),
        "OEBPS/content.opf": package(
            item("b", "text/b.xhtml") + item("a", "text/a.xhtml"), ref("a") + ref("b"), metadata
        ),
        **more,
    }


def zipped(content: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return buffer.getvalue()


def read(tmp_path: Path, data: bytes | Files, name: str = "book.epub") -> Document:
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else zipped(data))
    (document,) = read_book(path, name)
    return document


def failure(tmp_path: Path, data: bytes | Files) -> str | None:
    document = read(tmp_path, data)
    assert document.status is Status.FAILED
    assert document.text == ""
    assert document.detail
    return document.reason


TEXT = "One\n\nThe first chapter.\n\nTwo\n\nThe second chapter."


def test_chapters_are_read_in_the_order_of_the_spine(tmp_path: Path) -> None:
    data = zipped(files())
    document = read(tmp_path, data)
    assert document.text == TEXT
    assert document.status is Status.KEPT
    assert (document.title, document.language) == ("Alice's Adventures", "en")
    assert {alias for _, alias in document.aliases} == {
        "Alice's Adventures / Lewis Carroll",
        "Alice's Adventures / Carroll, Lewis",
    }
    assert (document.input_offset, document.input_length, document.input_stored) == (0, len(data), True)


def test_epub_3_refinements_give_roles_and_titles(tmp_path: Path) -> None:
    metadata = (
        '<dc:title id="t">Love’s Labour</dc:title><meta refines="#t" property="title-type">main</meta>'
        '<dc:title id="s">A Play</dc:title><meta refines="#s" property="title-type">subtitle</meta>'
        '<dc:title id="e">Love’s Labour: A Play</dc:title><meta refines="#e" property="title-type">expanded</meta>'
        '<dc:creator id="c">W. S.</dc:creator><meta refines="#c" property="role" scheme="marc:relators">ann</meta>'
        '<meta refines="#c" property="role" scheme="marc:relators">aut</meta>'
        '<meta refines="#c" property="file-as">S., W.</meta>'
        '<dc:creator id="d">An Editor</dc:creator><meta refines="#d" property="role">edt</meta>'
        '<meta property="dcterms:modified">2024-02-05T04:34:16Z</meta>'
    )
    document = read(tmp_path, files(metadata))
    assert document.title == "Love’s Labour"
    assert document.captured == "2024-02-05T04:34:16Z"
    names = {alias for _, alias in document.aliases}
    assert {"Love’s Labour / W. S.", "Love's Labour / S., W.", "Love's Labour: A Play", "Love's Labour"} <= names
    assert not any("Editor" in name or name.startswith("A Play") for name in names)


@pytest.mark.parametrize(
    ("identifiers", "key", "isbn"),
    [
        ('<dc:identifier opf:scheme="URI">http://www.gutenberg.org/11</dc:identifier>', "book:gutenberg:11", None),
        ("<dc:identifier>https://www.gutenberg.org/ebooks/11.epub3.images</dc:identifier>", "book:gutenberg:11", None),
        ("<dc:identifier>urn:isbn:9780306406157</dc:identifier>", "book:isbn:9780306406157", None),
        ('<dc:identifier opf:scheme="ISBN">0-306-40615-2</dc:identifier>', "book:isbn:9780306406157", None),
        ("<dc:identifier>978-0-306-40615-7</dc:identifier>", "book:isbn:9780306406157", None),
        (
            "<dc:identifier>urn:isbn:9780306406157</dc:identifier><dc:identifier>http://gutenberg.org/11</dc:identifier>",
            "book:gutenberg:11",
            "9780306406157",
        ),
        (
            "<dc:identifier>978-3-16-148410-0</dc:identifier>"
            "<dc:identifier id='uid'>urn:isbn:0306406152</dc:identifier>",
            "book:isbn:9780306406157",
            "9783161484100",
        ),
        ("<dc:identifier>urn:isbn:9780306406158</dc:identifier>", None, None),
        ('<dc:identifier opf:scheme="AMAZON">0306406152</dc:identifier>', None, None),
        (
            "<dc:identifier>urn:uuid:11</dc:identifier><dc:source>https://gutenberg.org/ebooks/11</dc:source>",
            None,
            None,
        ),
        ("<dc:identifier>https://gutenberg.net.au/ebooks/11</dc:identifier>", None, None),
    ],
)
def test_the_key_follows_from_the_identifiers(
    identifiers: str, key: str | None, isbn: str | None, tmp_path: Path
) -> None:
    document = read(tmp_path, files(METADATA + identifiers))
    assert document.key is not None
    assert document.key == key or (key is None and document.key.startswith("book:sha256:"))
    assert [alias for kind, alias in document.aliases if kind is AliasKind.ISBN] == ([isbn] if isbn else [])


def test_the_same_text_has_one_key_in_an_epub_and_in_a_file(tmp_path: Path) -> None:
    assert read(tmp_path, files()).key == read(tmp_path, TEXT.encode(), "book.txt").key


def test_a_gutenberg_epub_has_the_key_and_text_of_its_plain_text(tmp_path: Path) -> None:
    name = "THE PROJECT GUTENBERG EBOOK ALICE'S ADVENTURES ***"
    header = (
        "<section><h2>The <i>Project Gutenberg eBook</i> of Alice's Adventures</h2><div>This ebook is for the use of "
        "anyone.</div><p><strong>Title</strong>: Alice's Adventures</p><p><strong>Release date</strong>: "
        "June 27, 2008 [eBook #11]<br/>Most recently updated: November 10, 2024</p>"
        f"<div>*** START OF {name}</div></section>"
    )
    footer = f"<section><div>*** END OF {name}</div><div>Updated editions will replace.</div></section>"
    content = broken(
        **{
            "OEBPS/text/a.xhtml": XHTML.format(f"{header}<h1>One</h1><p>The first chapter.</p>"),
            "OEBPS/text/b.xhtml": XHTML.format(f"<h1>Two</h1><p>The second chapter.</p>{footer}"),
        }
    )
    document = read(tmp_path, content)
    assert (document.key, document.text) == ("book:gutenberg:11", TEXT)
    assert (document.url, document.captured) == ("https://www.gutenberg.org/ebooks/11", "2024-11-10T00:00:00Z")


def test_tables_of_contents_and_auxiliary_content_are_left_out(tmp_path: Path) -> None:
    content = files()
    content["OEBPS/toc.xhtml"] = content["OEBPS/nav.xhtml"] = content["OEBPS/note.xhtml"] = XHTML.format(
        "<p>Not this</p>"
    )
    items = (
        item("a", "text/a.xhtml")
        + item("b", "text/b.xhtml")
        + item("toc", "toc.xhtml")
        + item("nav", "nav.xhtml", "scripted nav")
        + item("note", "note.xhtml")
        + item("pic", "pic.svg", media="image/svg+xml")
    )
    spine = ref("nav") + ref("toc") + ref("a") + ref("note", "no") + ref("pic") + ref("b")
    guide = '<guide><reference type="toc" href="toc.xhtml"/><reference type="toc" href="text/a.xhtml#top"/></guide>'
    content["OEBPS/content.opf"] = package(items, spine, guide=guide)
    assert read(tmp_path, content).text == TEXT


@pytest.mark.parametrize(
    ("href", "name"),
    [
        ("text/my%20first.xhtml", "OEBPS/text/my first.xhtml"),
        ("text/my first.xhtml#top", "OEBPS/text/my first.xhtml"),
        ("text/A.XHTML", "OEBPS/text/a.xhtml"),
        ("./text/../text/a.xhtml", "OEBPS/text/a.xhtml"),
        ("text/caf%C3%A9.xhtml", "OEBPS/text/café.xhtml"),
        ("100%.xhtml", "OEBPS/100%.xhtml"),
        ("../a.xhtml", "a.xhtml"),
        ("../../../../etc/a.xhtml", "etc/a.xhtml"),
    ],
)
def test_references_lead_to_members_of_the_archive(href: str, name: str, tmp_path: Path) -> None:
    content = files()
    chapter = content.pop("OEBPS/text/a.xhtml")
    content[name] = chapter
    content["OEBPS/content.opf"] = package(item("a", href) + item("b", "text/b.xhtml"), ref("a") + ref("b"))
    assert read(tmp_path, content).text == TEXT


def test_no_file_outside_of_the_archive_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.xhtml").write_text(XHTML.format("secret"))
    content = files()
    href = f"../../../../../../..{tmp_path}/secret.xhtml"
    content["OEBPS/content.opf"] = package(item("a", href), ref("a"))
    assert failure(tmp_path, content) == "missing-file"
    entity = f'<!DOCTYPE package [<!ENTITY x SYSTEM "file://{tmp_path}/secret.xhtml">]>'
    content = files()
    content["OEBPS/content.opf"] = entity + str(content["OEBPS/content.opf"]).replace("Alice", "&x;")
    document = read(tmp_path, content)
    assert "secret" not in (document.title or "")


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9))
    bomb = f'<!DOCTYPE package [<!ENTITY e0 "ha">{levels}]>'
    content = files()
    content["OEBPS/content.opf"] = bomb + str(content["OEBPS/content.opf"]).replace("Alice", "&e8;")
    assert len(read(tmp_path, content).title or "") < 100


# Books that fail, and the reason.


def test_a_missing_chapter_fails_the_book_with_its_key(tmp_path: Path) -> None:
    content = files(METADATA + "<dc:identifier>urn:isbn:9780306406157</dc:identifier>")
    del content["OEBPS/text/b.xhtml"]
    document = read(tmp_path, content)
    assert (document.status, document.reason) == (Status.FAILED, "missing-file")
    assert (document.key, document.text) == ("book:isbn:9780306406157", "")
    assert "text/b.xhtml" in document.detail


def broken(**changes: Any) -> Files:
    return {name: data for name, data in {**files(), **changes}.items() if data is not None}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a.txt": "no book"}, "not-a-book"),
        (broken(**{"META-INF/container.xml": "<container/>"}), "malformed-book"),
        (broken(**{"META-INF/container.xml": ""}), "malformed-book"),
        (broken(**{"OEBPS/content.opf": None}), "missing-file"),
        (broken(**{"OEBPS/content.opf": "\0\1\2"}), "malformed-book"),
        (broken(**{"OEBPS/content.opf": package(item("a", "text/a.xhtml"), "")}), "malformed-book"),
        (broken(**{"OEBPS/content.opf": package(item("a", "text/a.xhtml"), ref("z"))}), "missing-file"),
        (broken(**{"OEBPS/text/a.xhtml": bytes(100)}), "bad-chapter"),
        (broken(**{"OEBPS/text/a.xhtml": XHTML.format("<div>" * 20_000)}), "bad-chapter"),
        (broken(**{f"OEBPS/text/{name}.xhtml": XHTML.format("<img src='x'/>") for name in "ab"}), "no-text"),
    ],
)
def test_a_broken_book_fails_with_its_reason(content: Files, reason: str, tmp_path: Path) -> None:
    assert failure(tmp_path, content) == reason


def encryption(uri: str, algorithm: str) -> str:
    return (
        '<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container" '
        'xmlns:enc="http://www.w3.org/2001/04/xmlenc#"><enc:EncryptedData>'
        f'<enc:EncryptionMethod Algorithm="{algorithm}"/><enc:CipherData><enc:CipherReference URI="{uri}"/>'
        "</enc:CipherData></enc:EncryptedData></encryption>"
    )


def test_an_encrypted_book_fails_but_obfuscated_fonts_do_not(tmp_path: Path) -> None:
    aes = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"
    locked = files(METADATA + "<dc:identifier>urn:isbn:9780306406157</dc:identifier>")
    locked["META-INF/encryption.xml"] = encryption("OEBPS/text/a.xhtml", aes)
    document = read(tmp_path, locked)
    assert (document.reason, document.key) == ("encrypted", "book:isbn:9780306406157")
    fonts = broken(**{"META-INF/encryption.xml": encryption("OEBPS/f.otf", "http://www.idpf.org/2008/embedding")})
    assert read(tmp_path, fonts).text == TEXT
    style = broken(**{"META-INF/encryption.xml": encryption("OEBPS/style.css", aes)})
    assert read(tmp_path, style).text == TEXT


def test_a_zip_with_a_password_fails_as_encrypted(tmp_path: Path) -> None:
    data = bytearray(zipped(files()))
    start = 0
    while (position := data.find(b"PK\1\2", start)) >= 0:
        data[position + 8] |= 1
        start = position + 1
    assert failure(tmp_path, bytes(data)) == "encrypted"


def test_compression_that_epub_does_not_allow_is_refused(tmp_path: Path) -> None:
    assert failure(tmp_path, zipped(files(), zipfile.ZIP_BZIP2)) == "corrupt-zip"


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epub, "MAX_CHAPTER_BYTES", 1 << 16)
    monkeypatch.setattr(epub, "MAX_TEXT_BYTES", 1 << 17)
    monkeypatch.setattr(epub, "MAX_PACKAGE_BYTES", 1 << 16)
    chapter = XHTML.format("word " * 10_000)
    assert read(tmp_path, broken(**{"OEBPS/text/a.xhtml": chapter})).status is Status.KEPT
    assert failure(tmp_path, broken(**{"OEBPS/text/a.xhtml": chapter * 2})) == "too-large"
    many = broken(**{"OEBPS/text/a.xhtml": chapter})
    many["OEBPS/content.opf"] = package(
        "".join(item(f"i{n}", f"{n}.xhtml") for n in range(9)), "".join(ref(f"i{n}") for n in range(9))
    )
    many |= {f"OEBPS/{n}.xhtml": chapter for n in range(9)}
    assert failure(tmp_path, many) == "too-large"
    assert failure(tmp_path, broken(**{"OEBPS/content.opf": " " * (1 << 17)})) == "too-large"
    repeated = broken(**{"OEBPS/text/a.xhtml": chapter})
    repeated["OEBPS/content.opf"] = package(item("a", "text/a.xhtml"), ref("a") * 1000)  # one file, read once
    assert read(tmp_path, repeated).status is Status.KEPT
    monkeypatch.setattr(epub, "MAX_DIRECTORY_BYTES", 100)
    assert failure(tmp_path, files()) == "too-large"


def test_a_truncated_zip_is_corrupt(tmp_path: Path) -> None:
    data = zipped(files())
    assert failure(tmp_path, data[: len(data) // 2]) == "corrupt-zip"


def test_a_damaged_chapter_fails_the_book(tmp_path: Path) -> None:
    data = bytearray(zipped(files(), zipfile.ZIP_STORED))
    data[data.index(b"The first chapter")] ^= 1
    assert failure(tmp_path, bytes(data)) == "corrupt-zip"


def test_randomly_damaged_epubs_never_crash_the_reader(tmp_path: Path) -> None:
    rng = random.Random(5)
    seeds = [zipped(files()), zipped(files(), zipfile.ZIP_STORED)]
    outcomes: dict[str, int] = {}
    for _ in range(400):
        mutant = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 6)):
            position = rng.randrange(4, len(mutant))
            mutant[position : position + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
        try:
            document = read(tmp_path, bytes(mutant))
        except InputError:
            outcome = "refused"
        else:
            outcome = document.reason or document.status.value
            assert document.key or document.status is Status.FAILED
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes.keys() <= {
        *("kept", "corrupt-zip", "malformed-book", "missing-file", "not-a-book", "encrypted", "bad-chapter", "no-text"),
        "too-large",
    }
    assert outcomes["corrupt-zip"] > 50
    assert outcomes["kept"] > 3


# Text.


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ('<p>a<a id="x"/>b</p><p>c</p>', "ab\n\nc"),
        ("<script src='x>y'/><p>a</p>", "a"),
        ("<p>a<br/>b</p>", "a\nb"),
        ("<figure><img/><figcaption>A caption</figcaption></figure><p>b</p>", "A caption\n\nb"),
        ("<section epub:type='footnote'><p>1 &#8212; note&nbsp;x</p></section>", "1 — note x"),
        ("<header>h</header><aside>i</aside><footer>j</footer>", "h\ni\nj"),
        ("<p title='a/>b'>c</p>", "c"),
        ("<p>1 < 2 and 3 /> 2</p>", "1 < 2 and 3 /> 2"),
    ],
)
def test_all_text_of_a_chapter_is_kept(html: str, text: str) -> None:
    assert full_text(XHTML.format(html)) == text


@pytest.mark.parametrize("unit", ["<a ", "<a '", '"', "<b/>", "<b c='", "/", "<figure>", "<p title=/>"])
def test_hostile_chapters_take_linear_time(unit: str) -> None:
    assert_linear(lambda size: full_text(f"<html><body><a {unit * 4 * size}"))


def test_chapters_in_other_encodings_are_decoded(tmp_path: Path) -> None:
    latin = XHTML.replace("utf-8", "iso-8859-1").format("<p>Café</p>").encode("latin-1")
    wide = XHTML.replace("utf-8", "utf-16").format("<p>Ünï</p>").encode("utf-16")
    document = read(tmp_path, broken(**{"OEBPS/text/a.xhtml": latin, "OEBPS/text/b.xhtml": wide}))
    assert document.text == "Café\n\nÜnï"


def test_real_epubs_are_read_whole(data_dir: Path) -> None:
    paths = sorted((data_dir / "books").glob("*.epub"))
    if not paths:
        pytest.skip("no EPUBs")
    found = {}
    for path in paths:
        (document,) = read_book(path, os.path.basename(path))
        found[document.title] = len(document.text.split())
        assert document.status is Status.KEPT
        assert document.language == "en"
        assert "Table of Contents" not in document.text
    assert found == {
        "A Day at a Time": pytest.approx(40_076, rel=0.02),
        "Love Among the Chickens": pytest.approx(51_487, rel=0.02),
    }
