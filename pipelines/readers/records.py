"""A WARC or ARC file -> its records, each with the very bytes that it takes up; what is damaged costs itself alone.

    file -> members (gzip members, zstd frames; a plain file is one) -> records -> head and body

Why not FastWARC: it takes a record with bare line feeds for an empty one and passes over all that follows (archives of
3, 5 and 7 captures among the tests' data give none), ends at the first malformed header, and knows no ARC; warcio
raises at what it cannot read and cannot go on either. Both are the oracles of the tests, on files that they can read.

Going on after damage: within a stream at the next line that can begin a record, between members at the next bytes that
begin one and decompress to the beginning of a record. A record's body is held whole up to `MAX_BODY_BYTES`, the rest is
passed over, so memory is bounded whatever a file says or inflates to. Cost: 120 MB of decompressed bytes a second.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, Protocol

import zstandard

from registry.errors import InputError, RecordError

MAX_BODY_BYTES = 32 << 20  # a page is 0.1 MB, Common Crawl cuts at 5 MB; a video need not be held
MAX_HEAD_BYTES = 256 << 10
MAX_MEMBER_BYTES = 4 << 30  # passed over in search of a record; a bomb inflates without end
_READ_BYTES = 64 << 10
_STEP_BYTES = 1 << 20  # of output asked for at once
_ZSTD_PIECE = 512  # of input fed at once: a block of 4 bytes can hold 128 KiB, and the library has no limit to give

_LINE_LIMIT = 64 << 10
_WARC_LINE = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n", re.IGNORECASE)
# URL, IP address, date, media type, (what version 2 has more,) length. URLs with spaces exist; looking ahead for the
# length first keeps the search linear.
_ARC_LINE = re.compile(
    rb"(?P<url>[a-z][a-z0-9+.-]*:(?=[^\r\n]* \d{1,18}[ \t]*\r?\n)[^\r\n]*?)"
    rb" (?P<ip>[0-9a-f.:-]+) (?P<date>\d{8,17}) (?P<type>[^ \r\n]*)(?: [^\r\n]*)? (?P<length>\d{1,18})[ \t]*\r?\n",
    re.IGNORECASE,
)
_START = re.compile(rb"(?:^|(?<=\n))(?:" + _WARC_LINE.pattern + rb"|" + _ARC_LINE.pattern + rb")", re.IGNORECASE)
_EMPTY_LINE = re.compile(rb"\n\r?\n")
_WARC_AHEAD = re.compile(rb"\nWARC/", re.IGNORECASE)
_FOLD = re.compile(r"\r?\n[ \t]+")
_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd"
_NAMES = {_GZIP_MAGIC: "gzip member", _ZSTD_MAGIC: "zstd frame"}
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_OTHER_MAGICS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "zip", b"PAR1": "Parquet"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One record, or one place that could not be read as one.

    Attributes:
        offset: of its first byte; in the file as it lies if `stored`, else in its decompressed content.
        length: bytes up to the next record.
        stored: it has a gzip member or zstd frame for itself, or the file is plain.
        head: names in lower case -> values; an ARC's line as `warc-target-uri`, `warc-date` and `content-type`.
        body: its first `MAX_BODY_BYTES`.
        body_length: all of it.
        failure: why it could not be read; `head` has what was.
        is_arc: of an ARC file.
    """

    offset: int
    length: int
    stored: bool
    head: Mapping[str, str]
    body: bytes = b""
    body_length: int = 0
    failure: RecordError | None = None
    is_arc: bool = False


