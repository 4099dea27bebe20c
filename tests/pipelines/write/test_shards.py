"""Shards keep a source together and in order; texts are sorted out of core."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.write.external_sort import Row, rows_to_batch, sorted_texts
from pipelines.write.shards import Placement, ShardAssigner, write_shards
from registry.snapshot import Registry, SnapshotWriter

documents = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), max_size=12)  # sizes, by source


def assigned(sizes: list[list[int]], shard_bytes: int) -> tuple[list[int], list[Placement]]:
    assigner = ShardAssigner(shard_bytes)
    shards, placements = [], []
    for source, own in enumerate(sizes):
        for size in own:
            shard, ended = assigner.assign(source, size, sum(own))
            shards.append(shard)
            placements.append(ended)
    placements.append(assigner.end())
    return shards, [placement for placement in placements if placement]


@given(documents, st.integers(1, 100))
def test_placements_cover_every_document_once_and_no_shard_is_too_large(sizes: list[list[int]], target: int) -> None:
    shards, placements = assigned(sizes, target)
    flat = [(source, size) for source, own in enumerate(sizes) for size in own]
    assert shards == sorted(shards)
    assert set(shards) == set(range(max(shards, default=-1) + 1))
    starts = {shard: shards.index(shard) for shard in shards}
    covered = [(starts[p.shard] + row, p.source_id) for p in placements for row in range(p.row_start, p.row_end)]
    assert covered == [(row, source) for row, (source, _) in enumerate(flat)]
    filled: dict[int, int] = defaultdict(int)
    for shard, (_, size) in zip(shards, flat, strict=True):
        filled[shard] += size
    for shard, total in filled.items():
        assert total <= target or shards.count(shard) == 1


@given(documents, st.integers(1, 100))
def test_a_source_that_fits_a_shard_is_in_one(sizes: list[list[int]], target: int) -> None:
    _, placements = assigned(sizes, target)
    for source, own in enumerate(sizes):
        of_source = [p for p in placements if p.source_id == source]
        if sum(own) <= target:
            assert len(of_source) == 1
        else:
            assert of_source[0].row_start == 0  # it begins a shard
            assert [p.shard for p in of_source] == list(range(of_source[0].shard, of_source[-1].shard + 1))


def test_a_shard_is_not_filled_over_its_target() -> None:
    shards, _ = assigned([[4, 4], [3], [9], [5, 5, 5], [1]], 10)
    assert shards == [0, 0, 1, 2, 3, 3, 4, 4]


def random_rows(count: int, seed: int = 0) -> list[Row]:
    chooser = random.Random(seed)
    rows = [
        (chooser.randrange(40), document, f"text {document} " * chooser.randrange(1, 30)) for document in range(count)
    ]
    chooser.shuffle(rows)
    return rows


def batches_of(rows: list[Row], size: int = 17) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(rows), size):
        yield rows_to_batch(rows[start : start + size])


@pytest.mark.parametrize("run_bytes", [1, 3000, 1 << 30])
def test_texts_are_sorted_out_of_core_and_nothing_is_left(run_bytes: int, tmp_path: Path) -> None:
    rows = random_rows(1500)
    assert list(sorted_texts(batches_of(rows), tmp_path / "runs", run_bytes)) == sorted(rows)
    assert not list((tmp_path / "runs").iterdir())


def test_sorting_nothing_gives_nothing(tmp_path: Path) -> None:
    assert list(sorted_texts([], tmp_path)) == []


def test_shards_and_placements_agree_and_do_not_depend_on_batches(tmp_path: Path) -> None:
    rows = sorted(random_rows(700))
    totals: dict[int, int] = defaultdict(int)
    for source, _, text in rows:
        totals[source] += len(text)
    writer = SnapshotWriter(Registry.open(tmp_path / "registry", create=True), tmp_path / "staging")
    placements = tmp_path / "placements.parquet"
    written = write_shards(rows, sorted(totals.items()), writer, shard_bytes=4000, placements=placements)
    assert written == len(rows)
    files = sorted((tmp_path / "staging" / "shards").iterdir())
    assert len(files) > 5
    stored = [tuple(row.values()) for file in files for row in pq.read_table(file).to_pylist()]
    assert stored == rows
    for row in pq.read_table(placements).to_pylist():
        part = pq.read_table(files[row["shard"]]).slice(row["row_start"], row["row_end"] - row["row_start"])
        assert set(part["source_id"].to_pylist()) == {row["source_id"]}
    sizes = [sum(len(text) for text in pq.read_table(file)["text"].to_pylist()) for file in files]
    assert max(sizes) <= 4000
