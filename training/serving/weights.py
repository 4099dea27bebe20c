"""The weights of a model version on this machine: the folder that was exported, or a copy downloaded from s3://.

A version refers to its weights by the path that they were exported to. A run with remote copies
(`training.checkpoint.remote_copy`) keeps one of the weights too, and the pointer names both. So a machine that does
not see that path, or has lost it, can still load, audit and serve the version. Downloads are kept in this machine's
cache (`registry.storage.work_directory`: NULLS_WORK, else the user's). Every load compares the digest, wherever the
files came from.

Run: ``folder = local_weights(version)``. Cost: reading the weights once; without the path, a download first.
"""

from __future__ import annotations

from pathlib import Path

from registry.errors import DamagedError
from registry.storage import copy_verified, new_directory, work_directory
from registry.storage.s3 import S3Path
from training.serving.version import ModelVersion, weights_digest


def local_weights(version: ModelVersion) -> Path:
    """Return the directory of a version's weights, after comparing their digest with the registered one.

    Raises:
        DamagedError: there are no weights at either path, or they are not those that were registered.
        ServiceError: the copy cannot be downloaded, or the cache cannot be written.
    """
    folder = version.weights
    copy = version.weights_copy
    if not _is_there(folder):
        if copy is None:
            raise DamagedError(f"{version.uri}: its weights are gone from {folder}; restore them, or train again")
        folder = _downloaded(S3Path.parse(copy), version)
    if weights_digest(folder) != version.weights_digest:
        at = f" at {copy}" if copy and folder == version.weights else ""
        raise DamagedError(f"{version.uri}: {folder} is not what was registered; restore it from a copy{at}")
    return folder


def _is_there(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _downloaded(copy: S3Path, version: ModelVersion) -> Path:
    """Return the copy's folder in this machine's cache; download it, whole or not at all, if it is not there."""
    folder = work_directory(copy) / f"weights-{version.weights_digest[:16]}"
    if _is_there(folder):
        return folder
    names = [path.key.removeprefix(f"{copy.key}/") for path, _ in copy.walk()]
    if not names:
        raise DamagedError(f"{version.uri}: its weights are gone, from {version.weights} and from {copy}; train again")
    with new_directory(folder, keep=_is_there) as staging:
        for name in names:
            copy_verified(copy / name, staging / name)
    return folder
