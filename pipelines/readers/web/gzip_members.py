"""Decompress a web archive one gzip member or zstd frame at a time, and read the bytes with lookahead.

Each member is decompressed by itself, so that a record's byte range in the file is known, and damage to a member loses
only that one. A member is decompressed in steps of at most 1 MiB, so that a decompression bomb needs no more memory.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Protocol

import zstandard

from registry.errors import RecordError

READ_BYTES = 64 << 10
LINE_LIMIT = 64 << 10  # longest line that is looked at whole
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_STEP_BYTES = 1 << 20  # output asked for at once
_ZSTD_PIECE = 512  # input fed at once: a block of 4 bytes can hold 128 KiB, and the library takes no limit
_EMPTY_LINE = re.compile(rb"\n\r?\n")


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class Member:
    """The decompressed pieces of one gzip member or zstd frame. Iteration raises RecordError at damage.

    Attributes:
        position: offset in the file up to which the member was read.
        end: offset in the file after the member's last byte; None until it was read to its end.
    """

    def __init__(self, file: BinaryIO, start: int, magic: bytes) -> None:
        self._file, self._is_gzip = file, magic == GZIP_MAGIC
        self.position = start
        self.end: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        yield from self._gzip() if self._is_gzip else self._zstd()

    def _read(self, size: int) -> bytes:
        self._file.seek(self.position)
        piece = self._file.read(size)
        self.position += len(piece)
        if not piece:
            raise RecordError("truncated-stream", "the file ends within a record")
        return piece

    def _gzip(self) -> Iterator[bytes]:
        decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        piece, step = b"", b""
        while not decoder.eof:
            if not piece and len(step) < _STEP_BYTES:
                piece = self._read(READ_BYTES)
            try:
                step = decoder.decompress(piece, _STEP_BYTES)
            except zlib.error as error:
                raise RecordError("corrupt-stream", f"gzip: {error}") from error
            piece = decoder.unconsumed_tail
            if step:
                yield step
        self._finish(decoder)

    def _zstd(self) -> Iterator[bytes]:
        head = self._read(8)
        if ZSTD_SKIPPABLE.match(head):
            self.position += int.from_bytes(head[4:8], "little")
            self.end = self.position
            return
        decoder = zstandard.ZstdDecompressor().decompressobj()
        piece = head
        while not decoder.eof:
            piece = piece or self._read(READ_BYTES)
            fed, piece = piece[:_ZSTD_PIECE], piece[_ZSTD_PIECE:]
            try:
                step = decoder.decompress(fed)
            except zstandard.ZstdError as error:
                raise RecordError("corrupt-stream", f"zstd: {error}") from error
            if step:
                yield step
        self.position -= len(piece)
        self._finish(decoder)

    def _finish(self, decoder: _Decoder) -> None:
        self.end = self.position = self.position - len(decoder.unused_data)


class Stream:
    """Bytes that come in pieces, with lookahead. A RecordError of the pieces is raised where reading meets it.

    Attributes:
        position: offset of the next byte.
    """

    def __init__(self, pieces: Iterable[bytes], position: int = 0) -> None:
        self._pieces = iter(pieces)
        self._buffer = bytearray()
        self._at = 0  # where the unread part of the buffer begins
        self.position = position

    def _fill(self, size: int) -> bool:
        """Buffer at least `size` unread bytes; return False if the stream ends before."""
        while len(self._buffer) - self._at < size:
            piece = next(self._pieces, b"")
            if not piece:
                return False
            del self._buffer[: self._at]
            self._at = 0
            self._buffer += piece
        return True

    def peek_line(self) -> bytes:
        """Return the next line, at most `LINE_LIMIT` bytes of it, without consuming it."""
        size = 256
        while self._fill(size) and size < LINE_LIMIT:
            if self._buffer.find(b"\n", self._at, self._at + size) >= 0:
                break
            size *= 4
        end = self._buffer.find(b"\n", self._at, self._at + LINE_LIMIT)
        return bytes(self._buffer[self._at : self._at + LINE_LIMIT if end < 0 else end + 1])

    def take_block(self) -> bytes:
        """Return the lines up to and with the next empty one; b"" if there is none within `LINE_LIMIT` bytes."""
        size = 1024
        while True:
            is_whole = not self._fill(size)
            end = _EMPTY_LINE.search(self._buffer, self._at, min(len(self._buffer), self._at + size))
            if end:
                return self.take(end.end() - self._at)
            if is_whole or size >= LINE_LIMIT:
                return b""
            size *= 4

    def skip_blank_lines(self) -> bool:
        """Skip line ends; return False at the end of the stream."""
        while self._fill(1):
            if self._buffer[self._at] not in b"\r\n":
                return True
            self._advance(1)
        return False

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes; fewer at the end."""
        self._fill(size)
        taken = bytes(self._buffer[self._at : self._at + size])
        self._advance(len(taken))
        return taken

    def skip(self, size: int) -> int:
        """Skip `size` bytes; return how many there were."""
        left = size
        while left and self._fill(1):
            step = min(left, len(self._buffer) - self._at)
            self._advance(step)
            left -= step
        return size - left

    def unread(self, data: bytes) -> None:
        """Go back to before `data`, which was taken last."""
        self._buffer[self._at : self._at] = data
        self.position -= len(data)

    def skip_to(self, start: re.Pattern[bytes], limit: int) -> bool:
        """Skip the current line, then go to the next one that matches `start`; return False if there is none.

        Raises:
            RecordError: `too-large`, if no such line begins within `limit` bytes.
        """
        first = self.position
        self._advance(len(self.peek_line()))
        while self._fill(1):
            match = start.search(self._buffer, self._at)
            if match:
                self._advance(match.start() - self._at)
                return True
            end = self._buffer.rfind(b"\n", self._at) + 1
            if len(self._buffer) - max(end, self._at) > LINE_LIMIT:
                end = len(self._buffer)
            if end > self._at:
                self._advance(end - self._at)
            elif not self._fill(len(self._buffer) - self._at + 1):  # the last line has no end
                self._advance(len(self._buffer) - self._at)
            if self.position - first > limit:
                raise RecordError("too-large", f"no record within {limit} bytes")
        return False

    def _advance(self, size: int) -> None:
        self._at += size
        self.position += size
