"""Read a file as one book: EPUB, a text of Project Gutenberg, or any plain text; compressed or not.

A file is one book and one document. A web page saved under a book's name, and a book that is damaged, locked or too
large, is a FAILED document with the file's name and a reason; a file that is no text (a picture, an empty file) is
refused. The format is recognised by the bytes, not by the name. Cost: 5 to 12 MB/s of plain text; a book is held whole,
in 14 bytes of memory for each of its own.

    python -c "from pipelines.readers.books.book import read_book as read; print(*read('pg11.txt', 'pg11.txt'))"
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from pipelines.document import Document
from pipelines.readers.books.edition import Edition, blank_document, isbns_in
from pipelines.readers.books.epub import Epub, read_epub
from pipelines.readers.books.gutenberg import read_gutenberg, without_credits
from pipelines.readers.streams import Source, open_stream, opened
from pipelines.text.extract import decode, normalise
from registry.errors import InputError, RecordError
from registry.schema import Status

MAX_BOOK_BYTES = 64 << 20  # decompressed: fifteen times the Bible, 900 MB of memory; a larger text is a collection
_SNIFF_BYTES = 8192
_ZIP = b"PK\3\4"
_MAX_CONTROLS = 0.05  # share of the first characters: text has fewer, a binary file more
_CHARSET = re.compile(rb"Character set encoding:[ \t]*([\w.-]{1,40})", re.IGNORECASE)
_HTML = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}>\s*|<!--(?:(?!-->).){0,2000}+-->\s*)*"
    rb"<(?:!doctype html|html|head|body)\b",
    re.IGNORECASE | re.DOTALL,
)
_PAGE_TITLE = re.compile(r"<title\b[^>]*>([^<]{1,300})</title", re.IGNORECASE)
_FORMATS = {
    b"%PDF-": "a PDF",
    b"{\\rtf": "an RTF document",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"PAR1": "a Parquet file",
}
_LABELLED = re.compile(r"^[ \t]*(Title|Authors?|By)[ \t]*:[ \t]*(\S[^\n]{0,300})$", re.IGNORECASE | re.MULTILINE)
_HEAD_CHARS = 1000  # start of a plain text, where "Title: ..." is looked for
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]")


def read_book(source: Source, name: str) -> Iterator[Document]:
    """Read a file as one book; yields one document, even if the book is damaged.

    Args:
        source: the file.
        name: the input's name in the document; its last part is the title of a book that does not state one.

    Raises:
        InputError: the file is no book: empty, binary, or in a format that is not read.
    """
    with opened(source) as file:
        head = file.read(_SNIFF_BYTES)
        if head.startswith(_ZIP):
            yield _read_epub(file, name)
            return
        size = file.seek(0, 2)
        file.seek(0)
        data, failure = _decompressed(file)
    if data.startswith(_ZIP) and not failure:
        yield _read_epub(io.BytesIO(data), name, is_stored=False)
        return
    is_stored = data.startswith(head)  # not compressed, and in UTF-8 or an encoding without a byte-order mark
    document = blank_document(name, size if is_stored else len(data), is_stored=is_stored)
    try:
        _read_text(document, data, failure)
    except RecordError as error:
        document.end(Status.FAILED, error.reason, error.detail)
    if document.key is None and document.status is Status.KEPT:
        document.end(Status.FAILED, "no-text", "the file holds only a publisher's header")
    yield document


def _decompressed(file: BinaryIO) -> tuple[bytes, RecordError | None]:
    """Return a file's bytes up to the first damage, and the damage."""
    chunks, num_bytes = list[bytes](), 0
    stream = open_stream(file)
    while True:
        try:
            chunk = next(stream, b"")
        except RecordError as error:
            return b"".join(chunks), error
        num_bytes += len(chunk)
        if num_bytes > MAX_BOOK_BYTES:
            return b"".join(chunks), RecordError("too-large", f"more than {MAX_BOOK_BYTES} bytes of text")
        if not chunk:
            return b"".join(chunks), None
        chunks.append(chunk)


def _read_epub(file: BinaryIO, name: str, *, is_stored: bool = True) -> Document:
    document = blank_document(name, file.seek(0, 2), is_stored=is_stored)
    try:
        book = read_epub(file)
        text = _epub_text(book)
        book.edition.describe(document, text or None)
        document.text = text
        if book.failure:
            raise book.failure
        if document.key is None:
            raise RecordError("no-text", "no chapter has any text")
    except RecordError as error:
        document.text = ""
        document.end(Status.FAILED, error.reason, error.detail)
    return document


def _epub_text(book: Epub) -> str:
    """Return the text without Project Gutenberg's header and licence; the header fills in what the package lacks."""
    found = read_gutenberg(book.text)
    if not found:
        return book.text
    header, body = found
    edition = book.edition
    edition.gutenberg_number = edition.gutenberg_number or header.gutenberg_number
    edition.published = edition.published or header.published
    edition.title, edition.authors = edition.title or header.title, edition.authors or header.authors
    return without_credits(normalise(body))


def _read_text(document: Document, data: bytes, failure: RecordError | None) -> None:
    """Fill `document` from a plain text.

    Raises:
        InputError: the file is no plain text.
        RecordError: `failure`, after the title and the names that could be read are set; `html-page`.
    """
    if not failure:
        _check_is_text(document, data)
    charset = _CHARSET.search(data[:_SNIFF_BYTES])
    whole = decode(data, charset[1].decode("ascii", "replace") if charset else "", is_html=False)
    whole = whole.replace("\r\n", "\n").replace("\r", "\n")
    found = read_gutenberg(whole)
    edition, text = found if found else (_labelled(whole), whole)
    text = normalise(text)
    text = without_credits(text) if found else text
    edition.isbns = edition.isbns or isbns_in(text)
    edition.describe(document, None if failure else text)
    if failure:
        raise failure
    document.text = text


def _check_is_text(document: Document, data: bytes) -> None:
    head = data[:_SNIFF_BYTES]
    expected = "; expected a plain text or an EPUB"
    if not data.strip(b" \t\r\n\0\x1a\xef\xbb\xbf"):
        raise InputError(f"an empty file{expected}")
    for mark, format_name in _FORMATS.items():
        if head.startswith(mark):
            raise InputError(f"{format_name}{expected}")
    if _HTML.match(head):
        page = decode(data[: 1 << 16])
        title = _PAGE_TITLE.search(page)
        document.title = " ".join(title[1].split()) if title else document.title
        raise RecordError("html-page", f"a web page, {document.title!r}{expected}")
    decoded = head.decode("utf-8", "ignore") if not head.startswith((b"\xff\xfe", b"\xfe\xff")) else ""
    if b"\0" in head or len(_CONTROLS.findall(decoded)) > _MAX_CONTROLS * max(1, len(decoded)):
        raise InputError(f"a binary file that begins with {head[:12]!r}{expected}")


def _labelled(text: str) -> Edition:
    """Return the title and author that a text without a publisher's header labels: "Title: ...", "Author: ..."."""
    edition = Edition()
    for match in _LABELLED.finditer(text, 0, _HEAD_CHARS):
        value = " ".join(match[2].split())
        if match[1].lower() == "title":
            edition.title = edition.title or value
        else:
            edition.authors = edition.authors or (value,)
    return edition
