"""Fuzz readers, extraction and filters with 10,000 damaged files of every kind: no crash, hang or memory growth.

A damaged file may raise `InputError`, or yield documents that each have a status and, if they are not kept, a reason.
Samples are small files made here, and the starts of real files where there are some (NULLS_DATA). Cost: 2 ms a file at
the median; the run of 10,000 is marked slow, and 600 always run.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import resource
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import Document
from pipelines.inputs import InputKind
from pipelines.stage import steps as stage
from pipelines.stage.steps import Clean, StageConfig
from registry.errors import InputError
from registry.identity import WebSource
from registry.schema import Status
from tests.pipelines.readers.archives import arc_record, by_frame, by_record, page, record, response
from tests.pipelines.readers.dumps import Page, write_dump

NUM_MUTANTS = 10_000
MAX_SECONDS = 20  # for one file; the median is 2 ms
MAX_BYTES = 40_000  # of a sample; in a larger one a mutation would mostly hit nothing of interest
MAX_GROWTH = 400 << 20  # of this process's peak memory

REAL = {
    InputKind.WEB: ("web/odd/*.warc*", "web/odd/*.arc*", "web/realpages/*.wet.gz", "web/realpages/*-00-of-10.warc.gz"),
    InputKind.WIKIPEDIA: ("wikipedia/minidumps/*.bz2", "wikipedia/*.xml*", "articles/*"),
    InputKind.BOOKS: ("books/*",),
}


def made(folder: Path) -> Iterator[tuple[InputKind, bytes]]:
    """Yield small files of every kind."""
    records = [record(f"http://a.example/{i}", response(page(f"words of page {i} and so on"))) for i in range(4)]
    arcs = [arc_record(f"http://b.example/{i}", response(page(f"words of page {i}"))) for i in range(4)]
    for pack in (b"".join, by_record, by_frame):
        yield InputKind.WEB, pack(records)
    yield InputKind.WEB, b"".join(arcs)
    pages = [Page(f"Page {i}", f"'''Page {i}''' is [[linked]]. {'Text. ' * 20}") for i in range(4)]
    for compress in (None, "bz2", "gz", "xz"):
        path = folder / f"dump-{compress}.xml"
        write_dump(path, pages, compress=compress)
        yield InputKind.WIKIPEDIA, path.read_bytes()
    doc = '<doc id="{0}" url="https://en.wikipedia.org/wiki?curid={0}" title="T{0}">\nT{0}\n\nText of it.\n\n</doc>\n'
    yield InputKind.WIKIPEDIA, "".join(doc.format(i) for i in range(9)).encode()
    rows = {name: [f"{name} {i}" for i in range(9)] for name in ("url", "title", "text")}
    pq.write_table(pa.table({"id": [str(i) for i in range(9)], **rows}), folder / "rows.parquet")
    yield InputKind.WIKIPEDIA, (folder / "rows.parquet").read_bytes()
    header = (
        "The Project Gutenberg eBook of A Book\n\nTitle: A Book\n\nAuthor: Someone\n\nRelease date: x [eBook #123]\n"
    )
    marker = "\n*** {} OF THE PROJECT GUTENBERG EBOOK A BOOK ***\n"
    yield InputKind.BOOKS, (header + marker.format("START") + "Text. " * 99 + marker.format("END")).encode()
    yield InputKind.BOOKS, epub()


def epub() -> bytes:
    """Return an EPUB of one chapter."""
    members = {
        "META-INF/container.xml": '<container><rootfiles><rootfile full-path="a.opf"/></rootfiles></container>',
        "a.opf": '<package><manifest><item id="c" href="c.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="c"/></spine></package>',
        "c.xhtml": "<html><body><p>A chapter.</p></body></html>",
    }
    book = io.BytesIO()
    with zipfile.ZipFile(book, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return book.getvalue()


def real() -> Iterator[tuple[InputKind, bytes]]:
    """Yield the starts of real files."""
    data_dir = Path(os.environ.get("NULLS_DATA") or Path(__file__).parents[4] / "shared" / "data")
    for kind, patterns in REAL.items():
        for pattern in patterns:
            for path in sorted(data_dir.glob(pattern)):
                size = path.stat().st_size
                with path.open("rb") as file:  # an EPUB's directory is at its end
                    yield kind, file.read(size if path.suffix == ".epub" else MAX_BYTES)


def mutant(data: bytes, other: bytes, chance: random.Random) -> bytes:
    """Return `data` damaged at random: bytes changed, spans removed, doubled or taken from `other`, the end cut off."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        position, size = chance.randrange(len(found) + 1), int(2 ** chance.uniform(0, 12))
        choice = chance.randrange(7)
        if choice < 3 and found:
            found[position % len(found)] = chance.choice((0, 10, 32, 0x3C, 0xFF, chance.randrange(256)))
        elif choice == 3:
            del found[position : position + size]
        elif choice == 4:
            found[position:position] = found[position : position + size]
        elif choice == 5:
            start = chance.randrange(len(other) + 1)
            found[position:position] = other[start : start + size]
        elif chance.random() < 0.3:
            del found[position:]
    return bytes(found)


def check(kind: InputKind, data: bytes, config: StageConfig) -> int:
    """Read a damaged file to its end; return the number of its documents."""
    num_documents = 0
    with contextlib.suppress(InputError):
        for item in Clean(config).run(stage._reader(kind, WebSource.DOMAIN)(io.BytesIO(data), "x")):
            if isinstance(item, Document):
                num_documents += 1
                assert item.status in Status
                assert (item.reason is None) == (item.status is Status.KEPT)
                assert item.key or item.status is not Status.KEPT
                item.text.encode()
    return num_documents


def alarm(*_: object) -> None:
    raise TimeoutError(f"a mutant took more than {MAX_SECONDS} s")


def run(samples: list[tuple[InputKind, bytes]], count: int, seed: int) -> int:
    """Try `count` damaged files, reproducible by `seed`; return the number of their documents."""
    config = StageConfig()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    previous = signal.signal(signal.SIGALRM, alarm)
    total = 0
    try:
        for number in range(count):
            chance = random.Random(seed * NUM_MUTANTS + number)
            kind, data = samples[number % len(samples)]
            signal.alarm(MAX_SECONDS)
            try:
                total += check(kind, mutant(data, chance.choice(samples)[1], chance), config)
            except Exception as error:
                raise AssertionError(f"mutant {number} of {kind}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert growth < MAX_GROWTH, f"memory grew by {growth >> 20} MiB"
    return total


def test_600_damaged_small_files(tmp_path: Path) -> None:
    assert run(list(made(tmp_path)), 600, seed=0) > 600


@pytest.mark.slow
def test_10_000_damaged_files(tmp_path: Path) -> None:
    samples = [*made(tmp_path), *real()]
    assert run(samples, NUM_MUTANTS, seed=1) > NUM_MUTANTS // 2
