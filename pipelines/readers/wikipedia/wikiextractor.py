"""Read the output of WikiExtractor: `<doc id="12" url="..." title="Anarchism">` ... `</doc>`, or JSON lines.

Such a file is text, not XML: a title can hold bare quotes, a text anything. So the file is cut at lines that begin with
`<doc ` or end with `</doc>`, and each article is parsed by itself: only a broken one is lost, and reading continues at
the next. Newer releases of the tool escape `<`, `>`, `&` and quotes, and repeat the title as the text's first line;
both are undone. Any compression. Cost: 18 MB/s, decompression not included; one article in memory.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator

from pipelines.document import Document, WikiSite
from pipelines.readers.streams import Source, open_stream, opened
from pipelines.readers.wikipedia.article_document import article, each_wiki_once, failed_article, wiki_of
from pipelines.readers.wikipedia.page_splitter import MAX_PAGE_BYTES, Fragment
from pipelines.text.languages import detect_language
from registry.errors import RecordError
from registry.schema import Status

_OPEN = re.compile(rb"^[ \t]{0,16}<doc[ \t>]", re.MULTILINE)
_CLOSE_OR_OPEN = re.compile(rb"(</doc>)(?=[ \t\r]*(?:\n|<doc[ \t]))|^[ \t]{0,16}<doc[ \t]{1,16}id=", re.MULTILINE)
_LAST_CLOSE = re.compile(rb"</doc>\s*\Z")
_OVERLAP_BYTES = 64  # longest tag, with the blanks around it
_KEPT_BYTES = 1 << 16  # kept of an article that is too large
_STRAY_BYTES = 1 << 20  # text outside articles is reported as one failure for each such piece
_LANGUAGE_BYTES = 1 << 16  # start of the file, from which its language is detected
_HEAD_CHARS = 8192  # longest `<doc ...>`: MediaWiki allows a title 255 bytes
_BLANKS = b"\xef\xbb\xbf \t\r\n"
_TAG = re.compile(r"<[^<>]*>")
_ATTRIBUTES = re.compile(r'<doc((?:\s+[\w:.-]+="[^"]*")+)\s*/?>')
_ATTRIBUTE = re.compile(r'([\w:.-]+)="([^"]*)"')
_BARE_TITLE = re.compile(r'<doc\s([^\n]*?)\btitle="([^\n]*)"\s*>')  # holds quotes, so it extends to the end of the line
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
    """Read a file that WikiExtractor wrote, in either form; a wiki is yielded before its first article.

    Args:
        source: the file, compressed or not.
        name: the input's name in documents.
    """
    with opened(source) as file:
        splitter = _ArticleSplitter(open_stream(file))
        head = splitter.head()
        language = functools.cache(lambda: detect_language(_TAG.sub(" ", head.decode("utf-8", "ignore"))))
        fragments = splitter.lines() if head.startswith(b"{") else splitter.docs()
        yield from each_wiki_once(item for fragment in fragments for item in _read_fragment(fragment, name, language))


class _ArticleSplitter:
    """Splitter of `chunks` into articles. A RecordError raised by `chunks` becomes a failed fragment."""

    def __init__(self, chunks: Iterator[bytes], *, max_bytes: int = MAX_PAGE_BYTES) -> None:
        self._chunks, self._max_bytes = chunks, max_bytes
        self._buffer = bytearray()
        self._offset = 0  # of the buffer's start in the decompressed stream
        self._is_after_hole = False  # what follows belongs to a failure reported already
        self._failure: RecordError | None = None

    def head(self) -> bytes:
        """Return the first `_LANGUAGE_BYTES` of the file, without leading blanks. Must be called first."""
        while len(self._buffer.lstrip(_BLANKS)) < _LANGUAGE_BYTES:
            try:
                if not self._fill():
                    break
            except RecordError as error:
                self._failure = error
                break
        return bytes(self._buffer.lstrip(_BLANKS)[:_LANGUAGE_BYTES])

    def docs(self) -> Iterator[Fragment]:
        """Yield every `<doc>` ... `</doc>`, and stray text between them as failures."""
        return self._all(self._doc)

    def lines(self) -> Iterator[Fragment]:
        """Yield every line that is not blank."""
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
            if fragment.data.strip(_BLANKS):
                yield fragment

    def _doc(self) -> Fragment | None:
        while not (match := _OPEN.search(self._buffer)):
            if len(self._buffer) > _STRAY_BYTES:
                return self._stray(self._buffer.rfind(b"\n") + 1 or len(self._buffer))
            if not self._fill():
                return self._stray(len(self._buffer)) if self._buffer else None
        if self._buffer[: match.start()].strip(_BLANKS):
            return self._stray(match.start())
        self._drop(match.start())
        self._is_after_hole = False
        return self._take_article()

    def _take_article(self) -> Fragment:
        """Return the article at the start of the buffer, up to its end or to the start of the next one."""
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
        is_reported, blanks = self._is_after_hole, len(self._buffer) - len(self._buffer.lstrip())
        self._drop(blanks)
        fragment = self._cut(length - blanks, RecordError("malformed-page", "text outside of any <doc>"))
        return Fragment(offset=fragment.offset, length=0, data=b"") if is_reported else fragment

    def _giant(self, end: re.Pattern[bytes]) -> Fragment:
        """Return the start of an article that is too large; read and drop the rest."""
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
    """Yield an article's wiki, then the article; a FAILED one has its key and title if they can be made out."""
    title, document = None, None
    try:
        is_json = fragment.data.lstrip(_BLANKS).startswith(b"{")
        fields = _json_fields(fragment) if is_json else _doc_fields(fragment)
        title = _unescaped(fields["title"])
        site = wiki_of(fields["url"], name, language)
        document = article(site, fields["id"], title, name)
        yield site
        if fragment.failure:
            raise fragment.failure
        document.markup = _without_title(_unescaped(fields["text"]), title)
    except RecordError as error:
        failure = fragment.failure or error
        if document:
            document.end(Status.FAILED, failure.reason, failure.detail)
        else:
            document = failed_article(failure, name, fragment.offset, title)
    document.input_offset, document.input_length = fragment.offset, fragment.length
    yield document


