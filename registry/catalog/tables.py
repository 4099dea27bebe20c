"""The tables of the catalogue. Only alembic migrations create and change them; a test compares the two."""

from __future__ import annotations

import datetime

import sqlalchemy as sa

HEAD_REVISION = "0002"  # the newest migration; a test compares it with the scripts

metadata = sa.MetaData()

snapshots = sa.Table(
    "snapshots",
    metadata,
    sa.Column("snapshot_id", sa.String(64), primary_key=True),
    sa.Column("registry", sa.Text, nullable=False),
    sa.Column("parent", sa.String(64)),
    sa.Column("created_at", sa.String(32), nullable=False),
)

models = sa.Table(
    "models",
    metadata,
    sa.Column("model_uri", sa.String(512), primary_key=True),
    sa.Column("snapshot_id", sa.String(64), nullable=False),
    sa.Column("weights", sa.Text, nullable=False),
    sa.Column("run_id", sa.String(64)),
    sa.Column("created_at", sa.String(32), nullable=False),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("request_id", sa.String(32), primary_key=True),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("requested_by", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("policy", sa.String(16), nullable=False),
    sa.Column("model_name", sa.String(256), nullable=False),
    sa.Column("model_before", sa.String(512), nullable=False),
    sa.Column("sources", sa.JSON, nullable=False),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("event_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("request_id", sa.String(32), sa.ForeignKey("requests.request_id"), nullable=False, index=True),
    sa.Column("at", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("model_after", sa.String(512)),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("evidence_digest", sa.String(64)),
    sa.Column("digest", sa.String(64), nullable=False),
    # The weights whose revocations the event changes, as its detail says; a column so that the last one is found.
    sa.Column("weights_id", sa.String(64), index=True),
)

revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("weights_id", sa.String(300), primary_key=True),
    sa.Column("source_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("event_id", sa.Integer, nullable=False),
)

weights = sa.Table(
    "weights",
    metadata,
    sa.Column("weights_id", sa.String(64), primary_key=True),
    sa.Column("tensors", sa.String(64), nullable=False, index=True),
)

open_requests = sa.Table(
    "open_requests",
    metadata,
    sa.Column("fingerprint", sa.String(64), primary_key=True),
    sa.Column("request_id", sa.String(32), nullable=False, unique=True),
)


def now() -> str:
    """Return the current time in UTC: ISO 8601, to the millisecond."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
