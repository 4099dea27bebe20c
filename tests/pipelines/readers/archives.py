"""Web archives for tests: the bytes of records, in the spellings of various crawlers."""

from __future__ import annotations

import gzip
from collections.abc import Iterable

import zstandard

WORDS = "The quick brown fox jumps over the lazy dog while seven wizards watch from the hill"


def page(words: str = WORDS, title: str = "A page") -> bytes:
    """Return HTML with some boilerplate around its main content."""
    body = "".join(f"<p>{words}, part {number} of it.</p>" for number in range(4))
    return (
        f"<!doctype html><html><head><title>{title}</title></head><body><nav><a href=/>Home</a></nav>"
        f"<main><article><h1>{title}</h1>{body}</article></main><footer>Imprint</footer></body></html>"
    ).encode()


def response(
    content: bytes, *, status: str = "200 OK", media_type: str = "text/html; charset=utf-8", fields: str = ""
) -> bytes:
    """Return an HTTP response."""
    return f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\n{fields}\r\n".encode() + content


def record(
    url: str | None,
    body: bytes,
    *,
    kind: str = "response",
    date: str = "2024-01-02T03:04:05Z",
    media_type: str = "application/http; msgtype=response",
    fields: str = "",
    length: int | None = None,
    end: str = "\r\n",
) -> bytes:
    """Return a WARC record; `length` is its stated length, `end` the end of its lines."""
    lines = ["WARC/1.0", f"WARC-Type: {kind}"]
    lines += [f"WARC-Target-URI: {url}"] if url is not None else []
    lines += [f"WARC-Date: {date}", f"Content-Type: {media_type}"]
    lines += [line for line in fields.split("\n") if line]
    lines += [f"Content-Length: {len(body) if length is None else length}", "", ""]
    return end.join(lines).encode() + body + end.encode() * 2


def arc_record(url: str, body: bytes, date: str = "20080430204825") -> bytes:
    """Return an ARC record, version 1."""
    return f"{url} 127.0.0.1 {date} text/html {len(body)}\n".encode() + body + b"\n"


def by_record(records: Iterable[bytes]) -> bytes:
    """Compress each record to a gzip member of its own."""
    return b"".join(gzip.compress(item, mtime=0) for item in records)


def by_frame(records: Iterable[bytes]) -> bytes:
    """Compress each record to a zstd frame of its own."""
    return b"".join(zstandard.compress(item) for item in records)
