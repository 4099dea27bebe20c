"""Parquet bytes depend only on the rows, and a point read touches only the row groups that can hold its rows."""

from __future__ import annotations

import hashlib
import itertools
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import schema
from registry.errors import DamagedError, ServiceError
from registry.storage import parquet

OWNERS = pa.table({"source_id": range(0, 500, 2), "owner_id": range(250)}, schema=schema.OWNERS)
TEXTS = ["", "a", "é" * 40, "東京" * 30, "x" * 500, "\n\0"]
SHARD = pa.table(
    {"source_id": range(120), "doc_id": range(120), "text": [TEXTS[i % len(TEXTS)] for i in range(120)]},
    schema=schema.SHARD,
)


def sources_table() -> pa.Table:
    rows = [
        {
            "source_id": i,
            "key": f"web:{i}.example",
            "kind": "web",
            "title": None if i % 3 else f"T{i}",
            "num_documents": i,
            "num_bytes": i * i,
            "placements": [{"shard": s, "row_start": i, "row_end": i + 1} for s in range(i % 3)],
        }
        for i in range(150)
    ]
    return pa.Table.from_pylist(rows, schema=schema.SOURCES)


def digest_of(table: pa.Table, pieces: list[pa.Table | pa.RecordBatch], folder: Path) -> str:
    path = folder / "x.parquet"
    with parquet.ParquetFileWriter(path, table.schema) as writer:
        for piece in pieces:
            writer.write(piece)
    assert writer.num_rows == table.num_rows
    assert pq.read_table(path).equals(table)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 16)
    monkeypatch.setattr(parquet, "TEXT_BYTES_PER_GROUP", 1000)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("table", [OWNERS, SHARD, sources_table()], ids=["owners", "shard", "sources"])
def test_bytes_do_not_depend_on_how_rows_arrive(table: pa.Table) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = digest_of(table, [table], folder)
        assert parquet.open_parquet(folder / "x.parquet").num_row_groups > 5

        @given(st.lists(st.integers(0, table.num_rows), max_size=12), st.booleans(), st.booleans())
        @settings(max_examples=40)
        def holds(cuts: list[int], as_batches: bool, rebuilt: bool) -> None:
            edges = [0, *sorted(cuts), table.num_rows]
            pieces: list[Any] = [table.slice(low, high - low) for low, high in itertools.pairwise(edges)]
            if rebuilt:  # the same rows in fresh buffers, without offsets
                pieces = [pa.Table.from_pylist(piece.to_pylist(), schema=table.schema) for piece in pieces]
            if as_batches:
                pieces = [batch for piece in pieces for batch in piece.to_batches(max_chunksize=7)]
            assert digest_of(table, pieces, folder) == whole

        holds()
        other = table.slice(1)
        assert digest_of(other, [other], folder) != whole


@pytest.mark.usefixtures("small_groups")
def test_bytes_do_not_depend_on_types_and_column_order_of_a_batch(tmp_path: Path) -> None:
    plain = digest_of(OWNERS, [OWNERS], tmp_path)
    swapped = OWNERS.select(["owner_id", "source_id"]).cast(
        pa.schema([pa.field("owner_id", pa.int32()), pa.field("source_id", pa.uint64())])
    )
    assert digest_of(OWNERS, [swapped], tmp_path) == plain
    large = SHARD.set_column(2, "text", SHARD["text"].cast(pa.large_string()))
    assert digest_of(SHARD, [large], tmp_path) == digest_of(SHARD, [SHARD], tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"source_id": [1, None], "owner_id": [1, 2]}, "1 nulls in a required column"),
        ({"source_id": [1, 2]}, "'owner_id'"),
        ({"source_id": ["a", "b"], "owner_id": [1, 2]}, "expected int64"),
        ({"source_id": [1.5, 2], "owner_id": [1, 2]}, "expected int64"),
    ],
)
def test_rows_that_break_the_schema_are_refused_and_leave_no_file(
    tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    path = tmp_path / "x.parquet"
    with (  # noqa: PT012
        pytest.raises(DamagedError, match=message),
        parquet.ParquetFileWriter(path, schema.OWNERS) as writer,
    ):
        writer.write(OWNERS)
        writer.write(pa.table(columns))
    assert not path.exists()


def test_a_writer_that_fails_midway_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(RuntimeError), parquet.ParquetFileWriter(path, schema.OWNERS) as writer:  # noqa: PT012
        writer.write(OWNERS)
        raise RuntimeError
    assert not path.exists()


def test_a_file_without_rows(tmp_path: Path) -> None:
    with parquet.ParquetFileWriter(tmp_path / "x.parquet", schema.BANDS):
        pass
    table = parquet.open_parquet(tmp_path / "x.parquet").read()
    assert table.num_rows == 0
    assert table.schema.equals(schema.BANDS)
    assert parquet.read_where(tmp_path / "x.parquet", "band", [1]).num_rows == 0
    assert parquet.read_rows(tmp_path / "x.parquet", 0, 9).num_rows == 0


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServiceError, match="cannot write"):
        parquet.ParquetFileWriter(tmp_path / "file" / "x.parquet", schema.OWNERS)


