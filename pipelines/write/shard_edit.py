"""A snapshot's shards with some texts out and some in: only the shards that these are of are written anew.

Texts are sorted by (source, document) over all shards, and stay so: a text belongs to the last shard that begins at or
before it, and a shard begins with all of its first source, unless that goes on from the shard before. Shards keep their
numbers; one that has nothing left is not there any more. Memory: one row group (8 MiB of text), and the ids of what
goes. Cost: what is in the shards that are touched.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import itertools
import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from pipelines.write.external_sort import Row
from pipelines.write.shards import Placement, ShardWriter
from registry.snapshot import SnapshotWriter
from registry.storage.parquet import open_parquet, read_batches

Key: TypeAlias = tuple[int, int]  # source_id, doc_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which shards are touched.

    Attributes:
        numbers: of all shards, in order.
        firsts: the least text that belongs in each.
        touched: numbers of those that are written anew.
    """

    numbers: tuple[int, ...]
    firsts: tuple[Key, ...]
    touched: frozenset[int]

    def shard_of(self, key: Key) -> int:
        """The number of the shard that a text is in, or goes to."""
        return self.numbers[max(0, bisect.bisect_right(self.firsts, key) - 1)] if self.numbers else 0


def plan(names: Sequence[str], place: Path, changes: Iterable[Key]) -> Plan:
    """Finds out what `changes` touch.

    Args:
        names: of the shards, "shards/part-00000", in order.
        place: a local directory of the snapshot.
        changes: the texts that go or come.
    """
    numbers = tuple(int(name[-5:]) for name in names)
    firsts: list[Key] = []
    last_source = -1
    for name in names:
        source_id, doc_id = _first(place / f"{name}.parquet")
        firsts.append((source_id, doc_id if source_id == last_source else -1))
        last_source = _last_source(place / f"{name}.parquet")
    found = Plan(numbers=numbers, firsts=tuple(firsts), touched=frozenset())
    return dataclasses.replace(found, touched=frozenset(found.shard_of(key) for key in changes))


def edit(
    found: Plan, place: Path, folder: str, *, leaving: Collection[Key], arriving: Iterable[Row], writer: SnapshotWriter
) -> Iterator[Placement]:
    """Writes the touched shards of `folder`, and links the others; yields where the sources of the touched are now.

    Args:
        found: from `plan`.
        place: a local directory of the snapshot.
        folder: "shards" or "displaced".
        leaving: texts that are not to be there.
        arriving: texts that come, sorted.
        writer: of the new snapshot.

    Raises:
        ServiceError: a file cannot be written.
    """
    for number in found.numbers:
        if number not in found.touched:
            writer.link(_name(folder, number), place)
    groups = itertools.groupby(arriving, lambda row: found.shard_of(row[:2]))
    pending = next(groups, None)
    for number in sorted(found.touched):
        is_met = pending is not None and pending[0] == number
        coming = pending[1] if pending is not None and is_met else iter(())
        file = place / f"{_name(folder, number)}.parquet"
        staying = (row for row in _rows(file) if row[:2] not in leaving) if number in found.numbers else iter(())
        with ShardWriter(writer, folder) as shard:
            yield from _placed(heapq.merge(staying, coming, key=operator.itemgetter(0, 1)), number, shard)
        pending = next(groups, None) if is_met else pending


def _placed(rows: Iterator[Row], number: int, shard: ShardWriter) -> Iterator[Placement]:
    start = 0
    for source_id, group in itertools.groupby(rows, key=operator.itemgetter(0)):
        end = start
        for row in group:
            shard.write(number, row)
            end += 1
        yield Placement(source_id, number, start, end)
        start = end


def _rows(file: Path) -> Iterator[Row]:
    for batch in read_batches(file, columns=["source_id", "doc_id", "text"], batch_size=256):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _first(file: Path) -> Key:
    batch = next(read_batches(file, columns=["source_id", "doc_id"], batch_size=1))
    return batch["source_id"][0].as_py(), batch["doc_id"][0].as_py()


def _last_source(file: Path) -> int:
    metadata = open_parquet(file).metadata
    return int(metadata.row_group(metadata.num_row_groups - 1).column(0).statistics.max)


def _name(folder: str, number: int) -> str:
    return f"{folder}/part-{number:05d}"
