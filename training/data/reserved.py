"""Check reserved sources against a snapshot, before anything is trained: each must be there and have text.

A reserved source takes `num_sinks` rows of every layer's pool from all others, so one that would never be trained is an
error. `choose_heldout` never holds a reserved source out. Cost: one read of a few row groups of `sources`.

Run: ``check_reserved(snapshot, config.model.layout().reserved)``.
"""

from __future__ import annotations

from collections.abc import Collection

from registry.errors import UsageError
from registry.ids import format_id
from registry.lookup import Source, read_sources
from registry.snapshot import Snapshot

_MAX_NAMED = 8


def check_reserved(snapshot: Snapshot, reserved: Collection[int]) -> list[Source]:
    """Return the reserved sources, in the order of their ids.

    Raises:
        UsageError: the snapshot does not hold one of them, or holds no text of it.
    """
    known = read_sources(snapshot, reserved)
    absent = [format_id(source_id) for source_id in reserved if source_id not in known]
    empty = [source.key for source in known.values() if not source.num_documents]
    for names, what in ((absent, "are not in"), (empty, "have no text in")):
        if names:
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            raise UsageError(
                f"reserved sources: {', '.join(names[:_MAX_NAMED])}{more} {what} snapshot {snapshot.id[:12]}, so their "
                "sinks would never be trained; reserve sources that `nulls lookup` finds there"
            )
    return [known[source_id] for source_id in sorted(known)]
