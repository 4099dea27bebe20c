"""The unlearn ledger: append-only SQL tables of who asked for what, why, and with which result.

A request is one row that never changes; its history is one row for each event. The database itself refuses UPDATE and
DELETE on both (triggers, see the migration), and each event holds the SHA-256 of its content and of the event before
it, so that a row which was altered in spite of the triggers is found. Every read of requests checks the events that it
returns; `verify` checks all. The state of a request is that of its last event, and `registry.catalog.states` says which
may follow which. An event that revokes sources changes `registry.catalog.revocations` in the same transaction.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from registry.catalog import revocations
from registry.catalog.chain import altered, as_json, check_event, digest_of, evidence_digest
from registry.catalog.database import Catalog, lock
from registry.catalog.revocations import Change
from registry.catalog.states import State, check_transition
from registry.catalog.tables import events, now, open_requests, requests
from registry.errors import NotFoundError, UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A request with its current state."""

    request_id: str
    created_at: str
    requested_by: str
    reason: str
    action: str
    policy: str
    model_name: str
    model_before: str
    sources: tuple[str, ...]
    state: State
    model_after: str | None
    evidence_digest: str | None
    detail: Mapping[str, Any]
    updated_at: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**dataclasses.asdict(self), "sources": list(self.sources), "state": self.state.value}


