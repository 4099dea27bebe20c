"""The whole Beam pipeline on one page: staged directories -> parts and receipts."""

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
    """Adds every step to `pipeline`.

    Args:
        pipeline: an empty one.
        files: of the run; prepared.
        config: what counts as a near-duplicate.
        schemas: of the parts, by name.
        num_parts: files of each.
    """
    folders = staged_folders(pipeline, files)
    decisions = documents.decide(folders, files, config)
    reached, receipts = redirects.follow(folders)
    rows = {
        "collisions": decisions.collisions,
        "superseded": decisions.superseded,
        "exact": decisions.exact,
        "edges": decisions.edges,
        "reached": reached,
    }
    written = [
        rows[name] | f"write {name}" >> WriteParts(files, name, schema, num_parts) for name, schema in schemas.items()
    ]
    everything = (*written, *decisions.receipts, *receipts) | "receipts" >> beam.Flatten()
    everything | "write receipts" >> WriteReceipts(files)
