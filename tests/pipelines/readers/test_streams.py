"""Test that streams yield all bytes that can be read, in bounded memory, and report the damage."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.readers import streams
from pipelines.readers.streams import open_stream
from registry.errors import InputError, RecordError
from tests.pipelines.readers.dumps import COMPRESSORS

NAMES = sorted(COMPRESSORS)


def read_all(data: bytes) -> tuple[bytes, list[str]]:
    """Return the bytes read of `data`, and the reasons of its failures."""
    stream = open_stream(io.BytesIO(data))
    chunks, reasons = [], []
    while True:
        try:
            chunk = next(stream, None)
        except RecordError as error:
            reasons.append(error.reason)
            continue
        if chunk is None:
            return b"".join(chunks), reasons
        assert chunk
        chunks.append(chunk)


def prose(num_bytes: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    words = [bytes(rng.choices(b"abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(2000)]
    return b" ".join(rng.choices(words, k=num_bytes // 6))[:num_bytes]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30)
@given(data=st.binary(max_size=300), num_parts=st.integers(1, 4), padding=st.integers(0, 600))
def test_concatenated_streams_with_padding_are_one(name: str, data: bytes, num_parts: int, padding: int) -> None:
    text = b"text " + data
    compressed = COMPRESSORS[name](text) * num_parts + b"\0" * padding
    assert read_all(compressed) == (text * num_parts, [])


@given(data=st.binary(max_size=3000))
def test_a_plain_file_is_yielded_unchanged(data: bytes) -> None:
    text = b"<mediawiki>" + data
    assert read_all(text) == (text, [])


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_yields_all_that_its_decoder_can(name: str) -> None:
    data = prose(1_100_000)
    compressed = COMPRESSORS[name](data)
    lengths = []
    for cut in random.Random(1).sample(range(20, len(compressed)), 8):
        got, reasons = read_all(compressed[:cut])
        assert reasons == ["truncated-stream"]
        assert got == _decoder(name).decompress(compressed[:cut], 1 << 30)
        assert data.startswith(got)
        lengths.append(len(got))
    assert max(lengths) > len(data) // 2, "no cut left anything to read"


def _decoder(name: str) -> streams._Decoder:
    return {"bz2": bz2.BZ2Decompressor, "gz": streams._GzipDecoder, "xz": lzma.LZMADecompressor}[name]()


@pytest.mark.parametrize("name", ["bz2", "xz"])
def test_reading_continues_at_the_next_stream_after_damage(name: str) -> None:
    parts = [prose(20_000, seed) for seed in range(12)]
    compressed = [bytearray(COMPRESSORS[name](part)) for part in parts]
    for damaged in (3, 8):
        compressed[damaged][len(compressed[damaged]) // 2] ^= 0x55
    got, reasons = read_all(b"".join(map(bytes, compressed)))
    assert reasons == ["corrupt-stream"] * 2
    assert [part in got for part in parts] == [index not in (3, 8) for index in range(12)]


@pytest.mark.parametrize("name", ["bz2", "xz"])
def test_a_damaged_start_of_a_stream_is_one_failure(name: str) -> None:
    first, second, third = prose(5000, 1), prose(5000, 2), prose(5000, 3)
    compress = COMPRESSORS[name]
    broken = b"?" + compress(second)[1:]
    assert read_all(compress(first) + broken + compress(third)) == (first + third, ["corrupt-stream"])


def test_a_bzip2_block_that_fails_its_checksum_is_withheld() -> None:
    data = prose(2_500_000)  # three blocks
    compressed = bytearray(bz2.compress(data))
    compressed[len(compressed) // 2] ^= 0x10
    got, reasons = read_all(bytes(compressed))
    assert reasons == ["corrupt-stream"]
    assert data.startswith(got)
    assert 800_000 < len(got) < 1_000_000, "the first block, and none of the second"


def test_garbage_after_gzip_is_reported_and_ends_the_file() -> None:
    assert read_all(gzip.compress(b"x" * 99) + b"garbage") == (b"x" * 99, ["corrupt-stream"])


@pytest.mark.parametrize("name", NAMES)
def test_a_decompression_bomb_is_read_in_bounded_memory(name: str) -> None:
    bomb = COMPRESSORS[name](bytes(24 << 20))
    tracemalloc.start()
    num_bytes = sum(len(chunk) for chunk in open_stream(io.BytesIO(bomb)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_bytes == 24 << 20
    assert peak_bytes < 12 << 20


@given(
    data=st.binary(min_size=0, max_size=400),
    magic=st.sampled_from([b"", b"BZh91AY&SY", b"\x1f\x8b\x08", b"\xfd7zXZ\0"]),
)
def test_no_bytes_crash_the_stream(data: bytes, magic: bytes) -> None:
    read_all(magic + data)


TEXT = "<mediawiki>Привет, мир — 世界 𐍈</mediawiki>" * 50


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize("name", [None, *NAMES])
def test_text_in_other_encodings_becomes_utf8(encoding: str, name: str | None) -> None:
    data = TEXT.encode(encoding)
    got, reasons = read_all(COMPRESSORS[name](data) if name else data)
    assert (got.decode().lstrip("\ufeff"), reasons) == (TEXT, [])


def test_the_encoding_of_an_xml_declaration_is_used() -> None:
    text = '<?xml version="1.0" encoding="ISO-8859-1"?><mediawiki>été</mediawiki>'
    assert read_all(text.encode("latin-1")) == (text.encode(), [])


@pytest.mark.parametrize("encoding", ["klingon", "rot13"])
def test_an_unknown_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(InputError, match=encoding):
        read_all(f'<?xml version="1.0" encoding="{encoding}"?><mediawiki/>'.encode())


def test_an_error_of_the_disk_is_not_reported_as_damage() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise OSError("disk")
            return super().read(size)

    with pytest.raises(OSError, match="disk"):
        list(open_stream(Failing(bz2.compress(random.Random(0).randbytes(1 << 18)))))
