"""Decompress a file in constant memory, yielding all bytes that can be read of a damaged one.

The format is recognised by the first bytes, not by name: gzip (any number of members), bzip2 (multistream, as in
Wikipedia's dumps), xz (concatenated) or plain. Text in UTF-16, UTF-32, or the encoding that an XML declaration names is
converted to UTF-8.

The standard library's file objects drop decompressed bytes when the data after them is bad, and stop at the first
damage. Here the incremental decoders are called directly: a truncated file yields every byte that can be decoded, a
corrupt one all but the last `_STEP_BYTES`, and after damage reading continues at the next bzip2 or xz stream.
A bzip2 block that fails its checksum is withheld: its bytes look like text and are not. gzip and xz have one checksum,
at the end, so there the damage is reported after the bytes, not instead of them.
Cost: bzip2 and xz run as fast as their decoders (17 and 63 MB/s of text), gzip at half its decoder's speed (110 MB/s),
since each step is bounded; 5 MB of memory, even for a decompression bomb.

    for chunk in open_stream(file): ...
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import dataclasses
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

from registry.errors import InputError, RecordError

_READ_BYTES = 1 << 15  # read from the file at once
_CHUNK_BYTES = 1 << 16  # approximate size of a chunk for the caller
_MAX_BLOCK_BYTES = 2 << 20  # a bzip2 block, withheld until its checksum passes; 900 kB unless it is a bomb
_STEP_BYTES = 1 << 10  # asked of a decoder at once, and so the most that a failing call loses
_SNIFF_BYTES = 1 << 10  # enough for a byte-order mark and an XML declaration
_MAGIC_BYTES = 10  # the longest of the magics and restart patterns below

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (b"<\0", "utf-16-le"),  # no mark, but XML begins with "<"
    (b"\0<", "utf-16-be"),
)
_DECLARATION = re.compile(rb"""\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")


class _Decoder(Protocol):
    """The interface that bz2's and lzma's decompressors share."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _GzipDecoder:
    """zlib's decompressor as a `_Decoder`: it keeps the unconsumed input itself."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Codec:
    """A compression format.

    Attributes:
        name: name in messages.
        magic: first bytes of a file.
        decoder: returns a decoder for one stream.
        restart: pattern that finds the next stream after damage; None if it is too short to be safe (gzip: 3 bytes).
        checks_blocks: whether a checksum follows each block (bzip2), so that a block that fails it can be withheld.
    """

    name: str
    magic: bytes
    decoder: Callable[[], _Decoder]
    restart: re.Pattern[bytes] | None
    checks_blocks: bool = False

    @property
    def hold_bytes(self) -> int:
        """The most bytes that are gathered before they are yielded."""
        return _MAX_BLOCK_BYTES if self.checks_blocks else _CHUNK_BYTES


_CODECS = (
    _Codec(name="gzip", magic=b"\x1f\x8b\x08", decoder=_GzipDecoder, restart=None),
    # A bzip2 stream begins with its level and a block's magic (pi), or the end's (sqrt pi) if it is empty.
    _Codec(
        name="bzip2",
        magic=b"BZh",
        decoder=bz2.BZ2Decompressor,
        restart=re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
        checks_blocks=True,
    ),
    _Codec(
        name="xz",
        magic=b"\xfd7zXZ\0",
        decoder=lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 28),
        restart=re.compile(rb"\xfd7zXZ\0\0[\0\x01\x04\x0a]"),
    ),
)
_DECODER_ERRORS = (OSError, ValueError, EOFError, zlib.error, lzma.LZMAError)


class ByteStream(Iterator[bytes]):
    """Decompressed chunks of a file, none empty.

    Damage raises RecordError (`truncated-stream`, `corrupt-stream`) when the iteration reaches it, after all bytes
    before it. Calling `next` again yields the bytes after the damage, as far as they can be read.
    """

    def __init__(self, items: Iterator[bytes | RecordError]) -> None:
        self._items = items

    def __next__(self) -> bytes:
        item = next(self._items)
        if isinstance(item, RecordError):
            raise item
        return item


Source: TypeAlias = str | Path | BinaryIO  # input of a reader: a path, or a seekable binary file at its start


@contextlib.contextmanager
def opened(source: Source) -> Iterator[BinaryIO]:
    """Open `source` as a seekable binary file; a file that the caller opened is not closed at the end."""
    if isinstance(source, (str, Path)):
        with open(source, "rb") as file:
            yield file
    else:
        yield source


def open_stream(file: BinaryIO) -> ByteStream:
    """Return the decompressed bytes of `file` from its position on, as UTF-8 if it is text in another encoding.

    Raises:
        InputError: on iteration, if an XML declaration names an encoding that Python does not know.
    """
    head = file.read(_READ_BYTES)
    for codec in _CODECS:
        if head.startswith(codec.magic):
            return ByteStream(_in_utf8(_decompressed(_Pieces(file, head), codec)))
    return ByteStream(_in_utf8(_plain(file, head)))


