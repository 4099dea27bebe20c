"""Refuse to train on what was taken out: a corpus is compared with the ledger before anything starts.

A source that was unlearned is still in its snapshot, and a model trained on that would know it again. So a training is
refused if its snapshot holds text of a source that the ledger took out of any model of the same name, whether or not
that model is still registered, or of the weights that are registered under the name, or of those they were made from.
`nulls remove` makes a snapshot without such sources; `--allow-unlearned` trains on them all the same.

Cost: one query where nothing was ever unlearned; else some 0.1 s for each set of weights under the name.
Run: ``taken_out("sqlite:///nulls-registry/catalog.db", snapshot, "wiki", tracking_uri=...)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from registry.catalog.database import Catalog
from registry.corpus import with_text
from registry.errors import DamagedError, RefusedError
from registry.ids import SourceId
from registry.schema import Kind
from registry.snapshot import Snapshot

if TYPE_CHECKING:
    import sqlalchemy as sa

MOST_NAMED = 5


def taken_out(url: str | None, snapshot: Snapshot, model_name: str, *, tracking_uri: str) -> dict[str, str]:
    """Return the sources of a snapshot that were taken out of a model of this name or of its lineage.

    Args:
        url: the catalogue's URL; None where there is none, and so no ledger.
        snapshot: the corpus to train on.
        model_name: the name that the training registers under.
        tracking_uri: the MLflow store.

    Returns:
        Key -> the model version that took it out, in the order of the keys. Text of several sources counts if all of
        them were taken out.

    Raises:
        ServiceError: the catalogue or the store cannot be reached.
        DamagedError: the catalogue was altered.
    """
    if url is None or _is_missing_file(url):
        return {}
    catalog = Catalog(url, must_exist=True)
    try:
        with catalog.read() as connection:
            gone = _gone(connection, model_name, tracking_uri)
    finally:
        catalog.engine.dispose()
    return {key: gone[source_id] for source_id, key in with_text(snapshot, gone, all_owners=True).items()}


def refuse(found: Mapping[str, str], snapshot: Snapshot) -> None:
    """Raise a RefusedError that names these sources, unless there are none."""
    if found:
        # Shared text goes with its owners, unless it is all that is left.
        keys = [key for key in found if not key.startswith(f"{Kind.SHARED}:")] or list(found)
        named = " ".join(keys[:MOST_NAMED]) + (" ..." if len(keys) > MOST_NAMED else "")
        raise RefusedError(
            f"snapshot {snapshot.id[:12]} holds {message(found)}. Make a snapshot without: nulls remove {named}; or "
            "train on them all the same with --allow-unlearned"
        )


def message(found: Mapping[str, str]) -> str:
    """Return the number of these sources, and the first of them."""
    named = [f"{key} (in {place})" for key, place in list(found.items())[:MOST_NAMED]]
    more = f", and {len(found) - MOST_NAMED:,} more" if len(found) > MOST_NAMED else ""
    sources = "1 source that was" if len(found) == 1 else f"{len(found):,} sources that were"
    return f"{sources} unlearned: {', '.join(named)}{more}"


def _gone(connection: sa.Connection, model_name: str, tracking_uri: str) -> dict[SourceId, str]:
    from registry.catalog.revocations import any_revoked, taken_out_of

    found = taken_out_of(connection, model_name)
    if any_revoked(connection) and not _is_missing_file(tracking_uri):
        found = _in_force_under(connection, model_name, tracking_uri) | found
    return found


def _in_force_under(connection: sa.Connection, model_name: str, tracking_uri: str) -> dict[SourceId, str]:
    """Return what is revoked in any weights that are registered under a name, and where."""
    from training.serving import by_weights, in_force
    from training.serving.versions import describe
    from training.tracking import store

    found: dict[SourceId, str] = {}
    for weights in by_weights.weights_of_name(store.client(tracking_uri), tracking_uri, model_name):
        try:
            version = describe(weights.example, tracking_uri=tracking_uri)
            found |= in_force.within(connection, version).revoked
        except DamagedError as error:
            raise DamagedError(f"what was taken out of {model_name} cannot be told: {error}") from error
    return found


def _is_missing_file(url: str) -> bool:
    """Return whether a URL is that of an SQLite file that does not exist; asking it would create it."""
    path = url.rpartition(":///")[2]
    return url.startswith("sqlite") and path not in ("", ":memory:") and not Path(path).is_file()
