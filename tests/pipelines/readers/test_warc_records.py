"""Test the splitting of WARC and ARC files into records: all spellings of crawlers, and damage to single records."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard
from fastwarc.warc import ArchiveIterator
from warcio.archiveiterator import ArchiveIterator as WarcioIterator

from pipelines.readers.web import warc_records as module
from pipelines.readers.web.warc_records import Record, read_records
from registry.errors import InputError
from tests.costs import assert_linear
from tests.pipelines.readers.archives import arc_record, by_frame, by_record, page, record, response

URLS = [f"http://example.com/{number}" for number in range(5)]
ITEMS = [record(url, response(page(f"words of {url} and so on"))) for url in URLS]


def read(data: bytes) -> list[Record]:
    return list(read_records(io.BytesIO(data)))


def urls(found: list[Record]) -> list[str | None]:
    return [None if item.failure else item.head["warc-target-uri"] for item in found]


@pytest.mark.parametrize(
    "data",
    [
        b"".join(ITEMS),
        by_record(ITEMS),
        by_frame(ITEMS),
        gzip.compress(b"".join(ITEMS)),
        b"".join(item.replace(b"\r\n", b"\n") for item in ITEMS).replace(b"Content-Length: ", b"content-length:   "),
        b"".join(ITEMS).replace(b"WARC/1.0", b"warc/1.1"),
        b"\r\n\r\n" + b"\r\n\r\n".join(ITEMS),
        zstandard.compress(b"")[:0] + b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + by_frame(ITEMS),
        by_record(ITEMS) + b"\0" * 1000,
    ],
    ids=["plain", "gzip", "zstd", "one-member", "line-feeds", "lower-case", "blank-lines", "skippable", "padding"],
)
def test_every_spelling_gives_the_same_records(data: bytes) -> None:
    if b"\r\n" not in data[:200] and data.startswith(
        b"WARC"
    ):  # bare line feeds: the replacement made bodies shorter than stated
        data = b"".join(record(url, response(page(f"words of {url} and so on")), end="\n") for url in URLS)
    found = read(data)
    assert urls(found) == URLS
    assert [item.body for item in found] == [response(page(f"words of {url} and so on")) for url in URLS]


@pytest.mark.parametrize("pack", [b"".join, by_record, by_frame])
def test_offset_and_length_give_the_exact_bytes_of_a_record(pack: object) -> None:
    data = pack(ITEMS)  # type: ignore[operator]
    for item, url in zip(read(data), URLS, strict=True):
        assert item.stored
        piece = data[item.offset : item.offset + item.length]
        assert urls(read(piece)) == [url]
    assert sum(item.length for item in read(data)) == len(data)


def test_offsets_within_one_member_count_decompressed_bytes() -> None:
    whole = b"".join(ITEMS)
    for item, url in zip(read(gzip.compress(whole)), URLS, strict=True):
        assert not item.stored
        assert urls(read(whole[item.offset : item.offset + item.length])) == [url]


def test_fields_are_continued_and_the_first_of_repeated_ones_counts() -> None:
    data = record(URLS[0], b"x", fields="X-Long: a\n\tb\nX-Long: c")
    assert read(data)[0].head["x-long"] == "a b"


def test_arc_records_of_both_versions_with_spaces_in_urls() -> None:
    first = b"filedesc://a.arc 0.0.0.0 20080430204825 text/plain 9\n1 0 test\n\n"
    second = b"http://b.example/ 127.0.0.1 20080430204826 text/html 200 - - 10 a.arc 4\nbody\n"
    data = first + arc_record("http://a.example/x y z", b"HTTP/1.0 200 OK\n\nhello") + second
    found = read(data)
    assert urls(found)[1:] == ["http://a.example/x y z", "http://b.example/"]
    assert [item.head["warc-date"] for item in found[1:]] == ["20080430204825", "20080430204826"]
    assert found[2].body == b"body"
    assert urls(read(by_record([first, arc_record("http://a.example/", b"x")])))[1:] == ["http://a.example/"]


class TestDamage:
    """Only damaged records are lost, and they are reported."""

    def test_garbage_between_records_is_reported(self) -> None:
        data = ITEMS[0] + b"this is\nno record\n" + ITEMS[1]
        found = read(data)
        assert urls(found) == [URLS[0], None, URLS[1]]
        assert found[1].offset == len(ITEMS[0])
        assert found[1].failure is not None
        assert found[1].failure.reason == "bad-record"

    @pytest.mark.parametrize("length", [5_000, 10**12])
    def test_a_length_that_covers_the_next_records_loses_one_record(self, length: int) -> None:
        bad = record("http://bad.example/", b"short", length=length)
        found = read(b"".join([ITEMS[0], bad, *ITEMS[1:]]) * 3)
        assert urls(found).count(None) == 3
        assert urls(found).count(URLS[1]) == urls(found).count(URLS[4]) == 3
        assert next(item for item in found if item.failure).head["warc-target-uri"] == "http://bad.example/"

    def test_a_length_that_is_no_number_loses_one_record(self) -> None:
        bad = ITEMS[1].replace(b"Content-Length: ", b"Content-Length: x")
        assert urls(read(ITEMS[0] + bad + ITEMS[2])) == [URLS[0], None, URLS[2]]

    @pytest.mark.parametrize("pack", [b"".join, by_record, by_frame])
    def test_a_file_that_ends_within_a_record_loses_that_record(self, pack: object) -> None:
        data = pack(ITEMS)  # type: ignore[operator]
        found = read(data[:-60])
        assert urls(found) == [*URLS[:4], None]
        assert found[-1].failure is not None
        assert found[-1].failure.reason in ("truncated-record", "truncated-stream")

    @pytest.mark.parametrize("pack", [by_record, by_frame])
    def test_a_member_that_does_not_decompress_loses_one_record(self, pack: object) -> None:
        members = [pack([item]) for item in ITEMS]  # type: ignore[operator]
        middle = len(members[1]) // 2
        members[1] = members[1][:middle] + bytes(64) + members[1][middle + 64 :]
        found = read(b"".join(members))
        assert [url for url in urls(found) if url] == [URLS[0], *URLS[2:]]
        failed = [item for item in found if item.failure]
        assert [item.offset for item in failed] == [len(members[0])]
        assert failed[0].stored

    def test_garbage_between_members_is_reported(self) -> None:
        members = [by_record([item]) for item in ITEMS]
        for garbage in (b"\x1f\x8b\x08 no member" * 9, b"other bytes\0"):
            found = read(members[0] + garbage + members[1] + garbage)
            assert urls(found) == [URLS[0], None, URLS[1], None]
            assert [item.offset for item in found if item.failure] == [
                len(members[0]),
                len(members[0] + garbage + members[1]),
            ]

    def test_reading_continues_after_a_head_without_end(self) -> None:
        endless = b"WARC/1.0\r\n" + b"X: y\r\n" * 100_000
        assert urls(read(endless + ITEMS[0])) == [None, URLS[0]]

    def test_reading_continues_after_a_line_without_end(self) -> None:
        assert urls(read(b"WARC/1.0\r\n" + b"x" * (1 << 20) + b"\r\n\r\n" + ITEMS[0]))[-1] == URLS[0]


class TestBounds:
    """Memory is bounded whatever a file claims or inflates to."""

    def test_a_body_is_held_up_to_its_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_BODY_BYTES", 1000)
        large = record("http://large.example/", b"x" * 100_000)
        found = read(large + ITEMS[0][:0] + record(URLS[0], b"y"))
        assert [(len(item.body), item.body_length) for item in found] == [(1000, 100_000), (1, 1)]

    @pytest.mark.parametrize("pack", [by_record, by_frame])
    def test_a_decompression_bomb_is_skipped(self, pack: object, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_MEMBER_BYTES", 4 << 20)
        bomb = record("http://bomb.example/", b"\0" * (64 << 20))
        found = read(pack([ITEMS[0], bomb, ITEMS[1]]))  # type: ignore[operator]
        assert urls(found) == [URLS[0], None, URLS[1]]
        assert found[1].failure is not None
        assert found[1].failure.reason == "too-large"

    def test_the_record_after_one_of_absurd_length_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_BODY_BYTES", 1000)
        endless = record("http://endless.example/", b"x" * 5000, length=10**15)
        found = read(endless + ITEMS[0])
        assert urls(found) == [None, URLS[0]]
        assert found[0].failure is not None
        assert found[0].failure.reason == "too-large"

    def test_a_decompression_bomb_without_a_record_is_skipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "MAX_MEMBER_BYTES", 4 << 20)
        found = read(gzip.compress(b"\n" * 10 + b"\0" * (64 << 20)) + by_record(ITEMS[:1]))
        assert urls(found) == [None, URLS[0]]

    @pytest.mark.parametrize(
        "line",
        [b"garbage\n", b"a: 1 12345678 x 1 12345678 y" * 99 + b"\n", b"x:" * 4000 + b"\n", b"y" * 10_000, b"WARC/\n"],
    )
    def test_the_search_for_a_record_takes_linear_time(self, line: bytes) -> None:
        assert_linear(lambda size: read(ITEMS[0] + line * (size * 2000 // len(line)) + ITEMS[1]))


GIGABYTE = """
import resource, sys
from pathlib import Path
from pipelines.readers.web.archive import read_archive
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for document in read_archive(sys.argv[1], "x"):
    print(document.status.value, document.reason, document.input_offset, document.input_length)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_record_of_a_gigabyte_is_reported_and_the_next_one_read(tmp_path: Path, is_packed: bool) -> None:
    size = 1 << 30
    head = record("http://large.example/", response(b""), length=size + len(response(b"")))[:-4]
    path = tmp_path / "large.warc"
    if is_packed:
        encoder = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
        with path.open("wb") as file:
            file.write(encoder.compress(head))
            for _ in range(size >> 20):
                file.write(encoder.compress(bytes(1 << 20)))
            file.write(encoder.compress(b"\r\n\r\n") + encoder.flush() + by_record(ITEMS[:1]))
    else:
        with path.open("wb") as file:  # a sparse file: the zeros take no space
            file.write(head)
            file.seek(size, os.SEEK_CUR)
            file.write(b"\r\n\r\n" + ITEMS[0])
    done = subprocess.run([sys.executable, "-c", GIGABYTE, str(path)], capture_output=True, text=True, check=True)
    large, small, growth = done.stdout.splitlines()
    assert large.startswith("failed too-large 0 ")
    assert small.startswith("kept None ")
    assert int(growth) < 300 << 10  # KiB