def read_records(file: BinaryIO) -> Iterator[Record]:
    """All records of `file`, in order.

    Args:
        file: seekable, at its start.

    Raises:
        InputError: it is compressed in a way that no web archive is, or empty.
    """
    head = file.read(8)
    file.seek(0)
    if not head:
        raise InputError("an empty file")
    for magic, name in _OTHER_MAGICS.items():
        if head.startswith(magic):
            raise InputError(f"a {name} file; web archives are plain, or gzip or zstd by the record")
    if head.startswith(_GZIP_MAGIC):
        yield from _compressed(file, _GZIP_MAGIC)
    elif head.startswith(_ZSTD_MAGIC) or _ZSTD_SKIPPABLE.match(head):
        yield from _compressed(file, _ZSTD_MAGIC)
    else:
        for found in _in_stream(_Stream(iter(lambda: file.read(_READ_BYTES), b""))):
            yield dataclasses.replace(found, stored=True)


def _compressed(file: BinaryIO, magic: bytes) -> Iterator[Record]:
    """Member by member; a record that has one for itself is where the member is, and so is damage to a member."""
    start: int | None = 0
    unpacked = 0  # bytes before this member in the decompressed content
    while start is not None:
        member = _Member(file, start, magic)
        stream = _Stream(member, position=unpacked)
        records = _in_stream(stream)
        ahead = [record for record in (next(records, None), next(records, None)) if record]
        has_own = len(ahead) == 1 or (len(ahead) == 2 and ahead[1].failure is not None and not ahead[1].head)
        length = (member.position if member.end is None else member.end) - start
        for record in itertools.chain(ahead, records):
            if has_own or (record.failure and member.end is None):
                record = dataclasses.replace(record, offset=start, length=length, stored=True)
            yield record
        unpacked = stream.position
        if member.end is None:
            start = _resync(file, start + 1, magic)
            continue
        end = _past_padding(file, member.end)
        start = end if _begins_member(file, end, magic) else _resync(file, end, magic)
        if start != end:
            size = (start or file.seek(0, os.SEEK_END)) - end
            if size:
                error = RecordError("bad-record", f"{size} bytes that are no {_NAMES[magic]}")
                yield Record(offset=end, length=size, stored=True, head={}, failure=error)


def _past_padding(file: BinaryIO, start: int) -> int:
    """The place of the first byte from `start` on that is not zero; the file's size if there is none."""
    file.seek(start)
    while piece := file.read(_READ_BYTES):
        rest = piece.lstrip(b"\0")
        start += len(piece) - len(rest)
        if rest:
            break
    return start


def _begins_member(file: BinaryIO, start: int, magic: bytes) -> bool:
    file.seek(start)
    head = file.read(len(_ZSTD_MAGIC))
    return head.startswith(magic) or (magic == _ZSTD_MAGIC and _ZSTD_SKIPPABLE.match(head) is not None)


def _resync(file: BinaryIO, start: int, magic: bytes) -> int | None:
    """The first place from `start` on that begins like a member and decompresses to the beginning of a record."""
    file.seek(start)
    tail, position = b"", start
    while piece := file.read(_READ_BYTES):
        piece, position = tail + piece, position - len(tail)
        at = piece.find(magic)
        while at >= 0:
            if _begins_record(file, position + at, magic):
                return position + at
            at = piece.find(magic, at + 1)
        tail = piece[1 - len(magic) :]
        position += len(piece)
        file.seek(position)
    return None


def _begins_record(file: BinaryIO, start: int, magic: bytes) -> bool:
    stream = _Stream(_Member(file, start, magic))
    try:
        return bool(_START.match(stream.peek_line()))
    except RecordError:
        return False


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Member:
    """The decompressed pieces of one gzip member or zstd frame. Iterating raises RecordError where it is damaged.

    Attributes:
        position: of the file, up to which it was read.
        end: after its last byte; None until it was read to its end.
    """

    def __init__(self, file: BinaryIO, start: int, magic: bytes) -> None:
        self._file, self._is_gzip = file, magic == _GZIP_MAGIC
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
                piece = self._read(_READ_BYTES)
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
        if _ZSTD_SKIPPABLE.match(head):
            self.position += int.from_bytes(head[4:8], "little")
            self.end = self.position
            return
        decoder = zstandard.ZstdDecompressor().decompressobj()
        piece = head
        while not decoder.eof:
            piece = piece or self._read(_READ_BYTES)
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


