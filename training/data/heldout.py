"""Which sources are never trained: the yardstick for evidence. Pure: the same seed and sources, the same choice.

An unlearned source should be as hard for the model as text it never saw, and that has to be measured on real sources
of the same snapshot. They are ranked by a keyed hash of their id, so that the choice is spread evenly, needs no state,
and hardly moves when a later snapshot has a few sources more or less. Cost: about 2 microseconds a source.
"""

from __future__ import annotations

import hashlib
import math

import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import UsageError
from registry.schema import Kind


def choose_heldout(
    sources: pa.Table,
    owners: pa.Table | None = None,
    *,
    seed: int,
    share: float = 0.01,
    min_heldout: int = 8,
    min_bytes: int = 2000,
) -> list[int]:
    """The ids of the sources to hold out, ascending.

    Shared text is no source to hold out, and neither is a source that owns some: it would be trained through the
    shared one. Sources under `min_bytes` are taken only where the others do not suffice.

    Args:
        sources: rows of schema.SOURCES.
        owners: rows of schema.OWNERS, of the same snapshot.
        seed: the run's seed.
        share: of the sources with documents; rounded up.
        min_heldout: at the least so many.
        min_bytes: text from which a source's loss can be measured.

    Raises:
        UsageError: fewer than twice as many sources as are to be held out.
    """
    trained = sources.filter(pc.greater(sources["num_documents"], 0))
    num_wanted = max(min_heldout, math.ceil(share * trained.num_rows))
    if num_wanted == 0:
        return []
    sharing = set(owners["owner_id"].to_pylist()) if owners is not None else set()
    num_bytes = {
        row["source_id"]: row["num_bytes"]
        for row in trained.select(["source_id", "kind", "num_bytes"]).to_pylist()
        if row["kind"] != Kind.SHARED and row["source_id"] not in sharing
    }
    if len(num_bytes) < 2 * num_wanted:
        raise UsageError(
            f"{num_wanted} sources are to be held out, which needs at least {2 * num_wanted} that share no text, and "
            f"the snapshot has {len(num_bytes)}: ingest more, or lower min_heldout and heldout_share (both 0: none)"
        )
    ranked = sorted(num_bytes, key=lambda source: (num_bytes[source] < min_bytes, _rank(seed, source)))
    return sorted(ranked[:num_wanted])


def _rank(seed: int, source: int) -> bytes:
    data = f"{seed}:{source}".encode()
    return hashlib.blake2b(data, digest_size=16, person=b"nulls.held.v1").digest()
