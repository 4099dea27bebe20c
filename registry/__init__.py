"""The record of every source and where it went: identity, ids, schemas, snapshots, lookup, catalogue and ledger.

Every other package imports this one, and it imports none of them. Importing it loads neither torch nor ray, beam,
duckdb or mlflow (`tests/test_layers.py` checks that), so a lookup starts in well under a second.

    from registry import Registry, lookup
    lookup(Registry.open("nulls-registry").snapshot(), "Anarchism")
"""

from typing import TYPE_CHECKING

from registry._public import publish

if TYPE_CHECKING:
    from registry.catalog.ledger import Ledger
    from registry.lookup import lookup
    from registry.snapshot import Registry, Snapshot

__all__ = ["Ledger", "Registry", "Snapshot", "lookup"]

publish(
    __name__,
    {
        "Ledger": "registry.catalog.ledger",
        "Registry": "registry.snapshot",
        "Snapshot": "registry.snapshot",
        "lookup": "registry.lookup",
    },
)
