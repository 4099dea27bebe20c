"""The directory that the workers of a run share, on storage that all of them see; they share nothing else.

    run/
        folders.json    the staged directories, in order; a document's block has the index of one in this list
        shingles/       a file for each block of candidates (`pipelines.resolve.beam.shingle_blocks`)
        parts/          decisions, as Parquet
        receipts.json   the valid parts with their rows, and how many rows each step sent and received; written last

A runner may run a bundle twice, or run it and drop its output. So a part's file name contains a hash of its content,
and only files that `receipts.json` lists are read: that list is made from elements of the pipeline, which the runner
commits together with the bundle that made them. Beam's own WriteToParquet does neither, and one bad record ends it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import apache_beam as beam
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindows

from registry.storage import translate_os_errors, write_atomic
from registry.storage.parquet import ParquetFileWriter, open_parquet, sha256_file, translate_damage

RECEIPTS = "receipts"  # the tag of receipts among a step's outputs
_BATCH_ROWS = 16_384

Values: TypeAlias = tuple[Any, ...]
Receipt: TypeAlias = tuple[tuple[str, str], int]  # (what, file or ""), rows
Piece: TypeAlias = tuple[int, str, int]  # index of the directory, file, row group


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """The directory of one run. Pickled for each worker, so it holds only the path.

    Attributes:
        root: the directory.
    """

    root: Path

    def prepare(self, folders: Iterable[Path]) -> None:
        """Make the directory, which must not exist.

        Raises:
            ServiceError: it cannot be written.
        """
        with translate_os_errors(self.root):
            for folder in (self.root, self.root / "shingles", self.root / "parts"):
                folder.mkdir()
        write_atomic(self.root / "folders.json", json.dumps([str(folder.absolute()) for folder in folders]).encode())

    def folders(self) -> list[str]:
        """Return the staged directories."""
        found: list[str] = json.loads((self.root / "folders.json").read_bytes())
        return found

    def block(self, block: int) -> Path:
        """Return the path of a block's shingle file."""
        return self.root / "shingles" / f"{block:016x}"

    @property
    def parts(self) -> Path:
        """The directory of the parts."""
        return self.root / "parts"

    @property
    def receipts(self) -> Path:
        """The file of the receipts."""
        return self.root / "receipts.json"


class Counting(beam.DoFn):  # type: ignore[misc]
    """A step that counts the rows it sends and receives; the sums of each bundle are its receipts."""

    def start_bundle(self) -> None:
        """Forget the counts of the bundle before, which may have failed."""
        self._counts: collections.Counter[str] = collections.Counter()

    def count(self, what: str, rows: int = 1) -> None:
        """Add to the receipts of this bundle."""
        self._counts[what] += rows

    def finish_bundle(self) -> Iterator[Any]:
        """Yield the receipts."""
        for what, rows in self._counts.items():
            yield beam.pvalue.TaggedOutput(RECEIPTS, GlobalWindows.windowed_value(((what, ""), rows)))


class ReadStaged(beam.PTransform):  # type: ignore[misc]
    """Apply `reader` to the row groups of one staged table.

    Args:
        table: of `pipelines.stage.staging.TABLES`.
        reader: a DoFn over `Piece`.
        outputs: its tags.
    """

    def __init__(self, table: str, reader: Counting, *outputs: str) -> None:
        super().__init__()
        self._table, self._reader, self._outputs = table, reader, outputs

    def expand(self, folders: Any) -> Any:
        """Expand over `folders`, which are (index, directory)."""
        return (
            folders
            | beam.FlatMap(_pieces, self._table).with_output_types(tuple[int, str, int])
            | beam.Reshuffle()  # or the worker that lists a file would read all of it
            | beam.ParDo(self._reader).with_outputs(RECEIPTS, *self._outputs, main="rows")
        )


def staged_folders(pipeline: Any, files: RunFiles) -> Any:
    """Return (index, directory) of every staged directory, spread over the workers."""
    return (
        pipeline
        | "run" >> beam.Create([str(files.root)])
        | "folders" >> beam.FlatMap(_folders).with_output_types(tuple[int, str])
        | "spread" >> beam.Reshuffle()
    )