def _doc_fields(fragment: Fragment) -> dict[str, str]:
    """Return the attributes of a `<doc>`, and its text as "text".

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
    _check_fields(fields)
    return {**fields, "text": text[match.end() :].rstrip().removesuffix("</doc>")}


def _json_fields(fragment: Fragment) -> dict[str, str]:
    try:
        fields = json.loads(_decoded(fragment))
    except (ValueError, RecursionError) as error:
        raise RecordError("malformed-page", f"the line is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise RecordError("malformed-page", f"expected an object, got {type(fields).__name__}")
    if isinstance(fields.get("id"), int):
        fields["id"] = str(fields["id"])
    _check_fields(fields, "text")
    # JSON can escape half of a surrogate pair, which UTF-8 cannot encode
    return {name: fields[name].encode("utf-8", "replace").decode() for name in ("id", "url", "title", "text")}


def _check_fields(fields: dict[str, str], *more: str) -> None:
    missing = [name for name in ("id", "url", "title", *more) if not isinstance(fields.get(name), str)]
    if missing:
        raise RecordError("malformed-page", f"an article lacks {', '.join(missing)}")


def _decoded(fragment: Fragment) -> str:
    """Return a fragment as text. A failed one may end within a character, so there invalid bytes are replaced."""
    try:
        return fragment.data.decode("utf-8-sig", "replace" if fragment.failure else "strict")
    except UnicodeDecodeError as error:
        raise RecordError("malformed-page", f"not UTF-8: {error}") from error


def _unescaped(text: str) -> str:
    """Undo one application of `html.escape`; other entities stay as they are."""
    return _ENTITY.sub(lambda match: _ESCAPED[match[0]], text) if "&" in text else text


def _without_title(text: str, title: str) -> str:
    first, _, rest = text.lstrip().partition("\n")
    return rest if first.strip() == title.strip() else text