class _Stream:
    """Bytes in pieces, with a look ahead. RecordErrors of the pieces come out where they were met."""

    def __init__(self, pieces: Iterable[bytes], position: int = 0) -> None:
        self._pieces = iter(pieces)
        self._buffer = bytearray()
        self._at = 0  # where the unread part of the buffer begins
        self.position = position

    def _fill(self, size: int) -> bool:
        """Has `size` bytes ready; False if the stream ends before."""
        while len(self._buffer) - self._at < size:
            piece = next(self._pieces, b"")
            if not piece:
                return False
            del self._buffer[: self._at]
            self._at = 0
            self._buffer += piece
        return True

    def peek_line(self) -> bytes:
        """The next line, `_LINE_LIMIT` bytes of it at most."""
        size = 256
        while self._fill(size) and size < _LINE_LIMIT:
            if self._buffer.find(b"\n", self._at, self._at + size) >= 0:
                break
            size *= 4
        end = self._buffer.find(b"\n", self._at, self._at + _LINE_LIMIT)
        return bytes(self._buffer[self._at : self._at + _LINE_LIMIT if end < 0 else end + 1])

    def take_block(self) -> bytes:
        """The lines up to the next empty one, and that one; "" if there is none within `_LINE_LIMIT` bytes."""
        size = 1024
        while True:
            is_whole = not self._fill(size)
            end = _EMPTY_LINE.search(self._buffer, self._at, min(len(self._buffer), self._at + size))
            if end:
                return self.take(end.end() - self._at)
            if is_whole or size >= _LINE_LIMIT:
                return b""
            size *= 4

    def skip_blank_lines(self) -> bool:
        """Goes to the next byte that ends no line; False if there is none."""
        while self._fill(1):
            if self._buffer[self._at] not in b"\r\n":
                return True
            self._advance(1)
        return False

    def take(self, size: int) -> bytes:
        """The next `size` bytes; fewer at the end."""
        self._fill(size)
        taken = bytes(self._buffer[self._at : self._at + size])
        self._advance(len(taken))
        return taken

    def skip(self, size: int) -> int:
        """Passes over `size` bytes; returns over how many it could."""
        left = size
        while left and self._fill(1):
            step = min(left, len(self._buffer) - self._at)
            self._advance(step)
            left -= step
        return size - left

    def unread(self, data: bytes) -> None:
        """Goes back to before `data`, which was taken last."""
        self._buffer[self._at : self._at] = data
        self.position -= len(data)

    def skip_to_record(self) -> bool:
        """Goes to the next line that can begin a record, past the one where it stands; False if there is none.

        Raises:
            RecordError: `too-large`, after `MAX_MEMBER_BYTES`.
        """
        first = self.position
        self._advance(len(self.peek_line()))
        while self._fill(1):
            match = _START.search(self._buffer, self._at)
            if match:
                self._advance(match.start() - self._at)
                return True
            end = self._buffer.rfind(b"\n", self._at) + 1
            if len(self._buffer) - max(end, self._at) > _LINE_LIMIT:
                end = len(self._buffer)
            if end > self._at:
                self._advance(end - self._at)
            elif not self._fill(len(self._buffer) - self._at + 1):  # the last line has no end
                self._advance(len(self._buffer) - self._at)
            if self.position - first > MAX_MEMBER_BYTES:
                raise RecordError("too-large", f"no record within {MAX_MEMBER_BYTES} bytes")
        return False

    def _advance(self, size: int) -> None:
        self._at += size
        self.position += size


def _in_stream(stream: _Stream) -> Iterator[Record]:
    """The records of a stream. Where it cannot be read on, that is one more record, failed, and the last."""
    start, head = stream.position, dict[str, str]()
    try:
        while stream.skip_blank_lines():
            start, head = stream.position, {}
            try:
                is_arc = _read_head(stream, head)
            except RecordError as error:
                if error.reason != "bad-record":
                    raise
                stream.skip_to_record()
                yield _failed(start, stream, head, error)
                continue
            yield _read_body(stream, start, head, is_arc)
    except RecordError as error:
        yield _failed(start, stream, head, error)