def _folders(root: str) -> Iterator[tuple[int, str]]:
    yield from enumerate(RunFiles(Path(root)).folders())


def _pieces(folder: tuple[int, str], table: str) -> Iterator[Piece]:
    index, name = folder
    path = Path(name) / f"{table}.parquet"
    for group in range(open_parquet(path).num_row_groups):
        yield index, str(path), group


def read_piece(piece: Piece, columns: list[str]) -> pa.Table:
    """Read columns of a row group.

    Raises:
        DamagedError: it cannot be read.
    """
    path = Path(piece[1])
    file = open_parquet(path)
    with translate_damage(path):
        return file.read_row_group(piece[2], columns=columns)


def rows_of(table: pa.Table) -> Iterator[Values]:
    """Yield a table's rows as tuples."""
    yield from zip(*(column.to_pylist() for column in table.columns), strict=True)


class WriteParts(beam.PTransform):  # type: ignore[misc]
    """Write rows to at most `num_parts` Parquet files, and yield their receipts.

    Args:
        files: of the run.
        table: name of the part.
        schema: of the rows.
        num_parts: the most files; rows are distributed by their first column.
    """

    def __init__(self, files: RunFiles, table: str, schema: pa.Schema, num_parts: int) -> None:
        super().__init__()
        self._writer, self._num_parts = _WritePart(files, table, schema), num_parts

    def expand(self, rows: Any) -> Any:
        """Expand to `Receipt`s."""
        return (
            rows
            | beam.Map(_with_part_index, self._num_parts).with_output_types(tuple[int, Any])
            | beam.GroupByKey()
            | beam.ParDo(self._writer)
        )


def _with_part_index(row: Values, num_parts: int) -> tuple[int, Values]:
    return zlib.crc32(str(row[0]).encode()) % num_parts, row  # not hash(), which each process salts differently


class _WritePart(beam.DoFn):  # type: ignore[misc]
    def __init__(self, files: RunFiles, table: str, schema: pa.Schema) -> None:
        self._files, self._table, self._schema = files, table, schema

    def process(self, part: tuple[int, Iterable[Values]]) -> Iterator[Receipt]:
        index, rows = part
        folder = self._files.parts
        with translate_os_errors(folder):
            handle, name = tempfile.mkstemp(dir=folder, prefix=f".{self._table}-{index:05d}.")
            os.close(handle)
            temporary = Path(name)
            try:
                with ParquetFileWriter(temporary, self._schema) as file:
                    remaining = iter(rows)
                    while chunk := list(itertools.islice(remaining, _BATCH_ROWS)):
                        columns = [list(column) for column in zip(*chunk, strict=True)]
                        file.write(pa.table(columns, schema=self._schema))
                final = f"{self._table}-{index:05d}-{sha256_file(temporary)[:16]}.parquet"
                os.replace(temporary, folder / final)
            finally:
                temporary.unlink(missing_ok=True)
        yield (self._table, final), file.num_rows


class WriteReceipts(beam.PTransform):  # type: ignore[misc]
    """Write all receipts to `receipts.json`: one small file, by one worker, atomically."""

    def __init__(self, files: RunFiles) -> None:
        super().__init__()
        self._files = files

    def expand(self, receipts: Any) -> Any:
        """Expand over the `receipts` of all steps."""
        return (
            receipts
            | beam.Map(lambda receipt: receipt).with_output_types(tuple[tuple[str, str], int])
            | "sums" >> beam.CombinePerKey(sum)
            | "all" >> beam.combiners.ToList()
            | "write" >> beam.Map(_write_receipts, self._files)
        )


def _write_receipts(receipts: list[Receipt], files: RunFiles) -> None:
    rows = [[what, name, num_rows] for (what, name), num_rows in sorted(receipts)]
    write_atomic(files.receipts, json.dumps(rows).encode())
