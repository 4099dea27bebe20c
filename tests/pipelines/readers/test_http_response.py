"""Test the parser of HTTP responses in archives: content encodings, and headers that state a wrong one."""

from __future__ import annotations

import contextlib
import gzip
import random
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from pipelines.readers.web import http_response as module
from pipelines.readers.web.http_response import parse_response
from registry.errors import RecordError
from tests.pipelines.readers.archives import page, response

PAGE = page() * 20


def raw_deflate(data: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return encoder.compress(data) + encoder.flush()


def chunked(data: bytes, size: int = 1000, end: bytes = b"\r\n") -> bytes:
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    chunks = b"".join(b"%x;a=b" % len(piece) + end + piece + end for piece in pieces)
    return chunks + b"0" + end + b"Trailer: x" + end * 2


CODINGS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("GZIP", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("br", brotli.compress),
    ("zstd", zstandard.compress),
    ("identity", bytes),
    ("utf-8", bytes),
    ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
]


@pytest.mark.parametrize(("coding", "encode"), CODINGS)
def test_payloads_are_decoded(coding: str, encode: Callable[[bytes], bytes]) -> None:
    fields = f"Content-Encoding: {coding}\r\n"
    assert parse_response(response(encode(PAGE), fields=fields)).payload() == PAGE
    fields += "Transfer-Encoding: chunked\r\n"
    for end in (b"\r\n", b"\n"):
        assert parse_response(response(chunked(encode(PAGE), end=end), fields=fields)).payload() == PAGE


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_payload_that_was_decoded_before_is_unchanged(coding: str) -> None:
    fields = f"Content-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n"
    assert parse_response(response(PAGE, fields=fields)).payload() == PAGE


@pytest.mark.parametrize(("coding", "encode"), CODINGS[:7])
def test_a_truncated_payload_is_decoded_up_to_its_end(coding: str, encode: Callable[[bytes], bytes]) -> None:
    noisy = random.Random(0).randbytes(300_000)
    found = parse_response(response(encode(noisy)[:-1000], fields=f"Content-Encoding: {coding}\r\n")).payload()
    assert noisy.startswith(found)
    assert len(found) > 100_000


def test_truncated_chunks_are_decoded_up_to_their_end() -> None:
    fields = "Transfer-Encoding: chunked\r\n"
    found = parse_response(response(chunked(PAGE)[:1500], fields=fields)).payload()
    assert found == PAGE[: 1500 - 2 * len(b"3e8;a=b\r\n") - len(b"\r\n")]


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_bytes_neither_encoded_nor_text_are_an_error(coding: str) -> None:
    neither = response(b"\x1f\x8b\x08\xff\xff\x00\x01" * 9, fields=f"Content-Encoding: {coding}\r\n")
    with pytest.raises(RecordError, match="content-encoding"):
        parse_response(neither).payload()


@pytest.mark.parametrize(("coding", "encode"), CODINGS[:7])
def test_decompression_bombs_are_refused(
    coding: str, encode: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PAYLOAD_BYTES", 1 << 20)
    bomb = encode(bytes(32 << 20))
    with pytest.raises(RecordError, match="too-large"):
        parse_response(response(bomb, fields=f"Content-Encoding: {coding}\r\n")).payload()


def test_status_media_type_and_charset_are_parsed() -> None:
    fields = b'Content-Type: TEXT/HTML; Charset="ISO-8859-1"\r\nX: a\r\n b\r\n\r\n'
    found = parse_response(b"HTTP/1.1 404 Not Found\r\n" + fields + b"no")
    assert (found.status, found.media_type, found.charset, found.fields["x"]) == (404, "text/html", "ISO-8859-1", "a b")
    bare = parse_response(b"HTTP/1.0 200\nContent-Type:text/plain\nContent-Type: x/y\n\nbody")
    assert (bare.status, bare.media_type, bare.content) == (200, "text/plain", b"body")
    assert parse_response(b"<html>").status is None
    assert parse_response(b"HTTP/1.1 200 OK\r\nCut: of").content == b""


def test_random_damage_raises_only_record_errors() -> None:
    chance = random.Random(0)
    for coding, encode in CODINGS:
        data = response(chunked(encode(PAGE)), fields=f"Content-Encoding: {coding}\r\nTransfer-Encoding: chunked\r\n")
        for _ in range(100):
            mutant = bytearray(data)
            for _ in range(chance.randint(1, 5)):
                mutant[chance.randrange(len(mutant))] = chance.randrange(256)
            with contextlib.suppress(RecordError):
                parse_response(bytes(mutant)).payload()
