"""What the keyed stage gives, whichever engine ran it: the contents of a snapshot, in order, in batches.

An engine takes the staged directories and the configuration and returns a `Resolution`; `write_resolution` makes the
snapshot's files of it. Since the writer is one, and every table sorted by all that tells its rows apart, engines that
decide alike (`pipelines.dedup.decisions`) write the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from pipelines.write.external_sort import Row, sorted_texts
from pipelines.write.shards import write_shards
from registry.snapshot import SnapshotWriter


class Resolution(Protocol):
    """The answer of an engine. Every method can be called once; batches come in `registry.schema.SORT_ORDER`."""

    def documents(self) -> Iterator[pa.RecordBatch]:
        """`registry.schema.DOCUMENTS`."""

    def owners(self) -> Iterator[pa.RecordBatch]:
        """`registry.schema.OWNERS`."""

    def aliases(self) -> Iterator[pa.RecordBatch]:
        """`registry.schema.ALIASES`."""

    def bands(self) -> Iterator[pa.RecordBatch]:
        """`registry.schema.BANDS`: of kept and displaced documents."""

    def texts(self, folder: str) -> Iterator[pa.RecordBatch]:
        """`registry.schema.SHARD` rows of "shards" or "displaced", in any order."""

    def source_bytes(self, folder: str) -> Iterator[tuple[int, int]]:
        """(source_id, bytes of its texts in `folder`), sorted."""

    def sources(self, placements: Path) -> Iterator[pa.RecordBatch]:
        """`registry.schema.SOURCES`; `placements` is Parquet as in `pipelines.write.shards.PLACEMENTS`."""


def write_resolution(resolution: Resolution, writer: SnapshotWriter, work: Path, *, shard_bytes: int) -> int:
    """Writes all files of the snapshot but its manifest; returns the number of texts in its shards.

    Args:
        resolution: what to write.
        writer: where to.
        work: a directory for what does not fit memory.
        shard_bytes: target size of a shard.

    Raises:
        ServiceError: the disk is full, or the like.
    """
    placements = work / "placements.parquet"
    num_texts = write_shards(
        _texts(resolution, work, "shards"),
        resolution.source_bytes("shards"),
        writer,
        shard_bytes=shard_bytes,
        placements=placements,
    )
    write_shards(
        _texts(resolution, work, "displaced"),
        resolution.source_bytes("displaced"),
        writer,
        shard_bytes=shard_bytes,
        folder="displaced",
    )
    tables = {
        "documents": resolution.documents(),
        "owners": resolution.owners(),
        "aliases": resolution.aliases(),
        "bands": resolution.bands(),
        "sources": resolution.sources(placements),
    }
    for name, batches in tables.items():
        with writer.table(name) as file:
            for batch in batches:
                file.write(batch)
    return num_texts


def _texts(resolution: Resolution, work: Path, folder: str) -> Iterator[Row]:
    return sorted_texts(resolution.texts(folder), work / f"sort-{folder}")
