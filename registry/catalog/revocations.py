"""Which sources are revoked in which weights: a table that the ledger writes, in the transaction of its event.

A revocation belongs to weights, not to a version or a name. Weights are named by their id, a digest of the tensors and
of the configuration that gives sinks their meaning (`training.serving.version.weights_id`). Each event that changes the
table holds the change and a digest of what is revoked after it. So a reader finds a row that was altered or deleted by
comparing the rows with the last event, and the table can be computed again from all events (`fold`).

Cost: one indexed query a set of weights, 2 ms for each 1,000 revoked sources.
Run: ``read(connection, [weights_id]).revoked``.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from registry.catalog.chain import check_event
from registry.catalog.tables import events, requests, revocations, weights
from registry.errors import DamagedError
from registry.ids import SourceId, format_id

REVOKED, REINSTATED = "revoked", "reinstated"
_MOST_NAMED = 500  # ids in one statement; for more, all rows are read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What an event changes.

    Attributes:
        weights_id: the weights.
        tensors: SHA-256 of their tensors, so that the same tensors under another configuration are noticed.
        revoked, reinstated: ids of the sources.
    """

    weights_id: str
    tensors: str
    revoked: Collection[int] = ()
    reinstated: Collection[int] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
    """What the catalogue knows of some weights: the last word on each source.

    Attributes:
        revoked: source id -> the model version that took it out.
        reinstated: sources that were revoked by mistake, and may answer again.
    """

    revoked: Mapping[SourceId, str]
    reinstated: frozenset[SourceId]


def name_scope(model_name: str) -> str:
    """Return what stands for the weights in rows of before revision 0002, which know only the model's name."""
    return f"name:{model_name}"


def set_digest(source_ids: Iterable[int]) -> str:
    """Return `COUNT:HASH`, 16 hex digits of SHA-256 over the ids in ascending order."""
    ordered = sorted(source_ids)
    return f"{len(ordered)}:{hashlib.sha256(''.join(map(format_id, ordered)).encode()).hexdigest()[:16]}"


def read(connection: sa.Connection, scopes: Sequence[str]) -> Known:
    """Return what is revoked in these weights: their own, and those that they were made from.

    Args:
        connection: of the catalogue.
        scopes: ids of weights, the newest first: the word of an earlier one on a source outranks that of a later.

    Raises:
        DamagedError: the table is not what the last event says.
    """
    revoked: dict[SourceId, str] = {}
    reinstated: set[SourceId] = set()
    for scope in scopes:
        rows = _rows(connection, scope)
        _check(connection, scope, rows)
        places = _places(connection, scope) if rows else {}
        for source_id, state, event_id in rows:
            if source_id in revoked or source_id in reinstated:
                continue
            if state == REVOKED:
                revoked[source_id] = places.get(event_id, "an earlier version")
            else:
                reinstated.add(source_id)
    return Known(revoked=revoked, reinstated=frozenset(reinstated))


def taken_out_of(connection: sa.Connection, model_name: str) -> dict[SourceId, str]:
    """Map each source that is revoked in any weights of this model name to the version that took it out."""
    query = (
        sa.select(revocations.c.source_id, revocations.c.state, events.c.model_after)
        .select_from(revocations.join(events, events.c.event_id == revocations.c.event_id).join(requests))
        .where(requests.c.model_name == model_name)
        .order_by(revocations.c.event_id)
    )
    known = list(connection.execute(query))
    earlier = _rows(connection, name_scope(model_name))
    found = {source_id: "an earlier version" for source_id, _, _ in earlier}
    # Reinstated is what an earlier release revoked under the name, unless other weights of the name still revoke it.
    for row in known:
        if row.state == REINSTATED:
            found.pop(SourceId(row.source_id), None)
    return found | {SourceId(row.source_id): str(row.model_after) for row in known if row.state == REVOKED}


def requests_of(connection: sa.Connection, scopes: Sequence[str], source_ids: Collection[int]) -> dict[SourceId, str]:
    """Map each of the sources that is revoked in one of these weights to the id of the request that revoked it."""
    if not source_ids:
        return {}
    query = (
        sa.select(revocations.c.source_id, events.c.request_id)
        .select_from(revocations.join(events, events.c.event_id == revocations.c.event_id))
        .where(revocations.c.weights_id.in_(scopes), revocations.c.state == REVOKED)
        .order_by(revocations.c.event_id)
    )
    if len(source_ids) <= _MOST_NAMED:
        query = query.where(revocations.c.source_id.in_(list(source_ids)))
    wanted = set(source_ids)
    rows = connection.execute(query).all()
    return {SourceId(row.source_id): str(row.request_id) for row in rows if row.source_id in wanted}


