"""Publish a staged snapshot in a registry at s3://, where no rename can publish a directory.

1. Store every file, and compare it afterwards. 2. Create manifest.json on condition that it is absent.
3. Replace `newest` on condition that it is unchanged.

A prefix without a manifest is not a snapshot, so the manifest is the commit, and S3 lets only one writer create it. Ids
are hashes of content: a second writer finds the same snapshot, complete. A writer that is killed leaves files, which
the next run finds, compares and does not send again. Cost: the upload, one HEAD for each file, five small requests.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from registry.errors import ServiceError
from registry.storage.s3 import S3Path

_NUM_UPLOADS = 4  # concurrent; each holds a part of 16 MiB in memory
_MAX_RACES = 8  # attempts that lose to another writer before giving up


def publish(
    root: S3Path,
    snapshot_id: str,
    *,
    staging: Path,
    manifest: str,
    is_sound: Callable[[bytes], bool],
    check_newest: Callable[[bytes | None], None],
) -> None:
    """Store a staged snapshot in the registry at `root`, and make it the newest.

    Args:
        root: the registry.
        snapshot_id: the id of the snapshot.
        staging: a directory with its files and its manifest.
        manifest: the file name of the manifest.
        is_sound: returns whether an existing manifest is that of this snapshot, undamaged; else it is replaced.
        check_newest: raises if the content of `newest` may not be replaced; called before anything is sent, and again
            at the replacement, when the snapshot is stored already.

    Raises:
        ServiceError: a file cannot be stored. Stored files stay, for the next attempt.
    """
    found = (root / "newest").fetch()
    check_newest(found and found[0])
    target, data = root / "snapshots" / snapshot_id, (staging / manifest).read_bytes()
    files = json.loads(data)["files"]
    _upload(staging, target, files)

    def create(stored: bytes | None) -> bytes | None:
        if stored is not None and is_sound(stored):
            return None
        _check_conditions(staging, target, files)
        return data

    _swap(target / manifest, create)

    def point(stored: bytes | None) -> bytes:
        check_newest(stored)
        return snapshot_id.encode()

    _swap(root / "newest", point)


def _upload(staging: Path, target: S3Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Store the files that are not stored yet; after an error, stored files stay, for the next attempt."""
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
    """Check that the store honours If-None-Match, with the smallest file that is stored already.

    Raises:
        ServiceError: it ignores the condition, as older stores do silently: two writers could both win.
    """
    name = min(files, key=lambda name: int(files[name]["bytes"]), default=None)
    if name is not None and not (target / name).keeps((staging / name).read_bytes()):
        raise ServiceError(f"{target}: this store ignores If-None-Match, without which no commit is safe; use another")


def _swap(path: S3Path, decide: Callable[[bytes | None], bytes | None]) -> None:
    """Replace an object by compare-and-swap.

    Args:
        path: the object.
        decide: returns the new content, given the present content (None: there is none), or None to leave it; may
            raise. It is called again if another writer was faster.

    Raises:
        ServiceError: it cannot be stored, or other writers were faster every time.
    """
    for _ in range(_MAX_RACES):
        found = path.fetch()
        data = decide(found and found[0])
        if data is None or path.replace(data, found and found[1]):
            return
    raise ServiceError(f"{path}: other writers changed it {_MAX_RACES} times meanwhile; run the same command again")
