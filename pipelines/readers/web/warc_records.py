"""Split a WARC or ARC file into records, with the exact byte range of each; only damaged records are lost.

    file -> gzip members or zstd frames (a plain file counts as one) -> records -> head and body

Why not FastWARC: it takes a record with bare line feeds for an empty one and skips everything after it (archives of 3,
5 and 7 captures among the tests' data yield none), stops at the first malformed header, and does not read ARC; warcio
raises at a record that it cannot read and cannot continue either. Both are oracles of the tests, on files that they
can read.

After damage reading continues, within a stream, at the next line that can begin a record; between members, at the next
bytes that begin a member and decompress to the beginning of a record. A record's body is held up to `MAX_BODY_BYTES`
and the rest is skipped, so memory is bounded whatever a file claims or inflates to. Cost: 200 MB of decompressed bytes
a second.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from pipelines.readers.web.gzip_members import GZIP_MAGIC, READ_BYTES, ZSTD_MAGIC, ZSTD_SKIPPABLE, Member, Stream
from registry.errors import InputError, RecordError

MAX_BODY_BYTES = 32 << 20  # a page is 0.1 MB, Common Crawl cuts at 5 MB; a video need not be held
MAX_HEAD_BYTES = 256 << 10
MAX_MEMBER_BYTES = 4 << 30  # skipped in search of a record, at most; a bomb inflates without end

_WARC_LINE = re.compile(rb"WARC/\d+\.\d+[ \t]*\r?\n", re.IGNORECASE)
# URL, IP address, date, media type, (further fields in version 2,) length. URLs with spaces exist; looking ahead for
# the length first keeps the search linear.
_ARC_LINE = re.compile(
    rb"(?P<url>[a-z][a-z0-9+.-]*:(?=[^\r\n]* \d{1,18}[ \t]*\r?\n)[^\r\n]*?)"
    rb" (?P<ip>[0-9a-f.:-]+) (?P<date>\d{8,17}) (?P<type>[^ \r\n]*)(?: [^\r\n]*)? (?P<length>\d{1,18})[ \t]*\r?\n",
    re.IGNORECASE,
)
_START = re.compile(rb"(?:^|(?<=\n))(?:" + _WARC_LINE.pattern + rb"|" + _ARC_LINE.pattern + rb")", re.IGNORECASE)
_WARC_AHEAD = re.compile(rb"\nWARC/", re.IGNORECASE)
_FOLD = re.compile(r"\r?\n[ \t]+")
_NAMES = {GZIP_MAGIC: "gzip member", ZSTD_MAGIC: "zstd frame"}
_OTHER_MAGICS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "zip", b"PAR1": "Parquet"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One record, or one stretch that could not be read as a record.

    Attributes:
        offset: of the first byte; in the file as stored if `stored`, else in its decompressed content.
        length: bytes up to the next record.
        stored: whether the record has a gzip member or zstd frame of its own, or the file is plain.
        head: names in lower case -> values; an ARC's line as `warc-target-uri`, `warc-date` and `content-type`.
        body: the first `MAX_BODY_BYTES` of the body.
        body_length: bytes of the whole body.
        failure: why the record could not be read; `head` has the fields that could.
        is_arc: whether the record is an ARC's.
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
    """Yield all records of `file`, in order.

    Args:
        file: seekable, at its start.

    Raises:
        InputError: the file is empty, or compressed in a way that no web archive is.
    """
    head = file.read(8)
    file.seek(0)
    if not head:
        raise InputError("an empty file")
    for magic, name in _OTHER_MAGICS.items():
        if head.startswith(magic):
            raise InputError(f"a {name} file; web archives are plain, or gzip or zstd by the record")
    if head.startswith(GZIP_MAGIC):
        yield from _compressed(file, GZIP_MAGIC)
    elif head.startswith(ZSTD_MAGIC) or ZSTD_SKIPPABLE.match(head):
        yield from _compressed(file, ZSTD_MAGIC)
    else:
        for found in _in_stream(Stream(iter(lambda: file.read(READ_BYTES), b""))):
            yield dataclasses.replace(found, stored=True)


def _compressed(file: BinaryIO, magic: bytes) -> Iterator[Record]:
    """Yield records member by member; one that fills its member, or damage to a member, has the member's byte range."""
    start: int | None = 0
    unpacked = 0  # bytes before this member in the decompressed content
    while start is not None:
        member = Member(file, start, magic)
        stream = Stream(member, position=unpacked)
        records = _in_stream(stream)
        first_two = [record for record in (next(records, None), next(records, None)) if record]
        is_alone = len(first_two) == 1
        has_own = is_alone or (len(first_two) == 2 and first_two[1].failure is not None and not first_two[1].head)
        length = (member.position if member.end is None else member.end) - start
        for record in itertools.chain(first_two, records):
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
    """Return the offset of the first byte from `start` on that is not zero; the file's size if there is none."""
    file.seek(start)
    while piece := file.read(READ_BYTES):
        rest = piece.lstrip(b"\0")
        start += len(piece) - len(rest)
        if rest:
            break
    return start


