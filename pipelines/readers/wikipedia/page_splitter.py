"""Split the bytes of a MediaWiki dump into `<page>` fragments, each with its offset.

An XML parser over a whole dump stops at the first bad byte and cannot say where a page began. In a dump `<page>` and
`</page>` occur only as tags, since text is escaped, so pages are cut out at these tags and parsed one by one: only a
bad page is lost, and reading continues at the next `<page>`. Cost: 500 MB/s; one page, at most `MAX_PAGE_BYTES`, in
memory.

    pages = PageSplitter(open_stream(file))
    head = pages.head()
    for fragment in pages: ...
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from registry.errors import RecordError

MAX_PAGE_BYTES = 64 << 20  # MediaWiki allows 2 MiB a revision ($wgMaxArticleSize); with room for several revisions
HEAD_BYTES = 1 << 20  # a siteinfo beyond this is not read
_KEPT_BYTES = 1 << 16  # kept of a page that is too large: title and id are in its first lines
_TAG = re.compile(rb"<(/?)page>")
_OUTSIDE = re.compile(rb"<page>|</mediawiki>")
_OVERLAP_BYTES = len(b"</mediawiki>") - 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Fragment:
    """The bytes of a page in the dump, or a stretch where a page could not be read.

    Attributes:
        offset: start, in bytes of the decompressed stream.
        length: length in bytes.
        data: `<page>...</page>`; of a failure, the bytes that there are, from `<page>` on.
        failure: why this is not a whole page; None for a page.
    """

    offset: int
    length: int
    data: bytes
    failure: RecordError | None = None


def root_tag(head: bytes) -> bytes:
    """Return a dump's start tag without its ">" (`<mediawiki version="0.10" xml:lang="en"`); "" if there is none."""
    start = head.find(b"<mediawiki")
    return head[start:].partition(b">")[0] if start >= 0 else b""


class PageSplitter:
    """Splitter of `chunks` into pages. A RecordError raised by `chunks` becomes a failed fragment."""

    def __init__(self, chunks: Iterator[bytes], *, max_page_bytes: int = MAX_PAGE_BYTES) -> None:
        self._chunks = chunks
        self._max_page_bytes = max_page_bytes
        self._buffer = bytearray()
        self._offset = 0  # of the buffer's start in the stream
        self._failure: RecordError | None = None  # met by `head`, yielded by the iteration
        self._is_closed = False  # `</mediawiki>` was seen, or is not expected

    def head(self) -> bytes:
        """Return what precedes the first page, at most `HEAD_BYTES`. Must be called first."""
        while b"<page>" not in self._buffer and len(self._buffer) < HEAD_BYTES:
            try:
                if not self._fill():
                    break
            except RecordError as error:
                self._failure = error
                break
        head, page, _ = bytes(self._buffer[:HEAD_BYTES]).partition(b"<page>")
        self._is_closed = not root_tag(head) or root_tag(head).endswith(b"/")
        return head + page

    def __iter__(self) -> Iterator[Fragment]:
        if self._failure:
            yield self._hole(self._failure)
        while True:
            try:
                if not self._seek_page():
                    break
                yield self._take_page()
            except RecordError as error:
                yield self._hole(error)
        if not self._is_closed:
            yield self._cut(0, RecordError("truncated", "the dump ends without </mediawiki>"))

    def _fill(self) -> bool:
        chunk = next(self._chunks, b"")
        self._buffer += chunk
        return bool(chunk)

    def _seek_page(self) -> bool:
        """Drop what precedes the next `<page>`; return False if there is none."""
        while True:
            match = _OUTSIDE.search(self._buffer)
            if match:
                self._is_closed = match[0] != b"<page>"
                self._drop(match.start() if match[0] == b"<page>" else match.end())
                if not self._is_closed:
                    return True
                continue
            self._drop(max(0, len(self._buffer) - _OVERLAP_BYTES))
            if not self._fill():
                return False

    def _take_page(self) -> Fragment:
        """Return the page at the start of the buffer, up to its end or to the start of the next one."""
        searched = len(b"<page>")
        while not (match := _TAG.search(self._buffer, searched)):
            if len(self._buffer) > self._max_page_bytes:
                return self._take_giant()
            searched = max(len(b"<page>"), len(self._buffer) - _OVERLAP_BYTES)
            if not self._fill():
                self._is_closed = True  # reported here
                return self._cut(len(self._buffer), RecordError("truncated", "the dump ends within a page"))
        if match[1]:
            return self._cut(match.end())
        return self._cut(match.start(), RecordError("malformed-page", "the next <page> comes before </page>"))

    def _take_giant(self) -> Fragment:
        """Return the start of a page that is too large; read and drop the rest."""
        offset, data = self._offset, bytes(self._buffer[:_KEPT_BYTES])
        failure = RecordError("too-large", f"a page of more than {self._max_page_bytes} bytes")
        self._drop(len(b"<page>"))
        while not (match := _TAG.search(self._buffer)):
            self._drop(max(0, len(self._buffer) - _OVERLAP_BYTES))
            if not self._fill():
                break
        self._drop(match.end() if match and match[1] else match.start() if match else len(self._buffer))
        return Fragment(offset=offset, length=self._offset - offset, data=data, failure=failure)

    def _hole(self, error: RecordError) -> Fragment:
        """Return what was read of a page before the stream failed; reading continues at the next `<page>`."""
        self._is_closed = True  # if the file ends here, this failure has reported it
        self._failure = None
        start = self._buffer.find(b"<page>")
        self._drop(max(0, start))
        return self._cut(len(self._buffer), error)

    def _cut(self, length: int, failure: RecordError | None = None) -> Fragment:
        fragment = Fragment(offset=self._offset, length=length, data=bytes(self._buffer[:length]), failure=failure)
        self._drop(length)
        return fragment

    def _drop(self, length: int) -> None:
        del self._buffer[:length]
        self._offset += length