def _failed(start: int, stream: _Stream, head: dict[str, str], error: RecordError) -> Record:
    return Record(offset=start, length=stream.position - start, stored=False, head=head, failure=error)


def _read_head(stream: _Stream, head: dict[str, str]) -> bool:
    """Fills `head`; returns whether it is an ARC's.

    Raises:
        RecordError: `bad-record`: it is no head, or has no length.
    """
    line = stream.peek_line()
    arc = _ARC_LINE.match(line)
    if arc:
        stream.take(len(line))
        values = {name: value.decode("utf-8", "replace") for name, value in arc.groupdict().items()}
        head |= {"warc-target-uri": values["url"], "warc-date": values["date"], "content-type": values["type"]}
        head |= {"content-length": values["length"], "warc-type": "response"}
        return True
    if not _WARC_LINE.match(line):
        raise RecordError("bad-record", f"expected a record, found {line[:40]!r}")
    stream.take(len(line))
    _read_fields(stream, head)
    if not head.get("content-length", "0").isdecimal():
        raise RecordError("bad-record", f"Content-Length is {head['content-length'][:40]!r}")
    return False


def _read_fields(stream: _Stream, head: dict[str, str]) -> None:
    """Named fields up to an empty line; a line that begins with a blank goes on with the field before it."""
    size, last = 0, ""
    block = stream.take_block()
    if block and not _WARC_AHEAD.search(block) and block[:1] not in b" \t\r\n":  # as nearly all are: at once
        for text in _FOLD.sub(" ", block.decode("utf-8", "replace")).split("\n"):
            name, colon, value = text.partition(":")
            if colon:
                head.setdefault(name.strip().lower(), value.strip())
        return
    stream.unread(block)
    while True:
        line = stream.peek_line()
        if _WARC_LINE.match(line):  # the empty line is missing, and this is the next record
            return
        stream.take(len(line))
        size += len(line)
        if size > MAX_HEAD_BYTES:
            raise RecordError("bad-record", f"a head of more than {MAX_HEAD_BYTES} bytes")
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text.strip():
            return
        name, colon, value = text.partition(":")
        if text[0] in " \t" and last:
            head[last] = f"{head[last]} {text.strip()}".strip()
        elif colon:
            last = name.strip().lower()
            head.setdefault(last, value.strip())


def _read_body(stream: _Stream, start: int, head: dict[str, str], is_arc: bool) -> Record:
    """Reads a body, and the empty lines after it, so that the stream stands at the next record.

    Raises:
        RecordError: the stream cannot be read, or ends within the body.
    """
    size = int(head.get("content-length", "0"))
    body = stream.take(min(size, MAX_BODY_BYTES))
    got = len(body) + (stream.skip(size - len(body)) if size <= MAX_MEMBER_BYTES else 0)
    is_off = got < size or (stream.skip_blank_lines() and not _START.match(stream.peek_line()))
    swallowed = _START.search(body, 1) if is_off and got == len(body) else None
    if swallowed:  # the length leads past the records that follow
        stream.unread(body[swallowed.start() :])
        error = RecordError("bad-record", f"{size} bytes announced, a record begins after {swallowed.start()}")
        return _failed(start, stream, head, error)
    if size > MAX_MEMBER_BYTES and len(body) == MAX_BODY_BYTES:
        stream.skip_to_record()
        error = RecordError("too-large", f"a record of {size} bytes; at most {MAX_MEMBER_BYTES} are passed over")
        return _failed(start, stream, head, error)
    if got < size:
        raise RecordError("truncated-record", f"{size} bytes announced, {got} there")
    length = stream.position - start
    return Record(offset=start, length=length, stored=False, head=head, body=body, body_length=size, is_arc=is_arc)
