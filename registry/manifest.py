"""A snapshot's manifest: what is in it, the id that follows from it, and whether it is whole.

The id is the SHA-256 over the files' hashes, the inputs' names and hashes, and the configuration. `facts_sha256` is
over all of it, so that what is no part of the id (counts, wikis) cannot change unseen either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from registry import schema
from registry.errors import DamagedError
from registry.storage import Location

MANIFEST = "manifest.json"
_REQUIRED = ("snapshot", "schema_version", "configuration", "inputs", "files")
_ID_FIELDS = ("schema_version", "id_scheme", "configuration", "inputs", "files", "parent", "removed")


def manifest_id(manifest: Mapping[str, Any]) -> str:
    """The snapshot id that follows from a manifest: 64 hex digits."""
    shaped = {name: manifest.get(name) for name in _ID_FIELDS}
    shaped["files"] = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    shaped["inputs"] = sorted((entry["name"], entry["sha256"]) for entry in manifest["inputs"])
    return _digest(shaped)


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with its id and its digest, as it will be read: tuples and numbers as keys are gone."""
    whole: dict[str, Any] = json.loads(json.dumps(manifest))
    whole["snapshot"] = manifest_id(whole)
    whole["facts_sha256"] = _facts_digest(whole)
    return whole


def read_manifest(path: Location, snapshot_id: str) -> dict[str, Any]:
    """The manifest of a snapshot, checked as far as one small file can be.

    Raises:
        DamagedError: it cannot be read, is of another snapshot, or of another release's schema.
    """
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        version, *_ = (manifest[name] for name in ("schema_version", *_REQUIRED))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: not a manifest ({error}); restore it from a copy") from error
    if version != schema.SCHEMA_VERSION:
        raise DamagedError(
            f"snapshot {snapshot_id[:12]} has schema version {version}, this release reads {schema.SCHEMA_VERSION}"
        )
    if manifest["snapshot"] != snapshot_id:
        raise DamagedError(f"{path}: is of snapshot {manifest['snapshot']!r}; restore it from a copy")
    return manifest


def manifest_faults(manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with a manifest that was read; empty if nothing is."""
    if manifest_id(manifest) != manifest["snapshot"]:
        return ["its id does not follow from it"]
    if _facts_digest(manifest) != manifest.get("facts_sha256"):
        return ["content differs"]
    return []


def is_manifest_of(data: bytes, snapshot_id: str) -> bool:
    """Whether `data` is the whole manifest of a snapshot."""
    try:
        manifest = json.loads(data)
        return bool(manifest["snapshot"] == snapshot_id and not manifest_faults(manifest))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _facts_digest(manifest: Mapping[str, Any]) -> str:
    return _digest({name: value for name, value in manifest.items() if name != "facts_sha256"})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
