"""Erased checkpoint: a copy of a run's checkpoint whose weights and optimizer state are zero in the erased rows.

Moments and step counts of a row tell of the sources that trained it, and training on from them would write it back. So
in the copy the rows are zero in the weights, in `exp_avg` and `exp_avg_sq`, and their `step` counts are 0: to the
optimizer they are rows that never trained. All else is the same, entry by entry.

A file of torch's distributed format is a sequence of entries, each what `torch.save` wrote; `.metadata` says where each
is, and of a sharded pool at which row it begins. Entries of other tensors are copied as they are.

Cost: the checkpoint is read and written once, and for the proof read once each; memory: one entry.
Run: ``copy_erased(dcp.latest(run_dir), target, rows)``, ``compare(before, after, rows)``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from registry.errors import DamagedError
from registry.storage import new_directory, write_marker
from training.checkpoint import dcp
from training.erasure.rows import ErasedRows

_METADATA = ".metadata"


def copy_erased(directory: Path, target: Path, rows: ErasedRows) -> None:
    """Write the erased copy of a complete checkpoint to `target`; do nothing if it is there.

    Raises:
        DamagedError: the checkpoint cannot be read.
        ServiceError: the disk is full or cannot be written.
    """
    if dcp.is_complete(target):
        return
    metadata = _metadata(directory)
    placed = dict(metadata.storage_data)
    with new_directory(target, keep=dcp.is_complete) as staging:
        for path in sorted(directory.iterdir()):
            entries = [index for index, info in placed.items() if info.relative_path == path.name]
            if entries:
                placed |= _copy_file(path, staging / path.name, {index: placed[index] for index in entries}, rows)
            elif path.name not in (_METADATA, dcp.COMPLETE):
                shutil.copyfile(path, staging / path.name)
        content = dataclasses.replace(metadata, storage_data=placed)
        (staging / _METADATA).write_bytes(pickle.dumps(content))
        write_marker(staging, dcp.COMPLETE)


def _copy_file(
    path: Path, target: Path, placed: dict[MetadataIndex, Any], rows: ErasedRows
) -> dict[MetadataIndex, Any]:
    """Copy the entries of a file in their order, erased; return where each is now."""
    moved = {}
    with path.open("rb") as source, target.open("wb") as out:
        for index, info in sorted(placed.items(), key=lambda item: item[1].offset):
            source.seek(info.offset)
            data = source.read(info.length)
            erased = _erased(index, data, rows)
            moved[index] = dataclasses.replace(info, offset=out.tell(), length=len(erased))
            out.write(erased)
    return moved


def _erased(index: MetadataIndex, data: bytes, rows: ErasedRows) -> bytes:
    tensor, mine = _pool_entry(index, data, rows)
    if tensor is None or not mine.any():
        return data
    tensor[torch.from_numpy(mine)] = 0
    out = io.BytesIO()
    torch.save(tensor, out)
    return out.getvalue()


def _pool_entry(index: MetadataIndex, data: bytes, rows: ErasedRows) -> tuple[torch.Tensor | None, Any]:
    """Return an entry's tensor and its erased rows, bool [its rows]; None where it is no tensor of a pool."""
    erased_P = rows.of_tensor(index.fqn)
    if erased_P is None:
        return None, None
    tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    first = int(index.offset[0]) if index.offset else 0
    mine = erased_P[first : first + len(tensor)]
    if len(mine) != len(tensor):
        raise DamagedError(f"checkpoint: {index.fqn} has rows to {first + len(tensor)}, the layout {len(erased_P)}")
    return tensor, np.ascontiguousarray(mine)


def compare(before: Path, after: Path, rows: ErasedRows) -> dict[str, Any]:
    """Read both checkpoints and return what the erasure did, for JSON.

    Returns:
        `values_left`: by kind of tensor (`weights`, `exp_avg`, `exp_avg_sq`, `step`) the erased rows with a value that
        is not zero, before and after, over layers and matrices; `untouched_sha256` of all else; `holds`.
    """
    left_before, digest_before = _read(before, rows)
    left_after, digest_after = _read(after, rows)
    return {
        "values_left": {kind: {"before": n, "after": left_after[kind]} for kind, n in left_before.items()},
        "untouched_sha256": {"before": digest_before, "after": digest_after},
        "holds": not any(left_after.values()) and digest_before == digest_after,
    }


def _read(directory: Path, rows: ErasedRows) -> tuple[dict[str, int], str]:
    left = dict.fromkeys(("weights", "exp_avg", "exp_avg_sq", "step"), 0)
    digest = hashlib.sha256((directory / "state.json").read_bytes())
    for index, data in _entries(directory):
        digest.update(f"{index.fqn}:{tuple(index.offset or ())}".encode())
        tensor, mine = _pool_entry(index, data, rows)
        if tensor is None:
            digest.update(data)
            continue
        values = tensor.reshape(len(tensor), -1)
        digest.update(values[torch.from_numpy(~mine)].contiguous().view(torch.uint8).numpy().tobytes())
        kind = index.fqn.rpartition(".")[2]
        left[kind if kind in left else "weights"] += int((values[torch.from_numpy(mine)] != 0).any(1).sum())
    return left, digest.hexdigest()


def _entries(directory: Path) -> Iterator[tuple[MetadataIndex, bytes]]:
    placed = _metadata(directory).storage_data
    for index in sorted(placed, key=lambda one: (one.fqn, tuple(one.offset or ()))):
        info = placed[index]
        with (directory / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            yield index, file.read(info.length)


def _metadata(directory: Path) -> Metadata:
    try:
        metadata: Metadata = FileSystemReader(directory).read_metadata()
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise DamagedError(f"checkpoint {directory}: cannot be read: {error}; delete it") from error
    return metadata