def _plain(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    while head:
        yield head
        head = file.read(_READ_BYTES)


class _Pieces:
    """A compressed file in pieces, which can go back to input that a decoder did not use or could not read."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self._file = file
        self._next = head
        self._recent = b""  # the last piece taken, preceded by the end of the piece before it
        self._is_at_start = True  # `_recent` begins where the current stream begins

    def take(self) -> bytes:
        """Return the next piece; empty at the end."""
        piece = self._next or self._file.read(_READ_BYTES)
        self._next = b""
        self._is_at_start &= len(self._recent) < _MAGIC_BYTES
        self._recent = self._recent[1 - _MAGIC_BYTES :] + piece
        return piece

    def start_stream(self, leftover: bytes = b"") -> bool:
        """Go to the next stream, past padding; False at the end. `leftover` is the last decoder's unused input."""
        self._recent = b""
        self._is_at_start = True
        self._next = (leftover or self._next).lstrip(b"\0")
        while not self._next and (piece := self._file.read(_READ_BYTES)):
            self._next = piece.lstrip(b"\0")
        return bool(self._next)

    def restart(self, pattern: re.Pattern[bytes]) -> bool:
        """Go to the next stream that begins with `pattern`, past the current one; return False if there is none."""
        while not (match := pattern.search(self._recent, int(self._is_at_start))):
            if not self.take():
                return False
        return self.start_stream(self._recent[match.start() :])


def _decompressed(pieces: _Pieces, codec: _Codec) -> Iterator[bytes | RecordError]:
    """Yield the bytes of all streams of a file in order, and one error for each damaged stretch."""
    more = pieces.start_stream()
    while more:
        decoder = codec.decoder()
        try:
            yield from _decode_stream(pieces, codec, decoder)
            more = pieces.start_stream(decoder.unused_data)
        except RecordError as error:
            yield RecordError(error.reason, f"{codec.name}: {error.detail}")
            more = codec.restart is not None and pieces.restart(codec.restart)


def _decode_stream(pieces: _Pieces, codec: _Codec, decoder: _Decoder) -> Iterator[bytes]:
    """Yield one stream in chunks. Before damage is raised, all bytes that can be trusted are yielded."""
    steps: list[bytes] = []
    num_bytes = 0
    failure = None
    try:
        for step in _steps(pieces, decoder):
            steps.append(step)
            num_bytes += len(step)
            is_checked = len(step) < _STEP_BYTES  # the decoder needs input, so it is at the end of a block
            if is_checked or num_bytes >= codec.hold_bytes:
                yield from _joined(steps)
                steps, num_bytes = [], 0
    except RecordError as error:
        failure = error
        if error.reason == "corrupt-stream" and codec.checks_blocks:
            steps.clear()
    yield from _joined(steps)
    if failure:
        raise failure


def _joined(steps: list[bytes]) -> Iterator[bytes]:
    if any(steps):
        yield b"".join(steps)


def _steps(pieces: _Pieces, decoder: _Decoder) -> Iterator[bytes]:
    """Yield outputs of at most `_STEP_BYTES`. A decoder that returns less than that needs the next piece."""
    step = b""
    while not decoder.eof:
        piece = b"" if len(step) == _STEP_BYTES else pieces.take()
        if not piece and len(step) < _STEP_BYTES:
            raise RecordError("truncated-stream", "the file ends within a stream")
        try:
            step = decoder.decompress(piece, _STEP_BYTES)
        except _DECODER_ERRORS as error:
            raise RecordError("corrupt-stream", str(error)) from error
        yield step


def _in_utf8(items: Iterator[bytes | RecordError]) -> Iterator[bytes | RecordError]:
    """Yield the same bytes, converted to UTF-8 if their start shows another encoding."""
    start: list[bytes | RecordError] = []
    head = b""
    for item in items:
        start.append(item)
        if isinstance(item, RecordError):
            break
        head += item
        if len(head) >= _SNIFF_BYTES:
            break
    items = itertools.chain(start, items)
    encoding = _encoding(head)
    yield from items if encoding == "utf-8" else _transcoded(items, encoding)


def _encoding(head: bytes) -> str:
    """Return the encoding of a text that begins with `head`.

    Raises:
        InputError: its XML declaration names an unknown encoding.
    """
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            return encoding
    match = _DECLARATION.match(head[:_SNIFF_BYTES])
    name = match[1].decode("ascii") if match else "utf-8"
    try:
        codec = codecs.lookup(name)
        "".encode(name)  # only text encodings: "rot13" and "zip" are codecs too
    except LookupError:
        raise InputError(
            f"the XML declaration names the encoding {name!r}, which is unknown; convert the file to UTF-8"
        ) from None
    return "utf-8" if codec.name == "ascii" else codec.name


def _transcoded(items: Iterator[bytes | RecordError], encoding: str) -> Iterator[bytes | RecordError]:
    """Convert bytes from `encoding` to UTF-8; invalid ones become invalid UTF-8, so that only their page is lost."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass" if encoding[:4] == "utf-" else "replace")
    for item in items:
        if isinstance(item, RecordError):
            decoder.reset()
            yield item
        elif text := decoder.decode(item):
            yield text.encode("utf-8", "surrogatepass")
