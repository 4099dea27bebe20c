"""Source and document ids: pure functions of canonical keys, which need no counter, no lock and no central table.

An id is the first 8 bytes of a personalised BLAKE2b, big-endian, shifted right by one: a non-negative int64 that fits
Parquet, SQL, NumPy and torch alike. At 10^8 sources the chance of any collision is about 5e-4 (n^2 / 2^64); a snapshot
checks for it and refuses. Cost: about 1 microsecond an id.

These functions are frozen: golden vectors in `tests/registry/test_ids.py` hold them. Change one and every stored
snapshot, mask and ledger entry becomes meaningless.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NewType

from registry.errors import UsageError

SourceId = NewType("SourceId", int)
"""A source: the hash of its key, a non-negative int64."""
DocId = NewType("DocId", int)
"""A document: the hash of its source's key and its locator, a non-negative int64."""
MaskId = NewType("MaskId", int)
"""The seed of a source's sink mask: its `SourceId`, or its index in an imported model."""

ID_SCHEME = "blake2b-63-v1"
_HEX_ID = re.compile(r"[0-7][0-9a-f]{15}")


def _hash63(person: bytes, data: bytes) -> int:
    digest = hashlib.blake2b(data, digest_size=8, person=person).digest()
    return int.from_bytes(digest, "big") >> 1


def source_id(key: str) -> SourceId:
    """Return the id of the source with canonical `key` (see `registry.identity`)."""
    return SourceId(_hash63(b"nulls.src.v1", key.encode()))


def doc_id(key: str, locator: str) -> DocId:
    """Return the id of a document, from its source's key and its locator: a canonical URL, or the key again."""
    return DocId(_hash63(b"nulls.doc.v1", f"{key}\n{locator}".encode()))


def alias_hash(folded_alias: str) -> int:
    """Return the sort key of an alias that `registry.identity.fold_title` has folded: a non-negative int64."""
    return _hash63(b"nulls.als.v1", folded_alias.encode("utf-8", "surrogatepass"))


def shared_key(owner_ids: Iterable[int]) -> str:
    """Return the key of text that several sources published: `shared:` and 16 hex digits, a hash of the owners' ids.

    Raises:
        UsageError: fewer than two distinct owners.
    """
    owners = sorted(set(owner_ids))
    if len(owners) < 2:
        raise UsageError(f"a shared source needs at least two owners, got {len(owners)}")
    packed = b"".join(owner.to_bytes(8, "big") for owner in owners)
    return "shared:" + hashlib.blake2b(packed, digest_size=8, person=b"nulls.own.v1").hexdigest()


def format_id(value: int) -> str:
    """Return an id as people see it: 16 hex digits."""
    return f"{value:016x}"


def parse_id(text: str) -> int | None:
    """Return the id (of a source or a document) written as 16 hex digits in `text`, or None if there is none."""
    return int(text, 16) if _HEX_ID.fullmatch(text.strip().lower()) else None