@pytest.mark.parametrize("data", [b"", b"BZh91AY&SY", b"\xfd7zXZ\0rest", b"PK\x03\x04", b"PAR1"])
def test_a_file_that_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(InputError):
        read(data)


def test_randomly_damaged_archives_never_crash_the_reader() -> None:
    chance = random.Random(0)
    for data in (b"".join(ITEMS), by_record(ITEMS), by_frame(ITEMS), arc_record(URLS[0], b"body" * 99) * 4):
        for _ in range(300):
            mutant = bytearray(data)
            for _ in range(chance.randint(1, 6)):
                mutant[chance.randrange(len(mutant))] = chance.randrange(256)
            if chance.random() < 0.3:
                del mutant[chance.randrange(len(mutant)) :]
            try:
                found = read(bytes(mutant))
            except InputError:
                continue
            assert all(item.offset + item.length <= len(mutant) for item in found if item.stored)


def test_one_bad_byte_loses_at_most_one_record() -> None:
    data = by_record(ITEMS)
    chance = random.Random(1)
    for _ in range(300):
        position = chance.randrange(len(data))
        mutant = data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
        assert len([url for url in urls(read(mutant)) if url in URLS]) >= len(URLS) - 1


def _files(data_dir: Path, pattern: str) -> list[Path]:
    return sorted((data_dir / "web").glob(pattern))


