"""Erased weights: a copy of a directory of weights in which the erased rows are zero and all else is the same.

A safetensors file is copied byte by byte and zeros are written over the erased rows, so its header and every other
tensor stay as they were, whatever their types. Of the other files two change: `nulls.json` says what was erased
(`erased`, `erased_from`), and the routing index loses the words of the erased sources. The directory is published
whole. The proof reads both directories again.

Cost: the weights are read and written once, and for the proof read once each; memory: one tensor, for the proof.
Run: ``copy_erased(folder, target, rows, source_ids=[7], digest="ab...")``, ``compare(folder, target, rows)``.

Shapes: P pool neurons, D model width.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from registry import ids
from registry.errors import DamagedError
from registry.storage import new_directory, sha256_of, write_atomic
from training.erasure.rows import SINK_TENSOR, ErasedRows
from training.serving.router import Router
from training.serving.version import POINTER, ROUTER_FILE, read_pointer

_PIECE_BYTES = 16 << 20


def num_layers(folder: Path) -> int:
    """Return the number of layers that have a pool in a directory of weights.

    Raises:
        DamagedError: there is none.
    """
    found = [int(match[1]) for path in _tensor_files(folder) for name in _header(path)[0] if (match := _pool(name))]
    if not found:
        raise DamagedError(f"{folder}: no sinks in its *.safetensors; restore it from a copy")
    return 1 + max(found)


def copy_erased(folder: Path, target: Path, rows: ErasedRows, *, source_ids: Collection[int], digest: str) -> None:
    """Write the erased copy of `folder` to `target`; do nothing if it is there.

    Args:
        folder: a directory of weights.
        target: a path that depends on the weights and the sources, so that what is there was made from the same.
        rows: the rows to set to zero.
        source_ids: the erased sources, for `nulls.json`.
        digest: SHA-256 of the weights in `folder`.

    Raises:
        DamagedError: a pool has another number of rows than the layout.
        ServiceError: the disk is full or cannot be written.
    """
    if target.is_dir():
        return
    with new_directory(target, keep=Path.is_dir) as staging:
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            if path.name == POINTER:
                content = json.dumps(_noted(read_pointer(folder), source_ids, digest), indent=1)
                write_atomic(staging / POINTER, content.encode())
            elif path.name == ROUTER_FILE:
                Router.load(path).without_words_of(source_ids).save(staging / ROUTER_FILE)
            else:
                shutil.copyfile(path, staging / path.name)
        for path in _tensor_files(staging):
            _zero(path, rows)


def _noted(pointer: dict[str, Any], source_ids: Collection[int], digest: str) -> dict[str, Any]:
    before = {int(text, 16) for text in pointer.get("erased", ())}
    erased = [ids.format_id(source_id) for source_id in sorted(before.union(source_ids))]
    return pointer | {"erased": erased, "erased_from": digest}


def compare(before: Path, after: Path, rows: ErasedRows) -> dict[str, Any]:
    """Read both directories and return what the erasure did, for JSON.

    Returns:
        `layers`: for each layer the rows expected to be zero, how many are (in all three matrices), and how many were
        before; `untouched_sha256` of all other rows, tensors and files but `nulls.json` and the routing index, which
        must be equal; `holds`: whether all this is so.
    """
    zero_before, digest_before = _read(before, rows)
    zero_after, digest_after = _read(after, rows)
    layers = [
        {"layer": layer, "rows_expected": expected, "rows_zero": now, "rows_zero_before": then}
        for layer, (expected, now, then) in enumerate(zip(rows.counts, zero_after, zero_before, strict=True))
    ]
    return {
        "layers": layers,
        "untouched_sha256": {"before": digest_before, "after": digest_after},
        "holds": zero_after == rows.counts and digest_before == digest_after,
    }


def _read(folder: Path, rows: ErasedRows) -> tuple[list[int], str]:
    """Return for each layer the number of erased rows that are zero, and the digest of all that is not erased."""
    digest = hashlib.sha256()
    zero_LP = rows.rows_LP.copy()
    tensor_files = set(_tensor_files(folder))
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path in tensor_files:
            for name, data_PB in _tensors(path):
                digest.update(f"{path.name}:{name}".encode())
                erased_P = rows.of_tensor(name)
                if erased_P is None:
                    _add(digest, data_PB)
                    continue
                _add(digest, data_PB[~erased_P])
                index = np.flatnonzero(erased_P)
                layer = int(_pool(name)[1])
                zero_LP[layer, index] &= ~data_PB[index].any(1)
        elif path.name not in (POINTER, ROUTER_FILE):
            digest.update(f"{path.name}:{sha256_of(path)}".encode())
    return [int(count) for count in zero_LP.sum(1)], digest.hexdigest()


def _add(digest: Any, data: npt.NDArray[np.uint8]) -> None:
    flat = data.reshape(-1)
    for first in range(0, len(flat), _PIECE_BYTES):
        digest.update(np.ascontiguousarray(flat[first : first + _PIECE_BYTES]))


def _zero(path: Path, rows: ErasedRows) -> None:
    """Write zeros over the erased rows of the pools in a safetensors file."""
    header, start = _header(path)
    with path.open("r+b") as file:
        for name, entry in sorted(header.items()):
            erased_P = rows.of_tensor(name)
            if erased_P is None:
                continue
            num_rows, row_bytes = _shape(path, name, entry, len(erased_P))
            for first, last in _runs(erased_P[:num_rows]):
                file.seek(start + entry["data_offsets"][0] + first * row_bytes)
                file.write(bytes((last - first) * row_bytes))


def _runs(mask_P: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield [first, last) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask_P.astype(np.int8), [0]])))
    yield from ((int(first), int(last)) for first, last in edges.reshape(-1, 2))


def _shape(path: Path, name: str, entry: dict[str, Any], num_pool: int) -> tuple[int, int]:
    """Return the rows of a pool, and the bytes of one."""
    if entry["shape"][0] != num_pool:
        raise DamagedError(
            f"{path}: {name} has {entry['shape'][0]} rows, the layout {num_pool}; restore it from a copy"
        )
    first, last = entry["data_offsets"]
    return num_pool, (last - first) // num_pool


def _tensors(path: Path) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Yield each tensor of a file by name, mapped as bytes: [rows, bytes of a row]."""
    header, start = _header(path)
    for name, entry in sorted(header.items()):
        first, last = entry["data_offsets"]
        num_rows = entry["shape"][0] if _pool(name) else 1
        shape = (num_rows, (last - first) // num_rows)
        if math.prod(shape):
            yield name, np.memmap(path, np.uint8, "r", offset=start + first, shape=shape)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the tensors that a safetensors file describes, and where their data start.

    Raises:
        DamagedError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: cannot be read as safetensors ({error}); restore it from a copy") from error
    header.pop("__metadata__", None)
    return header, 8 + size


def _pool(name: str) -> Any:
    return SINK_TENSOR.search(name)


def _tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))
