"""Choice of the held-out sources, which are never trained: the baseline for evidence, a function of seed and sources.

An unlearned source should be as hard for the model as text it never saw, and that has to be measured on real sources
of the same snapshot. Sources are ranked by a keyed hash of their id, so that the choice is even, needs no state, and
hardly changes when a later snapshot has a few sources more or less. Cost: about 2 microseconds a source.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from registry.errors import UsageError
from registry.ids import SourceId
from registry.schema import Kind


def choose_heldout(
    sources: pa.Table,
    owners: pa.Table | None = None,
    *,
    seed: int,
    share: float = 0.01,
    min_heldout: int = 8,
    min_bytes: int = 2000,
    never: Collection[int] = (),
) -> list[SourceId]:
    """Return the ids of the sources to hold out, ascending.

    Shared sources are never held out, nor are their owners, which would be trained through the shared text. Sources
    under `min_bytes` are chosen only where the others do not suffice.

    Args:
        sources: rows of schema.SOURCES.
        owners: rows of schema.OWNERS, of the same snapshot.
        seed: the run's seed.
        share: share of the sources with documents to hold out; rounded up.
        min_heldout: least number of sources to hold out.
        min_bytes: text needed to measure a source's loss.
        never: sources to train in any case, such as those with reserved sinks.

    Raises:
        UsageError: fewer than twice as many sources as are to be held out.
    """
    trained = sources.filter(pc.greater(sources["num_documents"], 0))
    num_wanted = max(min_heldout, math.ceil(share * trained.num_rows))
    if num_wanted == 0:
        return []
    kept = frozenset(never)
    owner_ids = set(owners["owner_id"].to_pylist()) if owners is not None else set()
    num_bytes: dict[SourceId, int] = {
        row["source_id"]: row["num_bytes"]
        for row in trained.select(["source_id", "kind", "num_bytes"]).to_pylist()
        if row["kind"] != Kind.SHARED and row["source_id"] not in owner_ids and row["source_id"] not in kept
    }
    if len(num_bytes) < 2 * num_wanted:
        raise UsageError(
            f"held-out sources: got {len(num_bytes)} sources that share no text, but holding out {num_wanted} needs at "
            f"least {2 * num_wanted}; ingest more, or lower min_heldout and heldout_share (both 0: none)"
        )
    ranked = sorted(num_bytes, key=lambda source_id: (num_bytes[source_id] < min_bytes, _rank(seed, source_id)))
    return sorted(ranked[:num_wanted])


def _rank(seed: int, source_id: SourceId) -> bytes:
    data = f"{seed}:{source_id}".encode()
    return hashlib.blake2b(data, digest_size=16, person=b"nulls.held.v1").digest()