class Ledger:
    """The requests and their events in a catalogue."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def open_request(
        self,
        *,
        requested_by: str,
        reason: str,
        action: str,
        policy: str,
        model_name: str,
        model_before: str,
        sources: Sequence[str],
        detail: Mapping[str, Any] | None = None,
        asked: Sequence[str] | None = None,
        within: sa.Connection | None = None,
    ) -> str:
        """Record a new request, and return its id (16 hex digits).

        If a request for exactly this is open, return that one's id: identical requests at once become one.

        Args:
            requested_by, reason, action, policy, model_name, model_before, sources: the request.
            detail: more to record with it, e.g. the lines of a list.
            asked: what makes requests identical, if that is more than `sources`: all that was asked for.
            within: an open transaction of the same catalogue; by default a new one.
        """
        row = _new_row(requested_by, reason, action, policy, model_name, model_before, sources)
        fingerprint = _fingerprint(row | {"sources": sorted(asked if asked is not None else sources)})
        with self._writing(within) as connection:
            found = _open_with(connection, fingerprint)
            if found is not None:
                return found
            _record(connection, row, detail)
            opened = {"fingerprint": fingerprint, "request_id": row["request_id"]}
            connection.execute(sa.insert(open_requests).values(**opened))
        return str(row["request_id"])

    def open_like(
        self, *, action: str, policy: str, model_before: str, asked: Sequence[str], within: sa.Connection
    ) -> str | None:
        """Return the id of the open request that `open_request` would return instead of a new one."""
        wanted = {"action": action, "policy": policy, "model_before": model_before, "sources": sorted(asked)}
        return _open_with(within, _fingerprint(wanted))

    def refuse(
        self,
        *,
        requested_by: str,
        reason: str,
        action: str,
        policy: str,
        model_name: str,
        model_before: str,
        sources: Sequence[str],
        detail: Mapping[str, Any],
        within: sa.Connection | None = None,
    ) -> str:
        """Record a request that is refused at once, with the reasons in `detail`, and return its id."""
        row = _new_row(requested_by, reason, action, policy, model_name, model_before, sources)
        with self._writing(within) as connection:
            _record(connection, row, None)
            _append(connection, str(row["request_id"]), State.REFUSED, detail)
        return str(row["request_id"])

    def append(
        self,
        request_id: str,
        state: State,
        *,
        model_after: str | None = None,
        detail: Mapping[str, Any] | None = None,
        evidence: Mapping[str, Any] | None = None,
        change: Change | None = None,
        within: sa.Connection | None = None,
    ) -> str | None:
        """Append an event to a request.

        Args:
            request_id: an existing request.
            state: the new state of the request.
            model_after: the model version that the request created.
            detail: more to record.
            evidence: the measurements; kept in the event's detail.
            change: sources that are now revoked, or not any more; written to the table of revocations too.
            within: an open transaction of the same catalogue; by default a new one.

        Returns:
            The digest of `evidence`, if given.

        Raises:
            NotFoundError: there is no such request.
            TransitionError: `state` cannot follow the request's state.
        """
        with self._writing(within) as connection:
            return _append(connection, request_id, state, detail or {}, model_after, evidence, change)

    def request(self, request_id: str, *, within: sa.Connection | None = None) -> Request:
        """Return one request, after checking its events.

        Raises:
            NotFoundError: there is no request with that id.
            DamagedError: the request or one of its events was altered.
        """
        with contextlib.nullcontext(within) if within is not None else self.catalog.read() as connection:
            query = sa.select(requests).where(requests.c.request_id == request_id)
            row = connection.execute(query).mappings().first()
            if row is None:
                raise NotFoundError(f"no request {request_id!r}; `nulls ledger` lists them")
            trail = _trail(connection, request_id)
            for event in trail:
                check_event(_digest_before(connection, event["event_id"]), event)
        return _current(dict(row), trail)

    def requests(self) -> list[Request]:
        """Return all requests with their current state, the oldest first, after checking the chain.

        Raises:
            DamagedError: see `verify`.
        """
        with self.catalog.read() as connection:
            rows = {row["request_id"]: dict(row) for row in connection.execute(sa.select(requests)).mappings()}
            trail: dict[str, list[Mapping[str, Any]]] = {}
            for event in _checked(connection):
                trail.setdefault(event["request_id"], []).append(event)
        # Events are in the order in which they were written, and so are the requests that they open.
        ordered = [*trail, *(rows.keys() - trail.keys())]
        if unknown := [request_id for request_id in ordered if request_id not in rows]:
            raise altered(unknown[0])
        return [_current(rows[request_id], trail.get(request_id, [])) for request_id in ordered]

    def history(self, request_id: str) -> list[dict[str, Any]]:
        """Return the events of a request, the oldest first."""
        with self.catalog.read() as connection:
            return _trail(connection, request_id)

    def verify(self) -> int:
        """Check the chain, each request against its first event, and the revocations against all events.

        A deletion of the last events, with the requests they opened, can be found only by comparing an earlier copy.

        Returns:
            The number of events.

        Raises:
            DamagedError: an event, a request or a revocation was altered or deleted; the message names the first one.
        """
        self.requests()
        with self.catalog.read() as connection:
            history = list(_checked(connection))
            revocations.check_table(connection, history)
        return len(history)

    @contextlib.contextmanager
    def _writing(self, within: sa.Connection | None) -> Iterator[sa.Connection]:
        with contextlib.nullcontext(within) if within is not None else self.catalog.begin() as connection:
            lock(connection, "ledger")
            yield connection


def _trail(connection: sa.Connection, request_id: str) -> list[dict[str, Any]]:
    query = sa.select(events).where(events.c.request_id == request_id).order_by(events.c.event_id)
    return [dict(row) for row in connection.execute(query).mappings()]


def _digest_before(connection: sa.Connection, event_id: int | None) -> str:
    """Return the digest of the event before one; of the last event, for None."""
    query = sa.select(events.c.digest).order_by(events.c.event_id.desc()).limit(1)
    return connection.execute(query if event_id is None else query.where(events.c.event_id < event_id)).scalar() or ""


def _checked(connection: sa.Connection) -> Iterable[dict[str, Any]]:
    previous = ""
    for row in connection.execute(sa.select(events).order_by(events.c.event_id)).mappings():
        event = dict(row)
        check_event(previous, event)
        previous = event["digest"]
        yield event


def _new_row(
    requested_by: str,
    reason: str,
    action: str,
    policy: str,
    model_name: str,
    model_before: str,
    sources: Sequence[str],
) -> dict[str, Any]:
    row = {
        "request_id": secrets.token_hex(8),
        "created_at": now(),
        "requested_by": requested_by,
        "reason": reason,
        "action": action,
        "policy": policy,
        "model_name": model_name,
        "model_before": model_before,
        "sources": sorted(sources),
    }
    _check_text(row)
    return row


def _open_with(connection: sa.Connection, fingerprint: str) -> str | None:
    known = sa.select(open_requests.c.request_id).where(open_requests.c.fingerprint == fingerprint)
    found = connection.execute(known).scalar()
    return None if found is None else str(found)


def _record(connection: sa.Connection, row: dict[str, Any], detail: Mapping[str, Any] | None) -> None:
    connection.execute(sa.insert(requests).values(**row))
    _append(connection, row["request_id"], State.REQUESTED, dict(detail or {}) | {"request": row})


def _check_text(row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        for text in value if isinstance(value, list) else [value]:
            if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                raise UsageError(f"{name} {text!r}: expected UTF-8 text without NUL characters")


def _fingerprint(row: Mapping[str, Any]) -> str:
    """Return a digest of what a request asks for; migration 0002 has the same."""
    wanted = [row["action"], row["policy"], row["model_before"], row["sources"]]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()


def _append(
    connection: sa.Connection,
    request_id: str,
    state: State,
    detail: Mapping[str, Any],
    model_after: str | None = None,
    evidence: Mapping[str, Any] | None = None,
    change: Change | None = None,
) -> str | None:
    if connection.execute(sa.select(requests.c.request_id).where(requests.c.request_id == request_id)).first() is None:
        raise NotFoundError(f"no request {request_id!r}; `nulls ledger` lists them")
    last = sa.select(events.c.state).where(events.c.request_id == request_id).order_by(events.c.event_id.desc())
    before = connection.execute(last.limit(1)).scalar()
    check_transition(request_id, None if before is None else State(before), state)
    digest = evidence_digest(evidence) if evidence is not None else None
    more: dict[str, Any] = {"evidence": dict(evidence)} if evidence is not None else {}
    if change is not None:
        more["revocations"] = revocations.detail_of(connection, change)
    row: dict[str, Any] = {
        "request_id": request_id,
        "at": now(),
        "state": state.value,
        "model_after": model_after,
        "detail": as_json(dict(detail) | more),
        "evidence_digest": digest,
    }
    stored = row | {"digest": digest_of(_digest_before(connection, None), row)}
    stored["weights_id"] = change.weights_id if change is not None else None
    inserted = connection.execute(sa.insert(events).values(**stored).returning(events.c.event_id))
    event_id = inserted.scalar_one()
    if change is not None:
        undone = revocations.requests_of(connection, [change.weights_id], change.reinstated)
        _close(connection, set(undone.values()))
        revocations.apply(connection, change, event_id)
    if state.is_terminal or evidence is not None:
        _close(connection, [request_id])
    return digest


def _close(connection: sa.Connection, request_ids: Iterable[str]) -> None:
    """Let the next identical request be a new one: these have ended, or were undone."""
    for request_id in request_ids:
        connection.execute(sa.delete(open_requests).where(open_requests.c.request_id == request_id))


def _current(row: dict[str, Any], trail: Sequence[Mapping[str, Any]]) -> Request:
    opened = trail[0]["detail"].get("request") if trail and trail[0]["state"] == State.REQUESTED else None
    if opened != row:
        raise altered(row["request_id"])

    def last(name: str) -> Any:
        return next((entry[name] for entry in reversed(trail) if entry[name] is not None), None)

    detail = {name: value for name, value in trail[0]["detail"].items() if name != "request"}
    for entry in trail[1:]:
        detail |= entry["detail"]
    return Request(
        **(row | {"sources": tuple(row["sources"])}),
        state=State(trail[-1]["state"]),
        model_after=last("model_after"),
        evidence_digest=last("evidence_digest"),
        detail=detail,
        updated_at=trail[-1]["at"],
    )
