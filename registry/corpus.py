"""Which of some sources a snapshot holds text of: what a training on it would read, or has read.

A source's text is its own documents, and text that it published together with others, which is kept under a shared
source. Cost: a few row groups of `sources`, and the compact table `owners`.

Run: ``with_text(snapshot, [source_id])``.
"""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from registry.ids import SourceId
from registry.snapshot import Snapshot
from registry.storage.parquet import int64_array


def with_text(snapshot: Snapshot, source_ids: Collection[int], *, all_owners: bool = False) -> dict[SourceId, str]:
    """Return id -> key of those of the sources whose text is in the snapshot, in the order of their keys.

    Args:
        snapshot: the snapshot.
        source_ids: the sources.
        all_owners: count text that several sources published only if all of them are among `source_ids`. Such text
            goes on without the others as soon as one owner is left.
    """
    wanted = sorted(source_ids)
    if not wanted:
        return {}
    rows = snapshot.where("sources", "source_id", wanted).select(["source_id", "key", "num_documents"]).to_pylist()
    sharing = _sharing(snapshot, wanted, all_owners) if any(row["num_documents"] == 0 for row in rows) else set()
    found = [row for row in rows if row["num_documents"] or row["source_id"] in sharing]
    return {SourceId(row["source_id"]): str(row["key"]) for row in sorted(found, key=lambda row: row["key"])}


def _sharing(snapshot: Snapshot, wanted: list[int], all_owners: bool) -> set[int]:
    """Return those of the sources that own text together with others."""
    owners = snapshot.table("owners")
    mine = pc.is_in(owners["owner_id"], value_set=int64_array(wanted))
    if all_owners:
        others: pa.Array = owners.filter(pc.invert(mine))["source_id"].combine_chunks().unique()
        mine = pc.and_(mine, pc.invert(pc.is_in(owners["source_id"], value_set=others)))
    return set(owners.filter(mine)["owner_id"].to_pylist())