class Spy:
    """Records the row groups that a read requests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.groups: list[int] = []
        many, one = pq.ParquetFile.read_row_groups, pq.ParquetFile.read_row_group

        def read_many(file: pq.ParquetFile, groups: list[int], *rest: Any, **more: Any) -> pa.Table:
            self.groups += groups
            return many(file, groups, *rest, **more)

        def read_one(file: pq.ParquetFile, group: int, *rest: Any, **more: Any) -> pa.Table:
            self.groups.append(group)
            return one(file, group, *rest, **more)

        monkeypatch.setattr(pq.ParquetFile, "read_row_groups", read_many)
        monkeypatch.setattr(pq.ParquetFile, "read_row_group", read_one)


@pytest.fixture
def many_groups(tmp_path: Path, small_groups: None) -> Path:
    path = tmp_path / "owners.parquet"
    digest_of(OWNERS, [OWNERS], tmp_path)
    (tmp_path / "x.parquet").rename(path)
    assert parquet.open_parquet(path).num_row_groups == 16
    return path


@pytest.mark.parametrize(
    ("values", "groups"),
    [([0], [0]), ([33, 35], [1]), ([498, 0], [0, 15]), ([31], []), ([-1, 10**6], []), ([], []), ([2, 2, 2], [0])],
)
def test_where_reads_only_the_groups_it_needs(
    many_groups: Path, monkeypatch: pytest.MonkeyPatch, values: list[int], groups: list[int]
) -> None:
    spy = Spy(monkeypatch)
    found = parquet.read_where(many_groups, "source_id", values)
    assert spy.groups == groups
    expected = [row for row in OWNERS.to_pylist() if row["source_id"] in values]
    assert found.to_pylist() == expected


def test_where_agrees_with_a_filter(many_groups: Path) -> None:
    rng = random.Random(5)
    num_found = 0
    for _ in range(50):
        values = [rng.randrange(-5, 510) for _ in range(rng.randrange(20))]
        found = parquet.read_where(many_groups, "source_id", values).to_pylist()
        assert found == [row for row in OWNERS.to_pylist() if row["source_id"] in values]
        num_found += len(found)
    assert num_found > 50


def test_read_rows_returns_a_slice_and_reads_only_its_groups(
    many_groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start, end in [(0, 1), (15, 17), (0, 250), (249, 250), (16, 32), (7, 7), (240, 999)]:
        assert parquet.read_rows(many_groups, start, end).to_pylist() == OWNERS.slice(start, end - start).to_pylist()
    spy = Spy(monkeypatch)
    parquet.read_rows(many_groups, 15, 17)
    assert spy.groups == [0, 1]


@pytest.mark.usefixtures("small_groups")
def test_every_reader_names_a_file_that_is_damaged_inside(many_groups: Path) -> None:
    data = bytearray(many_groups.read_bytes())
    for at in range(4, 400):  # the first row group; the footer stays
        data[at] ^= 0x5A
    many_groups.write_bytes(data)
    readers: list[Callable[[], Any]] = [
        lambda: parquet.read_table(many_groups),
        lambda: list(parquet.read_batches(many_groups)),
        lambda: parquet.read_where(many_groups, "source_id", [0]),
        lambda: parquet.read_rows(many_groups, 0, 1),
    ]
    for read in readers:
        with pytest.raises(DamagedError, match=r"owners\.parquet"):
            read()
    assert parquet.read_where(many_groups, "source_id", [498]).num_rows == 1  # the rest can still be read


@pytest.mark.parametrize("content", [None, b"", b"PAR1", b"not parquet at all" * 10])
def test_a_file_that_is_not_parquet_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"x\.parquet") as caught:
        parquet.open_parquet(path)
    assert caught.value.exit_code == 3
