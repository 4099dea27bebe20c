"""A web archive (WARC, WET, ARC) -> documents: every capture of a page, and every other answer with why it is none.

What a record ends as:

    response, resource, conversion   a capture: kept so far, if it is HTML or plain text that a server answered 200 with
                                     (or the archive's own text of it), and its URL names a source
    the same                         filtered: http-status, redirect, media-type, not-http (DNS, notes of the crawler)
    revisit                          filtered: nothing had changed; the capture that it refers to stays the newest
    continuation, later segments     filtered: segment
    request                          none, unless nothing else of its URL is in the file: filtered, no-response
    warcinfo, metadata, others       none: they describe records
    what cannot be read              failed, with its offset and, if its head could be read, its URL

Offsets and lengths are those that CDX indexes use: of the record's own gzip member in the file as it lies
(`dd`, then `zcat`), or of the decompressed content where it has none (`Document.input_stored`).
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
_MAX_WAITING = 100_000  # requests whose answer has not come: beyond that the oldest are let go
_MAX_HELD = 10_000  # failures before the first record: beyond that it is an archive, however bad

_WEB_URL = re.compile(r"https?://", re.IGNORECASE)
_HTML_TYPES = ("text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml")
_UNSAID_TYPES = ("", "application/octet-stream", "application/http", "unknown/unknown", "no-type", "*/*", "unk")
_HTML_START = re.compile(
    rb"[\s\xef\xbb\xbf]*(?:<!--.{0,2000}?-->\s*)*<(?:!doctype\s+html|html|head|body|title)\b", re.I | re.S
)
_DATE = re.compile(r"\d{4}(?:-\d\d(?:-\d\d(?:T\d\d(?::?\d\d(?::?\d\d(?:\.\d+)?)?)?Z?)?)?)?")
_ARC_DATE = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)?(\d\d)?(\d\d)?\d*")


def read_archive(source: Source, name: str, web_source: WebSource = WebSource.DOMAIN) -> Iterator[Document]:
    """Reads an archive, in the order of the file.

    Args:
        source: the file.
        name: what documents call the input.
        web_source: what a web source is.

    Raises:
        InputError: nothing in it is a record.
    """
    with opened(source) as file:
        archive = _Archive(name, web_source)
        for record in _checked(read_records(file), name):
            yield from archive.read(record)
        yield from archive.unanswered()


def _checked(records: Iterator[Record], name: str) -> Iterator[Record]:
    """The records, once it is sure that there is one."""
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
    words = held[0].failure.detail if held and held[0].failure else "expected a record, found nothing"
    raise InputError(f"{name} is no web archive: {words}; give a WARC, WET or ARC file")


class _Archive:
    """One file on its way."""

    def __init__(self, name: str, web_source: WebSource) -> None:
        self._name, self._web_source = name, web_source
        self._waiting: dict[int, Document] = {}  # requests without an answer yet, by document id
        self._answered: dict[int, None] = {}

    def read(self, record: Record) -> Iterator[Document]:
        """What a record comes to."""
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
        """The requests that the file holds no answer to."""
        for document in self._waiting.values():
            document.end(Status.FILTERED, "no-response", "a request without its answer")
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
        """Gives `document` its markup, or its end."""
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
        number = ids.doc_id(document.key, document.locator)
        if number not in self._answered:
            self._waiting[number] = document
        if len(self._waiting) > _MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def _answer(self, document: Document) -> None:
        if document.key is None:
            return
        number = ids.doc_id(document.key, document.locator)
        self._answered[number] = None
        self._waiting.pop(number, None)
        if len(self._answered) > _MAX_WAITING:
            del self._answered[next(iter(self._answered))]


def _response(record: Record) -> Response:
    """The HTTP message of a record; of one that has none, its body under the record's own media type."""
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
            document.end(Status.FILTERED, "media-type", response.media_type or "not said")
        else:
            _check_size(record)
            document.form, document.charset, document.markup = form, response.charset, response.payload()


def _form(document: Document, response: Response) -> Form | None:
    """What the payload is, by its media type, else by how it begins; None if it is no text."""
    if response.media_type in _HTML_TYPES:
        return Form.HTML
    if response.media_type == "text/plain":
        path = urlsplit(document.locator).path
        return None if path == "/robots.txt" else Form.TEXT
    if response.media_type in _UNSAID_TYPES:
        with contextlib.suppress(RecordError):
            return Form.HTML if _HTML_START.match(response.payload()[:4096]) else None
    return None


def _check_size(record: Record) -> None:
    if record.body_length > MAX_BODY_BYTES:
        raise RecordError("too-large", f"a record of {record.body_length} bytes, at most {MAX_BODY_BYTES} are read")


def _date(text: str) -> str:
    """ISO 8601 in UTC, as far as the archive says it; "" if it is no date."""
    text = text.strip()
    arc = _ARC_DATE.fullmatch(text)
    if arc:
        year, month, day, *clock = (part or "00" for part in arc.groups())
        return f"{year}-{month}-{day}T{':'.join(clock)}Z"
    return text if _DATE.fullmatch(text) else ""
