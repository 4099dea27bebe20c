"""Delete texts from a snapshot's shards and add others, rewriting only the shards that hold or get them.

Texts stay sorted by (source, document) over all shards: a text belongs to the last shard that begins at or before it,
and a shard begins with all of its first source, unless that continues from the shard before. Shards keep their numbers;
one without texts is dropped. Memory: one row group (8 MiB of text), and the ids of the deleted texts. Cost: reading and
writing the touched shards.
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
from registry.ids import DocId, SourceId
from registry.snapshot import SnapshotWriter
from registry.storage.parquet import open_parquet, read_batches

TextKey: TypeAlias = tuple[SourceId, DocId]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardChanges:
    """The shards of a folder, and which of them are touched.

    Attributes:
        numbers: of all shards, in order.
        firsts: the least key that belongs in each.
        touched: numbers of those that are rewritten.
    """

    numbers: tuple[int, ...]
    firsts: tuple[TextKey, ...]
    touched: frozenset[int]

    def shard_of(self, key: TextKey) -> int:
        """Return the number of the shard that a text is in, or is added to."""
        return self.numbers[max(0, bisect.bisect_right(self.firsts, key) - 1)] if self.numbers else 0


def find_changes(names: Sequence[str], local: Path, changed: Iterable[TextKey]) -> ShardChanges:
    """Find the shards that the `changed` texts touch.

    Args:
        names: of the shards, "shards/part-00000", in order.
        local: a local directory of the snapshot.
        changed: the texts to delete or to add.
    """
    numbers = tuple(int(name[-5:]) for name in names)
    firsts: list[TextKey] = []
    last_source = -1
    for name in names:
        source_id, doc_id = _first_key(local / f"{name}.parquet")
        firsts.append((source_id, doc_id if source_id == last_source else DocId(-1)))
        last_source = _last_source(local / f"{name}.parquet")
    shards = ShardChanges(numbers=numbers, firsts=tuple(firsts), touched=frozenset())
    return dataclasses.replace(shards, touched=frozenset(shards.shard_of(key) for key in changed))


def edit_shards(
    changes: ShardChanges,
    local: Path,
    folder: str,
    *,
    deleted: Collection[TextKey],
    added: Iterable[Row],
    writer: SnapshotWriter,
) -> Iterator[Placement]:
    """Rewrite the touched shards of `folder`, and link the others; yield the placements in the touched shards.

    Args:
        changes: from `find_changes`.
        local: a local directory of the snapshot.
        folder: "shards" or "displaced".
        deleted: texts to leave out.
        added: texts to add, sorted.
        writer: of the new snapshot.

    Raises:
        ServiceError: a file cannot be written.
    """
    for number in changes.numbers:
        if number not in changes.touched:
            writer.link(_name(folder, number), local)
    groups = itertools.groupby(added, lambda row: changes.shard_of(row[:2]))
    pending = next(groups, None)
    for number in sorted(changes.touched):
        is_next = pending is not None and pending[0] == number
        added_here = pending[1] if pending is not None and is_next else iter(())
        file = local / f"{_name(folder, number)}.parquet"
        kept = (row for row in _rows(file) if row[:2] not in deleted) if number in changes.numbers else iter(())
        with ShardWriter(writer, folder) as shard:
            yield from _write_shard(heapq.merge(kept, added_here, key=operator.itemgetter(0, 1)), number, shard)
        pending = next(groups, None) if is_next else pending


def _write_shard(rows: Iterator[Row], number: int, shard: ShardWriter) -> Iterator[Placement]:
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


def _first_key(file: Path) -> TextKey:
    batch = next(read_batches(file, columns=["source_id", "doc_id"], batch_size=1))
    return batch["source_id"][0].as_py(), batch["doc_id"][0].as_py()


def _last_source(file: Path) -> int:
    metadata = open_parquet(file).metadata
    return int(metadata.row_group(metadata.num_row_groups - 1).column(0).statistics.max)


def _name(folder: str, number: int) -> str:
    return f"{folder}/part-{number:05d}"
