"""The whole Beam pipeline on one page, from staged directories to parts and receipts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import apache_beam as beam
import pyarrow as pa

from pipelines.dedup.minhash import DedupConfig
from pipelines.resolve.beam import documents, redirects
from pipelines.resolve.beam.run_files import RunFiles, WriteParts, WriteReceipts, staged_folders


def build(
    pipeline: Any, files: RunFiles, config: DedupConfig, *, schemas: Mapping[str, pa.Schema], num_parts: int
) -> None:
    """Add every step to `pipeline`.

    Args:
        pipeline: an empty one.
        files: of the run; prepared.
        config: what counts as a near-duplicate.
        schemas: the schema of each part.
        num_parts: the most files of each part.
    """
    folders = staged_folders(pipeline, files)
    found = documents.find_groups(folders, files, config)
    reached, receipts = redirects.follow(folders)
    rows = {
        "collisions": found.collisions,
        "superseded": found.superseded,
        "exact": found.exact,
        "edges": found.edges,
        "reached": reached,
    }
    written = [
        rows[name] | f"write {name}" >> WriteParts(files, name, schema, num_parts) for name, schema in schemas.items()
    ]
    everything = (*written, *found.receipts, *receipts) | "receipts" >> beam.Flatten()
    everything | "write receipts" >> WriteReceipts(files)
