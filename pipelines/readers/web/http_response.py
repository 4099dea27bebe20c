"""Parse an HTTP response in an archive into status, fields and decoded payload.

Archives hold the bytes that servers sent; some hold the payload that a browser decoded, under the server's fields. So a
content encoding that the bytes do not have is ignored. A payload that ends early is kept up to there. The decoded size
is bounded. Cost: that of zlib, brotli or zstd.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable, Iterator, Mapping

import brotli
import zstandard

from registry.errors import RecordError

MAX_PAYLOAD_BYTES = 16 << 20  # parsing takes ten times a page's size; the largest pages written by people have 5 MB
_MAX_FIELDS_BYTES = 256 << 10
_STEP_BYTES = 1 << 20
_PIECE_BYTES = 512  # see `_ZSTD_PIECE` of `pipelines.readers.web.gzip_members`

_STATUS_LINE = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})")
_FIELDS_END = re.compile(rb"\r?\n\r?\n")
_CHUNK_LINE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]{0,1000})?\r?\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
    """A parsed HTTP response.

    Attributes:
        status: status code; None if the record is no HTTP message, but only a payload.
        fields: names in lower case -> values; the first of several.
        content: the bytes after the fields, as they were sent.
    """

    status: int | None
    fields: Mapping[str, str]
    content: bytes

    def payload(self) -> bytes:
        """Return the content with chunked transfer and compression undone.

        Raises:
            RecordError: `content-encoding`, if none of it can be decoded; `too-large`.
        """
        data = self.content
        if "chunked" in self.fields.get("transfer-encoding", "").lower():
            data = _dechunked(data)
        codings = re.split(r"[,\s]+", self.fields.get("content-encoding", "").lower())
        for coding in reversed(codings):
            if coding in _DECODERS:
                data = _decoded(data, coding)
        if len(data) > MAX_PAYLOAD_BYTES:
            raise RecordError("too-large", f"a payload of more than {MAX_PAYLOAD_BYTES} bytes")
        return data

    @property
    def media_type(self) -> str:
        """Media type in lower case, without parameters (`text/html`); "" if not stated."""
        return self.fields.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        """Charset that the content type states; "" if it states none."""
        match = re.search(r"charset\s*=\s*[\"']?([^\s\"';,]+)", self.fields.get("content-type", ""), re.IGNORECASE)
        return match[1] if match else ""


def parse_response(body: bytes) -> Response:
    """Parse a record's body as an HTTP response; a body that does not begin like one is only a payload."""
    status = _STATUS_LINE.match(body)
    if not status:
        return Response(status=None, fields={}, content=body)
    end = _FIELDS_END.search(body, 0, _MAX_FIELDS_BYTES)
    head, content = (body[: end.start()], body[end.end() :]) if end else (body[:_MAX_FIELDS_BYTES], b"")
    fields: dict[str, str] = {}
    for line in re.split(r"\r?\n(?![ \t])", head.decode("latin-1"))[1:]:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip().lower(), " ".join(value.split()))
    return Response(status=int(status[1]), fields=fields, content=content)


def _dechunked(data: bytes) -> bytes:
    """Return the content of the chunks, up to where they end; `data` itself if it does not begin with a chunk."""
    parts: list[bytes] = []
    at = 0
    while match := _CHUNK_LINE.match(data, at):
        size = int(match[1], 16)
        if not size:
            break
        parts.append(data[match.end() : match.end() + size])
        at = match.end() + size
        at += 2 if data[at : at + 2] == b"\r\n" else int(data[at : at + 1] == b"\n")
    return b"".join(parts) if parts or _CHUNK_LINE.match(data) else data


def _decoded(data: bytes, coding: str) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        for part in _DECODERS[coding](data):
            parts.append(part)
            size += len(part)
            if size > MAX_PAYLOAD_BYTES:
                raise RecordError("too-large", f"a payload that inflates to more than {MAX_PAYLOAD_BYTES} bytes")
    except (zlib.error, brotli.error, zstandard.ZstdError) as error:
        if not size:
            if _looks_like_text(data):
                return data
            raise RecordError("content-encoding", f"{coding}: {error}") from error
    return b"".join(parts)


def _looks_like_text(data: bytes) -> bool:
    """Whether `data` was decoded before: no compressed stream has 64 bytes without a control character."""
    return not re.search(rb"[\x00-\x08\x0e-\x1f]", data[:64])


def _inflate(data: bytes) -> Iterator[bytes]:
    yield from _zlib_steps(data, 32 + zlib.MAX_WBITS)  # gzip or zlib, detected from the data


def _deflate(data: bytes) -> Iterator[bytes]:
    """Decode zlib's format, which the standard means, or the bare deflate stream that some servers send."""
    is_zlib = len(data) > 1 and data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    yield from _zlib_steps(data, zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


def _zlib_steps(data: bytes, window: int) -> Iterator[bytes]:
    decoder = zlib.decompressobj(window)
    while data and not decoder.eof:
        step = decoder.decompress(data, _STEP_BYTES)
        if not step and data == decoder.unconsumed_tail:
            return
        data = decoder.unconsumed_tail
        yield step


def _brotli(data: bytes) -> Iterator[bytes]:
    decoder = brotli.Decompressor()
    step = decoder.process(data, output_buffer_limit=_STEP_BYTES)
    while step:
        yield step
        step = b"" if decoder.is_finished() else decoder.process(b"", output_buffer_limit=_STEP_BYTES)


def _zstd(data: bytes) -> Iterator[bytes]:
    decoder = zstandard.ZstdDecompressor().decompressobj()
    for start in range(0, len(data), _PIECE_BYTES):
        if decoder.eof:
            return
        yield decoder.decompress(data[start : start + _PIECE_BYTES])


_DECODERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "gzip": _inflate,
    "x-gzip": _inflate,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
