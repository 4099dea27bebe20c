"""The unlearn ledger: append-only SQL of who asked for what, why, and what came of it.

A request is one row that never changes; its history is a row an event. The database itself refuses UPDATE and DELETE
on both (triggers, see the migration), and each event carries the SHA-256 of its content and of the event before it, so
a row that was altered behind the triggers shows in `verify`. The current state of a request is its last event's.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from registry.catalog import Catalog, events, now, requests
from registry.errors import DamagedError, NotFoundError


class State(enum.StrEnum):
    """Where a request stands."""

    REQUESTED = "requested"  # written down, nothing done
    PLANNED = "planned"  # what it will do is known and recorded
    APPLIED = "applied"  # the new model version exists; the evidence is not in yet, or is weak
    VERIFIED = "verified"  # the evidence supports it
    FAILED = "failed"  # given up with an error; nothing was changed
    REFUSED = "refused"  # not carried out, for a stated reason

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more can come."""
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
        """For JSON."""
        return {**dataclasses.asdict(self), "sources": list(self.sources), "state": self.state.value}


class Ledger:
    """The requests in a catalogue."""

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
        """Writes a new request down, and returns its id (16 hex digits)."""
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
    ) -> str | None:
        """Adds an event; returns the digest of `evidence`, if given (it is kept in the event's detail)."""
        with self.catalog.exclusive("ledger") as connection:
            return _append(connection, request_id, state, detail or {}, model_after, evidence)

    def request(self, request_id: str) -> Request:
        """One request.

        Raises:
            NotFoundError: there is none of that id.
        """
        found = [request for request in self.requests() if request.request_id == request_id]
        if not found:
            raise NotFoundError(f"no request {request_id!r}; `nulls ledger` lists them")
        return found[0]

    def requests(self) -> list[Request]:
        """All requests with their current state, the oldest first."""
        with self.catalog.read() as connection:
            rows = connection.execute(sa.select(requests).order_by(requests.c.created_at)).mappings().all()
            history = connection.execute(sa.select(events).order_by(events.c.event_id)).mappings().all()
        trail: dict[str, list[Mapping[str, Any]]] = {}
        for entry in history:
            trail.setdefault(entry["request_id"], []).append(dict(entry))
        return [_current(dict(row), trail[row["request_id"]]) for row in rows]

    def history(self, request_id: str) -> list[dict[str, Any]]:
        """The events of a request, the oldest first."""
        query = sa.select(events).where(events.c.request_id == request_id).order_by(events.c.event_id)
        with self.catalog.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def verify(self) -> int:
        """Recomputes the chain of digests; returns the number of events.

        Raises:
            DamagedError: naming the first event whose digest does not follow.
        """
        previous, count = "", 0
        with self.catalog.read() as connection:
            for row in connection.execute(sa.select(events).order_by(events.c.event_id)).mappings():
                if _digest(previous, dict(row)) != row["digest"]:
                    raise DamagedError(
                        f"ledger event {row['event_id']} of request {row['request_id']} was altered after it was written"
                    )
                previous, count = row["digest"], count + 1
        return count


def evidence_digest(evidence: Mapping[str, Any]) -> str:
    """SHA-256 over the canonical JSON of the evidence."""
    return hashlib.sha256(_canonical(evidence)).hexdigest()


def _append(
    connection: sa.Connection,
    request_id: str,
    state: State,
    detail: Mapping[str, Any],
    model_after: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> str | None:
    previous = connection.execute(sa.select(events.c.digest).order_by(events.c.event_id.desc()).limit(1)).scalar() or ""
    row: dict[str, Any] = {
        "request_id": request_id,
        "at": now(),
        "state": state.value,
        "model_after": model_after,
        "detail": dict(detail) | ({"evidence": dict(evidence)} if evidence is not None else {}),
        "evidence_digest": evidence_digest(evidence) if evidence is not None else None,
    }
    connection.execute(sa.insert(events).values(**row, digest=_digest(previous, row)))
    return row["evidence_digest"]


def _current(row: dict[str, Any], trail: list[Mapping[str, Any]]) -> Request:
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