def _begins_member(file: BinaryIO, start: int, magic: bytes) -> bool:
    file.seek(start)
    head = file.read(len(ZSTD_MAGIC))
    return head.startswith(magic) or (magic == ZSTD_MAGIC and ZSTD_SKIPPABLE.match(head) is not None)


def _resync(file: BinaryIO, start: int, magic: bytes) -> int | None:
    """Return the first offset from `start` on that begins a member which decompresses to the beginning of a record."""
    file.seek(start)
    tail, position = b"", start
    while piece := file.read(READ_BYTES):
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
    stream = Stream(Member(file, start, magic))
    try:
        return bool(_START.match(stream.peek_line()))
    except RecordError:
        return False


def _in_stream(stream: Stream) -> Iterator[Record]:
    """Yield the records of a stream. Damage to the stream is one more record, failed, and the last."""
    start, head = stream.position, dict[str, str]()
    try:
        while stream.skip_blank_lines():
            start, head = stream.position, {}
            try:
                is_arc = _read_head(stream, head)
            except RecordError as error:
                if error.reason != "bad-record":
                    raise
                stream.skip_to(_START, MAX_MEMBER_BYTES)
                yield _failed(start, stream, head, error)
                continue
            yield _read_body(stream, start, head, is_arc)
    except RecordError as error:
        yield _failed(start, stream, head, error)


def _failed(start: int, stream: Stream, head: dict[str, str], error: RecordError) -> Record:
    return Record(offset=start, length=stream.position - start, stored=False, head=head, failure=error)


def _read_head(stream: Stream, head: dict[str, str]) -> bool:
    """Fill `head`; return whether it is an ARC's.

    Raises:
        RecordError: `bad-record`: there is no head, or its length is no number.
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


def _read_fields(stream: Stream, head: dict[str, str]) -> None:
    """Read named fields up to an empty line; a line that begins with a blank continues the field before it."""
    size, last = 0, ""
    block = stream.take_block()
    if block and not _WARC_AHEAD.search(block) and block[:1] not in b" \t\r\n":  # the common case, parsed at once
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


def _read_body(stream: Stream, start: int, head: dict[str, str], is_arc: bool) -> Record:
    """Read a body and the empty lines after it, up to the next record.

    Raises:
        RecordError: the stream cannot be read, or ends within the body.
    """
    size = int(head.get("content-length", "0"))
    body = stream.take(min(size, MAX_BODY_BYTES))
    got = len(body) + (stream.skip(size - len(body)) if size <= MAX_MEMBER_BYTES else 0)
    is_off = got < size or (stream.skip_blank_lines() and not _START.match(stream.peek_line()))
    swallowed = _START.search(body, 1) if is_off and got == len(body) else None
    if swallowed:  # the stated length covers records that follow
        stream.unread(body[swallowed.start() :])
        error = RecordError("bad-record", f"{size} bytes stated, but a record begins after {swallowed.start()}")
        return _failed(start, stream, head, error)
    if size > MAX_MEMBER_BYTES and len(body) == MAX_BODY_BYTES:
        stream.skip_to(_START, MAX_MEMBER_BYTES)
        error = RecordError("too-large", f"a record of {size} bytes; at most {MAX_MEMBER_BYTES} are skipped")
        return _failed(start, stream, head, error)
    if got < size:
        raise RecordError("truncated-record", f"{size} bytes stated, but there are {got}")
    length = stream.position - start
    return Record(offset=start, length=length, stored=False, head=head, body=body, body_length=size, is_arc=is_arc)
