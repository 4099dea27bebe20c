"""A staged snapshot -> its place in a registry at s3://, where no rename can publish a directory.

    every file, compared after it is stored -> manifest.json, on condition -> newest, on condition

What has no manifest is no snapshot, so the manifest is the commit, and S3 lets one writer alone create it. Ids are
hashes of content: whoever comes second finds the snapshot that it was about to make, stored whole. A writer that is
killed leaves files which the next run finds, compares and does not send again. Cost: one HEAD a file beside what is
sent, and five small requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from registry.errors import ServiceError
from registry.storage.s3 import S3Path

_NUM_UPLOADS = 4  # at once; each holds a part of 16 MiB in memory
_MAX_RACES = 8  # rounds that are lost to others before giving up


def publish(
    root: S3Path,
    snapshot_id: str,
    *,
    staging: Path,
    manifest: str,
    is_sound: Callable[[bytes], bool],
    check_newest: Callable[[bytes | None], None],
) -> None:
    """Stores a staged snapshot in the registry at `root`, and makes it the newest.

    Args:
        root: the registry.
        snapshot_id: of the snapshot.
        staging: its files and its manifest.
        manifest: the name of the manifest among them.
        is_sound: tells whether a manifest that is there already is that of this snapshot; a damaged one is replaced.
        check_newest: raises if what `newest` holds may not be replaced; asked before anything is sent, and again at
            the replacement, when the snapshot is there already.

    Raises:
        ServiceError: something cannot be stored. What was stays, for the next attempt.
    """
    found = (root / "newest").fetch()
    check_newest(found and found[0])
    target, data = root / "snapshots" / snapshot_id, (staging / manifest).read_bytes()
    files = json.loads(data)["files"]
    _upload(staging, target, files)

    def create(there: bytes | None) -> bytes | None:
        if there is not None and is_sound(there):
            return None
        _check_conditions(staging, target, files)
        return data

    _swap(target / manifest, create)

    def point(there: bytes | None) -> bytes:
        check_newest(there)
        return snapshot_id.encode()

    _swap(root / "newest", point)


def _upload(staging: Path, target: S3Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Stores what is not there already; what was stored before an error stays, for the next attempt."""
    from concurrent.futures import ThreadPoolExecutor  # 10 ms that a lookup does not need

    def send(name: str) -> None:
        (target / name).upload(staging / name, files[name]["sha256"])

    pool = ThreadPoolExecutor(_NUM_UPLOADS)
    try:
        for done in [pool.submit(send, name) for name in files]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _check_conditions(staging: Path, target: S3Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Finds out, with the smallest file that is stored already, whether the store keeps to If-None-Match.

    Raises:
        ServiceError: it does not, as older stores do silently: two writers could both win.
    """
    name = min(files, key=lambda name: int(files[name]["bytes"]), default=None)
    if name is not None and not (target / name).keeps((staging / name).read_bytes()):
        raise ServiceError(f"{target}: this store ignores If-None-Match, without which no commit is safe; use another")


def _swap(place: S3Path, decide: Callable[[bytes | None], bytes | None]) -> None:
    """Replaces an object by compare-and-swap.

    Args:
        place: the object.
        decide: from what is there (None: nothing) to what is to be there, or None to leave it; may raise. It is asked
            again when another writer came between.

    Raises:
        ServiceError: it cannot be stored, or others keep coming between.
    """
    for _ in range(_MAX_RACES):
        found = place.fetch()
        data = decide(found and found[0])
        if data is None or place.replace(data, found and found[1]):
            return
    raise ServiceError(f"{place}: others write it all the time; run the same command again")