def test_real_archives_give_the_records_that_fastwarc_gives(data_dir: Path) -> None:
    """Compare undamaged archives; those FastWARC refuses, or reads as empty records ("unknown"), are left out."""
    num_compared = 0
    for path in _files(data_dir, "*/*.warc*"):
        found = read(path.read_bytes())
        ours = [(item.head.get("warc-type"), item.body_length) for item in found]
        if any(item.failure for item in found):
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            records = [(str(item.record_type), item.content_length) for item in ArchiveIterator(file, parse_http=False)]
            theirs = [(kind.rpartition(".")[2], size) for kind, size in records]
            if any(kind == "unknown" for kind, _ in theirs):
                continue
            assert ours == theirs, path.name
            num_compared += 1
    assert num_compared > 40


def test_real_arc_files_give_the_records_that_warcio_gives(data_dir: Path) -> None:
    for name in ("aut--example.arc.gz", "jwat--1-1-20110922131213-00000-svc-VirtualBox.arc"):
        path = data_dir / "web" / "odd" / name
        with path.open("rb") as file:
            theirs = [item.rec_headers.get_header("uri") for item in WarcioIterator(file)]
        ours = [item.head["warc-target-uri"] for item in read(path.read_bytes())]
        assert ours == theirs
        assert len(ours) > 100


def test_a_crc_error_loses_the_record() -> None:
    member = bytearray(by_record(ITEMS[:1]))
    member[-6] ^= 0xFF
    found = read(bytes(member) + by_record(ITEMS[1:2]))
    assert urls(found) == [None, URLS[1]]
    assert found[0].failure is not None
    assert found[0].failure.reason == "corrupt-stream"
