"""The chain of digests of the ledger's events, and the canonical JSON that digests are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from registry.errors import DamagedError, UsageError

_FIELDS = ("request_id", "at", "state", "model_after", "detail", "evidence_digest")


def digest_of(previous: str, row: Mapping[str, Any]) -> str:
    """Return the digest of an event: of its fields, and of the digest of the event before it ("" for the first)."""
    return hashlib.sha256(previous.encode() + canonical({name: row[name] for name in _FIELDS})).hexdigest()


def check_event(previous: str, row: Mapping[str, Any]) -> None:
    """Compare an event with its digest.

    Raises:
        DamagedError: it was altered, or the event before it was.
    """
    stated = (row["detail"].get("revocations") or {}).get("weights_id")
    if digest_of(previous, row) != row["digest"] or stated != row["weights_id"]:
        raise DamagedError(
            f"ledger event {row['event_id']} of request {row['request_id']} was altered, or one before it "
            "deleted, after it was written; restore the catalogue from a copy"
        )


def altered(request_id: str) -> DamagedError:
    """Return the error that says that a request was altered."""
    return DamagedError(
        f"ledger request {request_id} was altered after it was written; restore the catalogue from a copy"
    )


def evidence_digest(evidence: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the evidence as canonical JSON.

    Raises:
        UsageError: it cannot be written as JSON: it holds NaN, infinity or an object of some class.
    """
    return hashlib.sha256(canonical(as_json(evidence))).hexdigest()


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return `value` as the database will return it: lists for tuples, text for keys. Digests are of this form.

    Raises:
        UsageError: it cannot be written as JSON.
    """
    try:
        read: dict[str, Any] = json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:
        raise UsageError(f"a ledger entry must be JSON, without NaN or infinity: {error}") from error
    return read


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return JSON with sorted keys and without spaces, in UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
