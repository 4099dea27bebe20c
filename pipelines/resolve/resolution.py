"""The result of the keyed stage, whichever engine ran it: the contents of a snapshot, in order, in batches.

An engine takes the staged directories and the configuration and returns a `Resolution`; `write_resolution` writes the
snapshot's files from it. Since there is one writer, and every table is sorted by all columns that tell its rows apart,
engines that decide alike (`pipelines.dedup.decisions`) write the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from pipelines.write.external_sort import Row, sorted_texts
from pipelines.write.shards import write_shards
from registry.ids import DocId, SourceId
from registry.snapshot import SnapshotWriter


class Resolution(Protocol):
    """The answer of an engine; close it. Batches of tables come in `registry.schema.SORT_ORDER`."""

    def close(self) -> None:
        """Free what the answer is read from; nothing can be read from it afterwards."""

    def documents(self) -> Iterator[pa.RecordBatch]:
        """Yield `registry.schema.DOCUMENTS`."""

    def owners(self) -> Iterator[pa.RecordBatch]:
        """Yield `registry.schema.OWNERS`."""

    def aliases(self) -> Iterator[pa.RecordBatch]:
        """Yield `registry.schema.ALIASES`."""

    def bands(self) -> Iterator[pa.RecordBatch]:
        """Yield `registry.schema.BANDS` of kept and displaced documents."""

    def texts(self, folder: str) -> Iterator[pa.RecordBatch]:
        """Yield `registry.schema.SHARD` rows of "shards" or "displaced", in any order."""

    def text_keys(self, folder: str) -> Iterator[tuple[SourceId, DocId]]:
        """Yield (source_id, doc_id) of the texts of "shards" or "displaced", in any order."""

    def source_bytes(self, folder: str) -> Iterator[tuple[SourceId, int]]:
        """Yield (source_id, bytes of its texts in `folder`), sorted."""

    def sources(self, placements: Path) -> Iterator[pa.RecordBatch]:
        """Yield `registry.schema.SOURCES`; `placements` is a Parquet file of `pipelines.write.shards.PLACEMENTS`."""


def write_resolution(resolution: Resolution, writer: SnapshotWriter, work: Path, *, shard_bytes: int) -> int:
    """Write all files of the snapshot except its manifest; return the number of texts in its shards.

    Args:
        resolution: the contents.
        writer: of the snapshot.
        work: a directory for what does not fit memory.
        shard_bytes: target size of a shard, in bytes of text.

    Raises:
        ServiceError: a file cannot be written.
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
