"""What WikiExtractor wrote -> documents: `<doc id="12" url="..." title="Anarchism">` ... `</doc>`, or JSON lines.

Such files are text and no XML: titles can hold bare quotes, texts anything, so they are cut at lines that begin with
`<doc ` and end with `</doc>`, and each piece is read by itself: one that is broken costs itself, and reading goes on at
the next. The tool escapes `<`, `>`, `&` and quotes in newer releases; that is undone, as is the title that it repeats
as the first line. Any compression. Cost: 18 MB/s beside decompression; one article in memory.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator

from pipelines.document import Document, WikiSite
from pipelines.filters.rules import detect_language
from pipelines.readers.streams import Source, open_stream, opened
from pipelines.readers.wikipedia.articles import article, failed_article, wiki_of
from pipelines.readers.wikipedia.page_splitter import MAX_PAGE_BYTES, Fragment
from registry.errors import RecordError
from registry.schema import Status

_OPEN = re.compile(rb"^[ \t]{0,16}<doc[ \t>]", re.MULTILINE)
_CLOSE_OR_OPEN = re.compile(rb"(</doc>)(?=[ \t\r]*(?:\n|<doc[ \t]))|^[ \t]{0,16}<doc[ \t]{1,16}id=", re.MULTILINE)
_LAST_CLOSE = re.compile(rb"</doc>\s*\Z")
_OVERLAP_BYTES = 64  # of a tag and the blanks around it
_KEPT_BYTES = 1 << 16  # of what is too large
_STRAY_BYTES = 1 << 20  # of text that is in no article: one failure for each
_HEAD_CHARS = 8192  # of a `<doc ...>`: MediaWiki allows a title 255 bytes
_ATTRIBUTES = re.compile(r'<doc((?:\s+[\w:.-]+="[^"]*")+)\s*/?>')
_ATTRIBUTE = re.compile(r'([\w:.-]+)="([^"]*)"')
_BARE_TITLE = re.compile(r'<doc\s([^\n]*?)\btitle="([^\n]*)"\s*>')  # quotes within: it ends with the line
_ESCAPED = {
    "&lt;": "<",
    "&gt;": ">",
    "&amp;": "&",
    "&quot;": '"',
    "&#34;": '"',
    "&#39;": "'",
    "&#039;": "'",
    "&#x27;": "'",
}
_ENTITY = re.compile("|".join(_ESCAPED))


def read_extracted(source: Source, name: str) -> Iterator[Document | WikiSite]:
    """Reads a file that WikiExtractor wrote, in either form: each wiki before its first article.

    Args:
        source: the file, compressed or not.
        name: what documents call the input.
    """
    sites = set[WikiSite]()
    with opened(source) as file:
        cutter = _Cutter(open_stream(file))
        head = cutter.head()
        language = functools.cache(lambda: detect_language(_TAG.sub(" ", head.decode("utf-8", "ignore"))))
        for fragment in cutter.lines() if head.startswith(b"{") else cutter.docs():
            for item in _read_fragment(fragment, name, language):
                if not isinstance(item, WikiSite):
                    yield item
                elif item not in sites:
                    sites.add(item)
                    yield item


_HEAD_BYTES = 1 << 16  # of a file tell its language
_BLANKS = b"\xef\xbb\xbf \t\r\n"
_TAG = re.compile(r"<[^<>]*>")


class _Cutter:
    """Cuts `chunks` into articles. A RecordError that iterating `chunks` raises becomes a failed fragment."""

    def __init__(self, chunks: Iterator[bytes], *, max_bytes: int = MAX_PAGE_BYTES) -> None:
        self._chunks, self._max_bytes = chunks, max_bytes
        self._buffer = bytearray()
        self._offset = 0  # of the buffer, in the decompressed stream
        self._is_after_hole = False  # what comes is the rest of something that was told already
        self._failure: RecordError | None = None

    def head(self) -> bytes:
        """The first `_HEAD_BYTES` of the file, without the blanks before them. To be called first."""
        while len(self._buffer.lstrip(_BLANKS)) < _HEAD_BYTES:
            try:
                if not self._fill():
                    break
            except RecordError as error:
                self._failure = error
                break
        return bytes(self._buffer.lstrip(_BLANKS)[:_HEAD_BYTES])

    def docs(self) -> Iterator[Fragment]:
        """Every `<doc>` ... `</doc>`, and what is wrong between them."""
        return self._all(self._doc)

    def lines(self) -> Iterator[Fragment]:
        """Every line that is not blank."""
        return self._all(self._line)

    def _all(self, take: Callable[[], Fragment | None]) -> Iterator[Fragment]:
        while True:
            try:
                if self._failure:
                    raise self._failure
                fragment = take()
            except RecordError as error:
                self._failure, self._is_after_hole = None, True
                yield self._cut(len(self._buffer), error)
                continue
            if fragment is None:
                return
            if fragment.data.strip(b"\xef\xbb\xbf \t\r\n"):
                yield fragment

    def _doc(self) -> Fragment | None:
        while not (match := _OPEN.search(self._buffer)):
            if len(self._buffer) > _STRAY_BYTES:
                return self._stray(self._buffer.rfind(b"\n") + 1 or len(self._buffer))
            if not self._fill():
                return self._stray(len(self._buffer)) if self._buffer else None
        if self._buffer[: match.start()].strip(b"\xef\xbb\xbf \t\r\n"):
            return self._stray(match.start())
        self._drop(match.start())
        self._is_after_hole = False
        return self._one()

    def _one(self) -> Fragment:
        """The article at the start of the buffer, up to its end or to where the next one begins."""
        searched = len(b"<doc ")
        while not (match := _CLOSE_OR_OPEN.search(self._buffer, searched)):
            if len(self._buffer) > self._max_bytes:
                return self._giant(_CLOSE_OR_OPEN)
            searched = max(len(b"<doc "), len(self._buffer) - _OVERLAP_BYTES)
            if not self._fill():
                closed = _LAST_CLOSE.search(self._buffer)
                failure = None if closed else RecordError("truncated", "the file ends within an article")
                return self._cut(len(self._buffer), failure)
        if match[1]:
            return self._cut(match.end())
        return self._cut(match.start(), RecordError("malformed-page", "the next <doc> comes before </doc>"))

    def _line(self) -> Fragment | None:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            if len(self._buffer) > self._max_bytes:
                return self._giant(re.compile(rb"(\n)"))
            searched = len(self._buffer)
            if not self._fill():
                return self._cut(len(self._buffer)) if self._buffer else None
        fragment = self._cut(end + 1)
        is_rest, self._is_after_hole = self._is_after_hole and not fragment.data.startswith(b"{"), False
        if is_rest:
            return Fragment(offset=fragment.offset, length=0, data=b"")
        return fragment

    def _stray(self, length: int) -> Fragment:
        told, blanks = self._is_after_hole, len(self._buffer) - len(self._buffer.lstrip())
        self._drop(blanks)
        fragment = self._cut(length - blanks, RecordError("malformed-page", "text that is in no <doc>"))
        return Fragment(offset=fragment.offset, length=0, data=b"") if told else fragment

    def _giant(self, end: re.Pattern[bytes]) -> Fragment:
        """The start of an article that is too large; the rest of it is read and dropped."""
        offset, data = self._offset, bytes(self._buffer[:_KEPT_BYTES])
        self._drop(len(self._buffer) - _OVERLAP_BYTES)
        while not (match := end.search(self._buffer)):
            self._drop(max(0, len(self._buffer) - _OVERLAP_BYTES))
            if not self._fill():
                break
        self._drop(match.end() if match and match[1] else match.start() if match else len(self._buffer))
        failure = RecordError("too-large", f"an article of more than {self._max_bytes} bytes")
        return Fragment(offset=offset, length=self._offset - offset, data=data, failure=failure)

    def _fill(self) -> bool:
        chunk = next(self._chunks, b"")
        self._buffer += chunk
        return bool(chunk)

    def _cut(self, length: int, failure: RecordError | None = None) -> Fragment:
        fragment = Fragment(offset=self._offset, length=length, data=bytes(self._buffer[:length]), failure=failure)
        self._drop(length)
        return fragment

    def _drop(self, length: int) -> None:
        del self._buffer[:length]
        self._offset += length


def _read_fragment(fragment: Fragment, name: str, language: Callable[[], str]) -> Iterator[Document | WikiSite]:
    """An article after its wiki; one that cannot be read under its key and title, if they can be made out."""
    title, document = None, None
    try:
        is_json = fragment.data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")
        fields = _json_fields(fragment) if is_json else _doc_fields(fragment)
        title = _unescaped(fields["title"])
        site = wiki_of(fields["url"], name, language)
        document = article(site, fields["id"], title, name)
        yield site
        if fragment.failure:
            raise fragment.failure
        document.markup = _without_title(_unescaped(fields["text"]), title)
    except RecordError as error:
        told = fragment.failure or error
        if document:
            document.end(Status.FAILED, told.reason, told.detail)
        else:
            document = failed_article(told, name, fragment.offset, title)
    document.input_offset, document.input_length = fragment.offset, fragment.length
    yield document


def _doc_fields(fragment: Fragment) -> dict[str, str]:
    """The attributes of a `<doc>` and its text.

    Raises:
        RecordError: `malformed-page`.
    """
    text = _decoded(fragment).lstrip()
    match = _ATTRIBUTES.match(text, 0, _HEAD_CHARS)
    if match:
        fields = dict(_ATTRIBUTE.findall(match[1]))
    else:
        match = _BARE_TITLE.match(text, 0, _HEAD_CHARS)
        if not match:
            raise RecordError("malformed-page", f"expected <doc id url title>, got {text[:80]!r}")
        fields = {**dict(_ATTRIBUTE.findall(match[1])), "title": match[2]}
    _check(fields)
    return {**fields, "text": text[match.end() :].rstrip().removesuffix("</doc>")}


def _json_fields(fragment: Fragment) -> dict[str, str]:
    try:
        fields = json.loads(_decoded(fragment))
    except (ValueError, RecursionError) as error:
        raise RecordError("malformed-page", f"a line that is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RecordError("malformed-page", f"expected an object, got {type(fields).__name__}")
    if isinstance(fields.get("id"), int):
        fields["id"] = str(fields["id"])
    _check(fields, "text")
    # JSON can escape half of a surrogate pair, which is no text that could be stored
    return {name: fields[name].encode("utf-8", "replace").decode() for name in ("id", "url", "title", "text")}


def _check(fields: dict[str, str], *more: str) -> None:
    missing = [name for name in ("id", "url", "title", *more) if not isinstance(fields.get(name), str)]
    if missing:
        raise RecordError("malformed-page", f"an article without {', '.join(missing)}")


def _decoded(fragment: Fragment) -> str:
    """The text of a fragment; what a failed one has is only to be named, so its end can be cut within a letter."""
    try:
        return fragment.data.decode("utf-8-sig", "replace" if fragment.failure else "strict")
    except UnicodeDecodeError as error:
        raise RecordError("malformed-page", f"not UTF-8: {error}") from error


def _unescaped(text: str) -> str:
    """What `html.escape` wrote as it was: once, and nothing else that looks like an entity."""
    return _ENTITY.sub(lambda match: _ESCAPED[match[0]], text) if "&" in text else text


def _without_title(text: str, title: str) -> str:
    first, _, rest = text.lstrip().partition("\n")
    return rest if first.strip() == title.strip() else text
