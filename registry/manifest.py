"""A snapshot's manifest: its fields, the snapshot id computed from them, and the check that it is unchanged.

The id is the SHA-256 of the files' hashes, the inputs' names and hashes, and the configuration. `facts_sha256` covers
the whole manifest, so that a change to a field that is not part of the id (counts, wikis) is found too.
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
    """Compute the snapshot id of a manifest: 64 hex digits."""
    shaped = {name: manifest.get(name) for name in _ID_FIELDS}
    shaped["files"] = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    shaped["inputs"] = sorted((entry["name"], entry["sha256"]) for entry in manifest["inputs"])
    return _digest(shaped)


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with its id and digest, in the form that JSON gives back: lists for tuples, text for keys."""
    whole: dict[str, Any] = json.loads(json.dumps(manifest))
    whole["snapshot"] = manifest_id(whole)
    whole["facts_sha256"] = _facts_digest(whole)
    return whole


def read_manifest(path: Location, snapshot_id: str) -> dict[str, Any]:
    """Read the manifest of a snapshot, and check its fields, schema version and snapshot id.

    Raises:
        DamagedError: it cannot be read, belongs to another snapshot, or has another schema version.
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
        raise DamagedError(f"{path}: belongs to snapshot {manifest['snapshot']!r}; restore it from a copy")
    return manifest


def manifest_faults(manifest: Mapping[str, Any]) -> list[str]:
    """Return the faults of a manifest that was read, as messages; empty if there are none."""
    if manifest_id(manifest) != manifest["snapshot"]:
        return ["its id does not match its content"]
    if _facts_digest(manifest) != manifest.get("facts_sha256"):
        return ["content differs"]
    return []


def is_manifest_of(data: bytes, snapshot_id: str) -> bool:
    """Return whether `data` is the complete manifest of a snapshot."""
    try:
        manifest = json.loads(data)
        return bool(manifest["snapshot"] == snapshot_id and not manifest_faults(manifest))
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _facts_digest(manifest: Mapping[str, Any]) -> str:
    return _digest({name: value for name, value in manifest.items() if name != "facts_sha256"})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
