"""Read a web archive (WARC, WET, ARC) as documents: captures of pages, and other answers with the reason to drop them.

The outcome of a record, by its type:

    response, resource, conversion   a capture: kept at this stage, if it is HTML or plain text answered with status 200
                                     (or the archive's own text of a page), and its URL names a source
    the same types, otherwise        filtered: http-status, redirect, media-type, not-http (DNS, notes of the crawler)
    revisit                          filtered: the page had not changed; the capture it refers to stays the newest
    continuation, later segments     filtered: segment
    request                          no document, unless the file has nothing else of its URL: filtered, no-response
    warcinfo, metadata, others       no document: they describe records
    unreadable                       failed, with its offset and, if its head could be read, its URL

Offsets and lengths are those of CDX indexes: of the record's own gzip member in the file as stored (`dd`, then `zcat`),
or of the decompressed content where it has none (`Document.input_stored`).
Cost: 4 ms for a page, nearly all of it extraction (`pipelines.text.extract`).

    python -c "from pipelines.readers.web.archive import read_archive; print(*read_archive('crawl.warc.gz', 'crawl'))"
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from pipelines.document import Document, Form
from pipelines.readers.streams import Source, opened
from pipelines.readers.web.http_response import Response, parse_response
from pipelines.readers.web.warc_records import MAX_BODY_BYTES, Record, read_records
from registry import ids
from registry.errors import InputError, RecordError
from registry.identity import WebSource, canonical_url, web_key
from registry.schema import Kind, Status

_CAPTURES = ("response", "resource", "conversion")
_MAX_WAITING = 100_000  # requests without an answer so far; beyond this the oldest are forgotten
_MAX_HELD = 10_000  # failures before the first record; beyond this the file counts as an archive

_WEB_URL = re.compile(r"https?://", re.IGNORECASE)
_HTML_TYPES = ("text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml")
_UNSTATED_TYPES = ("", "application/octet-stream", "application/http", "unknown/unknown", "no-type", "*/*", "unk")
_HTML_START = re.compile(
    rb"[\s\xef\xbb\xbf]*(?:<!--.{0,2000}?-->\s*)*<(?:!doctype\s+html|html|head|body|title)\b", re.I | re.S
)
_DATE = re.compile(r"\d{4}(?:-\d\d(?:-\d\d(?:T\d\d(?::?\d\d(?::?\d\d(?:\.\d+)?)?)?Z?)?)?)?")
_ARC_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)?(\d\d)?(\d\d)?\d*")


def read_archive(source: Source, name: str, web_source: WebSource = WebSource.DOMAIN) -> Iterator[Document]:
    """Read an archive, in the order of the file.

    Args:
        source: the file.
        name: the input's name in documents.
        web_source: the part of a URL that names its source: registrable domain, host or page.

    Raises:
        InputError: the file holds no record.
    """
    with opened(source) as file:
        archive = _Archive(name, web_source)
        for record in _checked(read_records(file), name):
            yield from archive.read(record)
        yield from archive.unanswered()


def _checked(records: Iterator[Record], name: str) -> Iterator[Record]:
    """Yield the records, once one of them shows that the file is a web archive."""
    held: list[Record] = []
    try:
        for record in records:
            if record.failure is None or len(held) >= _MAX_HELD:
                yield from itertools.chain(held, [record], records)
                return
            held.append(record)
    except InputError as error:
        raise InputError(f"{name} is no web archive: {error}") from error
    if any(record.head or (record.failure and record.failure.reason != "bad-record") for record in held):
        yield from held
        return
    found = held[0].failure.detail if held and held[0].failure else "expected a record, found nothing"
    raise InputError(f"{name} is no web archive: {found}; give a WARC, WET or ARC file")


class _Archive:
    """The state of reading one file: requests wait here for their answers."""

    def __init__(self, name: str, web_source: WebSource) -> None:
        self._name, self._web_source = name, web_source
        self._waiting: dict[int, Document] = {}  # requests without an answer so far, by doc_id
        self._answered: dict[int, None] = {}

    def read(self, record: Record) -> Iterator[Document]:
        """Yield the document of a record, if it becomes one."""
        kind = record.head.get("warc-type", "").lower()
        if record.failure:
            if kind in ("", "revisit", *_CAPTURES):
                yield self._ended(record, Status.FAILED, record.failure.reason, record.failure.detail)
        elif kind == "request":
            self._wait(record)
        elif kind in (*_CAPTURES, "revisit", "continuation") and not record.head.get("warc-target-uri", "").startswith(
            "filedesc:"
        ):
            document = self._document(record)
            try:
                self._fill(document, record, kind)
            except RecordError as error:
                document.end(Status.FAILED, error.reason, error.detail)
            self._answer(document)
            yield document

    def unanswered(self) -> Iterator[Document]:
        """Yield the requests to which the file holds no answer."""
        for document in self._waiting.values():
            document.end(Status.FILTERED, "no-response", "a request without an answer in this file")
            yield document

    def _document(self, record: Record) -> Document:
        url = record.head.get("warc-target-uri", "").strip().strip("<>").strip() or None
        document = Document(
            kind=Kind.WEB,
            key=None,
            locator=str(record.offset),
            url=url,
            captured=_date(record.head.get("warc-date", "")),
            input_file=self._name,
            input_offset=record.offset,
            input_length=record.length,
            input_stored=record.stored,
        )
        if url and _WEB_URL.match(url):
            try:
                document.locator, document.key = canonical_url(url), web_key(url, self._web_source)
            except RecordError as error:
                document.locator = str(record.offset)
                document.end(Status.FAILED, error.reason, error.detail)
        return document

    def _ended(self, record: Record, status: Status, reason: str, detail: str) -> Document:
        document = self._document(record)
        document.end(status, reason, detail)
        return document

    def _fill(self, document: Document, record: Record, kind: str) -> None:
        """Set the markup of `document`, or end it with a reason."""
        if document.status is not Status.KEPT:
            return
        if document.url is None:
            raise RecordError("no-url", "a capture without WARC-Target-URI")
        if document.key is None:
            document.end(Status.FILTERED, "not-http", urlsplit(document.url).scheme)
        elif kind == "revisit":
            document.end(Status.FILTERED, "revisit", record.head.get("warc-profile", ""))
        elif kind == "continuation" or record.head.get("warc-segment-number", "1").strip().lstrip("0") != "1":
            document.end(Status.FILTERED, "segment", f"number {record.head.get('warc-segment-number', '')}")
        elif kind == "conversion":
            document.markup, document.charset = record.body, "utf-8"
            _check_size(record)
        else:
            _fill_from_response(document, _response(record), record)

    def _wait(self, record: Record) -> None:
        document = self._document(record)
        if document.key is None:
            return
        doc_id = ids.doc_id(document.key, document.locator)
        if doc_id not in self._answered:
            self._waiting[doc_id] = document
        if len(self._waiting) > _MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def _answer(self, document: Document) -> None:
        if document.key is None:
            return
        doc_id = ids.doc_id(document.key, document.locator)
        self._answered[doc_id] = None
        self._waiting.pop(doc_id, None)
        if len(self._answered) > _MAX_WAITING:
            del self._answered[next(iter(self._answered))]


def _response(record: Record) -> Response:
    """Return the HTTP message of a record; where it has none, its body under the record's own media type."""
    found = parse_response(record.body)
    if found.status is None:
        return Response(
            status=None, fields={"content-type": record.head.get("content-type", "")}, content=found.content
        )
    return found


