"""Revocations by weights, and the open requests by what they ask for; both are filled from the ledger."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("events", sa.Column("weights_id", sa.String(64)))
    op.create_index("ix_events_weights_id", "events", ["weights_id"])
    op.create_table(
        "revocations",
        sa.Column("weights_id", sa.String(300), primary_key=True),
        sa.Column("source_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("event_id", sa.Integer, nullable=False),
    )
    op.create_table(
        "weights",
        sa.Column("weights_id", sa.String(64), primary_key=True),
        sa.Column("tensors", sa.String(64), nullable=False),
    )
    op.create_index("ix_weights_tensors", "weights", ["tensors"])
    op.create_table(
        "open_requests",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("request_id", sa.String(32), nullable=False, unique=True),
    )
    _fill(op.get_bind())


def _fill(connection: sa.Connection) -> None:
    """Enter what earlier releases recorded: they named sources by key, and the model by its name alone."""
    requests = sa.table(
        "requests",
        *(sa.column(name) for name in ("request_id", "action", "policy", "model_name", "model_before")),
        sa.column("sources", sa.JSON),
    )
    events = sa.table(
        "events",
        *(sa.column(name) for name in ("event_id", "request_id", "state", "evidence_digest")),
        sa.column("detail", sa.JSON),
    )
    trail: dict[str, list[Any]] = {}
    for event in connection.execute(sa.select(events).order_by(events.c.event_id)):
        trail.setdefault(event.request_id, []).append(event)
    taken: set[tuple[str, int]] = set()
    opened: dict[str, str] = {}
    for request in connection.execute(sa.select(requests)):
        history = trail.get(request.request_id, [])
        states = {event.state for event in history}
        if states & {"applied", "verified"}:
            keys = set(request.sources)
            for event in history:
                keys |= set((event.detail.get("plan") or {}).get("also_removed", ()))
            taken |= {(f"name:{request.model_name}", _source_id(key)) for key in keys}
        if not states & {"verified", "failed", "refused"} and not any(event.evidence_digest for event in history):
            opened[_fingerprint(request)] = request.request_id
    rows = [{"weights_id": scope, "source_id": i, "state": "revoked", "event_id": 0} for scope, i in sorted(taken)]
    table = sa.table("revocations", *(sa.column(name) for name in ("weights_id", "source_id", "state", "event_id")))
    if rows:
        connection.execute(sa.insert(table), rows)
    names = [{"fingerprint": key, "request_id": value} for key, value in opened.items()]
    if names:
        connection.execute(
            sa.insert(sa.table("open_requests", sa.column("fingerprint"), sa.column("request_id"))), names
        )


def _source_id(key: str) -> int:
    """Return the id of a key, as `registry.ids.source_id` does; a migration does not change with it."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"nulls.src.v1").digest()
    return int.from_bytes(digest, "big") >> 1


def _fingerprint(request: Any) -> str:
    wanted = [request.action, request.policy, request.model_before, sorted(request.sources)]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()


def downgrade() -> None:
    for table in ("open_requests", "weights", "revocations"):
        op.drop_table(table)
    op.drop_index("ix_events_weights_id", "events")
    op.drop_column("events", "weights_id")
