"""The unlearn ledger: append-only SQL tables of who asked for what, why, and with which result.

A request is one row that never changes; its history is one row for each event. The database itself refuses UPDATE and
DELETE on both (triggers, see the migration), and each event holds the SHA-256 of its content and of the event before
it, so `verify` finds a row that was altered in spite of the triggers. The state of a request is that of its last event.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from registry.catalog.database import Catalog, events, lock, now, requests
from registry.errors import DamagedError, NotFoundError, UsageError


class State(enum.StrEnum):
    """The state of a request."""

    REQUESTED = "requested"  # recorded, nothing done
    PLANNED = "planned"  # its effects are known and recorded
    APPLIED = "applied"  # the new model version exists; the evidence is missing or weak
    VERIFIED = "verified"  # the evidence supports that it worked
    FAILED = "failed"  # ended with an error; nothing was changed
    REFUSED = "refused"  # not carried out, for a stated reason

    @property
    def is_terminal(self) -> bool:
        """Whether no other state can follow."""
        return self in (State.VERIFIED, State.FAILED, State.REFUSED)


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
        sources: list[str],
    ) -> str:
        """Record a new request, and return its id (16 hex digits)."""
        request_id = secrets.token_hex(8)
        row = {
            "request_id": request_id,
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
        with self.catalog.exclusive("ledger") as connection:
            connection.execute(sa.insert(requests).values(**row))
            _append(connection, request_id, State.REQUESTED, {"request": row})
        return request_id

    def append(
        self,
        request_id: str,
        state: State,
        *,
        model_after: str | None = None,
        detail: Mapping[str, Any] | None = None,
        evidence: Mapping[str, Any] | None = None,
        within: sa.Connection | None = None,
    ) -> str | None:
        """Append an event to a request.

        Args:
            request_id: an existing request.
            state: the new state of the request.
            model_after: the model version that the request created.
            detail: more to record.
            evidence: the measurements; kept in the event's detail.
            within: an open transaction of the same catalogue; by default a new one.

        Returns:
            The digest of `evidence`, if given.
        """
        with contextlib.nullcontext(within) if within is not None else self.catalog.begin() as connection:
            lock(connection, "ledger")
            return _append(connection, request_id, state, detail or {}, model_after, evidence)

    def request(self, request_id: str) -> Request:
        """Return one request.

        Raises:
            NotFoundError: there is no request with that id.
        """
        found = [request for request in self.requests() if request.request_id == request_id]
        if not found:
            raise NotFoundError(f"no request {request_id!r}; `nulls ledger` lists them")
        return found[0]

    def requests(self) -> list[Request]:
        """Return all requests with their current state, the oldest first."""
        with self.catalog.read() as connection:
            rows = connection.execute(sa.select(requests).order_by(requests.c.created_at)).mappings().all()
            history = connection.execute(sa.select(events).order_by(events.c.event_id)).mappings().all()
        trail: dict[str, list[Mapping[str, Any]]] = {}
        for entry in history:
            trail.setdefault(entry["request_id"], []).append(dict(entry))
        current = [_current(dict(row), trail.get(row["request_id"], [])) for row in rows]
        return sorted(current, key=lambda request: trail[request.request_id][0]["event_id"])

    def history(self, request_id: str) -> list[dict[str, Any]]:
        """Return the events of a request, the oldest first."""
        query = sa.select(events).where(events.c.request_id == request_id).order_by(events.c.event_id)
        with self.catalog.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def verify(self) -> int:
        """Recompute the chain of digests, compare requests with their first events, and return the number of events.

        A deletion of the last events, with the requests they opened, can be found only by comparing an earlier copy.

        Raises:
            DamagedError: an event or a request was altered or deleted; the message names the first one.
        """
        previous, count = "", 0
        with self.catalog.read() as connection:
            unopened = {row["request_id"]: dict(row) for row in connection.execute(sa.select(requests)).mappings()}
            for row in connection.execute(sa.select(events).order_by(events.c.event_id)).mappings():
                if _digest(previous, dict(row)) != row["digest"]:
                    raise DamagedError(
                        f"ledger event {row['event_id']} of request {row['request_id']} was altered, or one before it "
                        "deleted, after it was written; restore the catalogue from a copy"
                    )
                opened = row["detail"].get("request") if row["state"] == State.REQUESTED else None
                if opened is not None and unopened.pop(row["request_id"], None) != opened:
                    raise _altered(row["request_id"])
                previous, count = row["digest"], count + 1
        if unopened:
            raise _altered(next(iter(unopened)))
        return count


def evidence_digest(evidence: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the evidence as canonical JSON.

    Raises:
        UsageError: it cannot be written as JSON: it holds NaN, infinity or an object of some class.
    """
    return hashlib.sha256(_canonical(_as_json(evidence))).hexdigest()


def _altered(request_id: str) -> DamagedError:
    return DamagedError(
        f"ledger request {request_id} was altered after it was written; restore the catalogue from a copy"
    )


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return `value` as the database will return it: lists for tuples, text for keys. Digests are of this form."""
    try:
        read: dict[str, Any] = json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise UsageError(f"a ledger entry must be JSON, without NaN or infinity: {error}") from error
    return read


def _check_text(row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        for text in value if isinstance(value, list) else [value]:
            if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
                raise UsageError(f"{name} {text!r}: expected UTF-8 text without NUL characters")


def _append(
    connection: sa.Connection,
    request_id: str,
    state: State,
    detail: Mapping[str, Any],
    model_after: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> str | None:
    if connection.execute(sa.select(requests.c.request_id).where(requests.c.request_id == request_id)).first() is None:
        raise NotFoundError(f"no request {request_id!r}; `nulls ledger` lists them")
    previous = connection.execute(sa.select(events.c.digest).order_by(events.c.event_id.desc()).limit(1)).scalar() or ""
    digest = evidence_digest(evidence) if evidence is not None else None
    row: dict[str, Any] = {
        "request_id": request_id,
        "at": now(),
        "state": state.value,
        "model_after": model_after,
        "detail": _as_json(dict(detail) | ({"evidence": dict(evidence)} if evidence is not None else {})),
        "evidence_digest": digest,
    }
    connection.execute(sa.insert(events).values(**row, digest=_digest(previous, row)))
    return digest


def _current(row: dict[str, Any], trail: list[Mapping[str, Any]]) -> Request:
    if not trail:
        raise _altered(row["request_id"])

    def last(name: str) -> Any:
        return next((entry[name] for entry in reversed(trail) if entry[name] is not None), None)

    detail: dict[str, Any] = {}
    for entry in trail[1:]:
        detail |= entry["detail"]
    row["sources"] = tuple(row["sources"])
    return Request(
        **row,
        state=State(trail[-1]["state"]),
        model_after=last("model_after"),
        evidence_digest=last("evidence_digest"),
        detail=detail,
        updated_at=trail[-1]["at"],
    )


def _digest(previous: str, row: Mapping[str, Any]) -> str:
    fields = ("request_id", "at", "state", "model_after", "detail", "evidence_digest")
    return hashlib.sha256(previous.encode() + _canonical({name: row[name] for name in fields})).hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