def _fill_from_response(document: Document, response: Response, record: Record) -> None:
    status = 200 if response.status is None else response.status
    if 300 <= status < 400 and status != 304:
        document.end(Status.FILTERED, "redirect", f"{status} {response.fields.get('location', '')}".strip())
    elif status not in (200, 203):
        document.end(Status.FILTERED, "http-status", str(status))
    else:
        form = _form(document, response)
        if form is None:
            document.end(Status.FILTERED, "media-type", response.media_type or "not stated")
        else:
            _check_size(record)
            document.form, document.charset, document.markup = form, response.charset, response.payload()


def _form(document: Document, response: Response) -> Form | None:
    """Return the payload's form, by its media type, else by its first bytes; None if it is no text."""
    if response.media_type in _HTML_TYPES:
        return Form.HTML
    if response.media_type == "text/plain":
        path = urlsplit(document.locator).path
        return None if path == "/robots.txt" else Form.TEXT
    if response.media_type in _UNSTATED_TYPES:
        with contextlib.suppress(RecordError):
            return Form.HTML if _HTML_START.match(response.payload()[:4096]) else None
    return None


def _check_size(record: Record) -> None:
    if record.body_length > MAX_BODY_BYTES:
        raise RecordError("too-large", f"a record of {record.body_length} bytes, at most {MAX_BODY_BYTES} are read")


def _date(text: str) -> str:
    """Return a date as ISO 8601 in UTC, to the precision that the archive states; "" if `text` is no date."""
    text = text.strip()
    arc = _ARC_DATE.fullmatch(text)
    if arc:
        year, month, day, *clock = (part or "00" for part in arc.groups())
        return f"{year}-{month}-{day}T{':'.join(clock)}Z"
    return text if _DATE.fullmatch(text) else ""