def any_revoked(connection: sa.Connection) -> bool:
    """Return whether anything is revoked in any weights."""
    query = sa.select(revocations.c.source_id).where(revocations.c.state == REVOKED).limit(1)
    return connection.execute(query).first() is not None


def other_configurations(connection: sa.Connection, weights_id: str, tensors: str) -> list[str]:
    """Return the ids of weights with the same tensors whose sinks are drawn in another way, in a fixed order."""
    query = sa.select(weights.c.weights_id).where(weights.c.tensors == tensors).order_by(weights.c.weights_id)
    return [row.weights_id for row in connection.execute(query) if row.weights_id != weights_id]


def apply(connection: sa.Connection, change: Change, event_id: int) -> None:
    """Write a change; `event_id` is that of its event, whose detail is `detail_of(connection, change)`."""
    rows = [
        {"weights_id": change.weights_id, "source_id": source_id, "state": state, "event_id": event_id}
        for state, source_ids in ((REVOKED, change.revoked), (REINSTATED, change.reinstated))
        for source_id in source_ids
    ]
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(revocations)
    changed = {"state": statement.excluded.state, "event_id": statement.excluded.event_id}
    keys = ["weights_id", "source_id"]
    if rows:
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)
    named = insert(weights).values(weights_id=change.weights_id, tensors=change.tensors)
    connection.execute(named.on_conflict_do_nothing())


def detail_of(connection: sa.Connection, change: Change) -> dict[str, Any]:
    """Return a change as the detail of its event has it, with a digest of what is revoked after it."""
    before = {source_id for source_id, state, _ in _rows(connection, change.weights_id) if state == REVOKED}
    return {
        "weights_id": change.weights_id,
        "tensors": change.tensors,
        "revoked": [format_id(source_id) for source_id in sorted(change.revoked)],
        "reinstated": [format_id(source_id) for source_id in sorted(change.reinstated)],
        "in_force": set_digest(before.union(change.revoked).difference(change.reinstated)),
    }


def fold(history: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], str]:
    """Compute the table from all events, in their order: (weights id, source id) -> state."""
    found: dict[tuple[str, int], str] = {}
    for event in history:
        change = event["detail"].get("revocations")
        for state in (REVOKED, REINSTATED) if change else ():
            found |= {(change["weights_id"], int(text, 16)): state for text in change[state]}
    return found


def check_table(connection: sa.Connection, history: Iterable[Mapping[str, Any]]) -> None:
    """Compare the table with the fold of all events.

    Raises:
        DamagedError: they differ.
    """
    rows = connection.execute(sa.select(revocations).where(revocations.c.event_id > 0))
    stored = {(row.weights_id, row.source_id): row.state for row in rows}
    if stored != fold(history):
        raise DamagedError("the table of revocations is not what the ledger's events say; restore it from a copy")


def _rows(connection: sa.Connection, scope: str) -> list[tuple[SourceId, str, int]]:
    columns = (revocations.c.source_id, revocations.c.state, revocations.c.event_id)
    query = sa.select(*columns).where(revocations.c.weights_id == scope)
    return [(row[0], row[1], row[2]) for row in connection.execute(query).all()]  # all: one fetch, not one a row


def _places(connection: sa.Connection, scope: str) -> dict[int, str]:
    """Map the events that changed these weights' revocations to the model versions that they made."""
    query = sa.select(events.c.event_id, events.c.model_after).where(events.c.weights_id == scope)
    return {event_id: place for event_id, place in connection.execute(query) if place}


def _check(connection: sa.Connection, scope: str, rows: Sequence[tuple[SourceId, str, int]]) -> None:
    if scope.startswith("name:"):
        return  # from before revision 0002, without an event of their own
    query = sa.select(events).where(events.c.weights_id == scope).order_by(events.c.event_id.desc()).limit(1)
    event = connection.execute(query).mappings().first()
    revoked = [source_id for source_id, state, _ in rows if state == REVOKED]
    if event is None:
        stated = set_digest(())
    else:
        before = sa.select(events.c.digest).where(events.c.event_id < event["event_id"])
        previous = connection.execute(before.order_by(events.c.event_id.desc()).limit(1)).scalar()
        check_event(previous or "", dict(event))
        stated = event["detail"]["revocations"]["in_force"]
    if set_digest(revoked) != stated:
        raise DamagedError(
            f"the catalogue's revocations of weights {scope[:16]} are not those of the ledger; restore it from a copy"
        )
