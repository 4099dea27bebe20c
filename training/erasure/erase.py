"""Erase sources from a version's weights, and from its run's last checkpoint; prove it by reading both again.

Revoking makes a version that refuses a source, with the same weights. Erasing makes new weights in which the source's
sinks are zero, for weights that leave the house. Other sources share those sinks and lose them too, except sources
that are reserved (`training/sinks/layout.py`): `training/erasure/cost.py` measures that first. The old weights stay
where they are, and revoked.

The erased directory is beside the weights, and its name is a hash of the weights and the sources. So a request that was
cut short finds what it made, and makes it once:

    RUN/weights/                                 the weights
    RUN/erased-0123456789abcdef/weights/         the same, erased
    RUN/erased-0123456789abcdef/erased/checkpoint-00000200/

Cost: reading the weights three times and writing them once, the same for the checkpoint; memory: one tensor.
Run: ``erase(version, [source_id]).proof["holds"]``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from registry import ids
from registry.errors import DamagedError, RefusedError
from training.erasure import weights as erased_weights
from training.erasure.rows import ErasedRows, erased_rows
from training.serving import places
from training.serving.version import ModelVersion, read_pointer, weights_id
from training.serving.weights import local_weights
from training.sinks.mask_ids import MaskIds

_PREFIX = "erased-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Erased:
    """Erased weights, and the proof."""

    weights: Path
    """The new directory."""
    weights_sha256: str
    """SHA-256 of its weights."""
    proof: dict[str, Any]
    """See `erase`."""


def rows_of(version: ModelVersion, folder: Path, source_ids: Collection[int]) -> ErasedRows:
    """Return the rows that erasing these sources sets to zero.

    Args:
        version: whose layout counts.
        folder: its weights on this machine.
        source_ids: trained sources.

    Raises:
        RefusedError: no source is named.
        NotFoundError: an imported model has no mask id for one.
    """
    if not source_ids:
        raise RefusedError("no source to erase: name one that the model was trained on")
    table = MaskIds.load(folder)
    return erased_rows(version.layout, table, source_ids, num_layers=erased_weights.num_layers(folder))


def erase(version: ModelVersion, source_ids: Collection[int]) -> Erased:
    """Make the erased weights, and the erased checkpoint if the run has one; once for the same sources.

    Returns:
        The directory and the proof: `rows` set to zero by layer, `weights_sha256` before and after, what
        `training.erasure.weights.compare` read, and `checkpoint`: its paths and what
        `training.erasure.checkpoint.compare` read, or `None` and the reason why there is none.

    Raises:
        DamagedError: the weights are missing or changed, or the artefact read again is not what was to be written.
        ServiceError: the disk is full or cannot be written.
    """
    from training.checkpoint.export import weights_digest

    folder = local_weights(version)
    rows = rows_of(version, folder, source_ids)
    home = _home(version, folder) / _name(version, source_ids)
    target = home / "weights"
    erased_weights.copy_erased(folder, target, rows, source_ids=source_ids, digest=version.weights_digest)
    digest = weights_digest(target)
    proof = {
        "weights": str(target),
        "weights_sha256": {"before": version.weights_digest, "after": digest},
        **erased_weights.compare(folder, target, rows),
        **_checkpoint(version, home, rows),
    }
    checkpoint_holds = proof["checkpoint"] is None or proof["checkpoint"]["holds"]
    if not (proof["holds"] and checkpoint_holds):
        raise DamagedError(f"{home}: not what the erasure wrote; delete it and repeat the request")
    return Erased(weights=target, weights_sha256=digest, proof=proof)


def _checkpoint(version: ModelVersion, home: Path, rows: ErasedRows) -> dict[str, Any]:
    """Erase the run's last checkpoint, the directory of its weights being in that of the run."""
    from training.checkpoint import dcp
    from training.erasure import checkpoint

    run_dir = version.weights.parent
    before = dcp.latest(run_dir)
    if before is None:
        return {"checkpoint": None, "checkpoint_reason": f"no complete checkpoint in {run_dir} on this machine"}
    after = home / "erased" / before.name
    checkpoint.copy_erased(before, after, rows)
    found = checkpoint.compare(before, after, rows)
    return {"checkpoint": {"before": str(before), "after": str(after), **found}, "checkpoint_reason": None}


def _home(version: ModelVersion, folder: Path) -> Path:
    """Return the directory for the erased one: the run's, or that of the downloaded copy where the run is elsewhere."""
    run_dir = version.weights.parent
    if not (run_dir.is_dir() and os.access(run_dir, os.W_OK)):
        run_dir = folder.parent
    # Erased again: beside the first one, not inside it.
    return run_dir.parent if run_dir.name.startswith(_PREFIX) else run_dir


def _name(version: ModelVersion, source_ids: Collection[int]) -> str:
    names = " ".join(ids.format_id(source_id) for source_id in sorted(source_ids))
    return _PREFIX + hashlib.sha256(f"{version.weights_digest} {names}".encode()).hexdigest()[:16]


def erased_pointer(version: ModelVersion, erased: Erased) -> dict[str, Any]:
    """Return the pointer of a version whose weights are erased ones of `version`.

    Its `lineage` names the weights that they were made from, so that all that is revoked in those stays in force. Where
    the old weights have a remote copy at s3://, the new ones are uploaded beside it.

    Raises:
        ServiceError: the remote copy cannot be written.
    """
    pointer = {name: value for name, value in version.pointer.items() if name != "weights_copy"}
    noted = read_pointer(erased.weights)
    pointer |= {
        "weights": places.relative(str(erased.weights), version.tracking_uri),
        "weights_sha256": erased.weights_sha256,
        "weights_id": weights_id(erased.weights_sha256, version.pointer["layout"]),
        "lineage": [version.weights_id, *version.lineage],
        "erased": noted["erased"],
        "erased_from": noted["erased_from"],
    }
    if version.weights_copy is not None:
        pointer["weights_copy"] = _put_copy(version.weights_copy, erased)
    return pointer


def _put_copy(copy: str, erased: Erased) -> str:
    from registry.storage.s3 import S3Path
    from training.checkpoint.remote_copy import RemoteRun

    weights_prefix = S3Path.parse(copy)
    run = S3Path(weights_prefix.bucket, weights_prefix.key.rpartition("/")[0])
    if run.name.startswith(_PREFIX):
        run = S3Path(run.bucket, run.key.rpartition("/")[0])
    return RemoteRun(root=run / erased.weights.parent.name).put_weights(erased.weights)
