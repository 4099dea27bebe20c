"""A model version as its pointer describes it: weights, snapshot, sink layout, held-out and revoked sources.

The pointer is the small file `nulls.json`. Training writes it beside the weights; every registered version has its own
copy, with the digest of the weights and the sources that were revoked when it was made. What is revoked *now* is more
than the pointer knows: `training.serving.in_force`. Reading a pointer loads no weights and imports no torch.

Run: ``read_pointer(folder)["snapshot"]``. Cost: one JSON file of a few kilobytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from registry.ids import SourceId
from training.serving import places
from training.sinks.layout import KEYED, SinkLayout
from training.sinks.mask_ids import MaskIds

POINTER = "nulls.json"
EXPORTED = "exported"
"""The key of `nulls.json` that only an exported folder has: what it was exported from, and when."""
DIGEST = "digest"
"""The key of an exported folder's `nulls.json` with the digest of all others (`pointer_digest`)."""
ROUTER_FILE = "router.npz"
"""The routing index, in the directory of the weights."""


def read_pointer(folder: Path) -> dict[str, Any]:
    """Return the pointer in `folder`.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is not JSON.
    """
    pointer: dict[str, Any] = json.loads((folder / POINTER).read_text())
    return pointer


def has_weights(folder: Path) -> bool:
    """Return whether a directory holds weights."""
    return any(folder.glob("*.safetensors"))


def weights_id(tensors: str, layout: Mapping[str, Any]) -> str:
    """Return the id of weights that revocations belong to: 64 hex digits.

    Args:
        tensors: SHA-256 of the weight files, mask ids included (`weights_digest`).
        layout: `SinkLayout.to_dict()`. Another seed or scheme gives other sources the same rows, and is another model.
    """
    return hashlib.sha256(_canonical({"tensors": tensors, "layout": dict(layout)})).hexdigest()


def weights_digest(directory: Path) -> str:
    """Return the SHA-256, as hex digits, over the `*.safetensors` of a directory in name order."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def pointer_digest(pointer: Mapping[str, Any]) -> str:
    """Return the digest of a pointer that its version's tag `nulls.pointer` holds: 32 hex digits of SHA-256."""
    return hashlib.sha256(_canonical(pointer)).hexdigest()[:32]


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A model version, without its weights: its pointer, and its entries in MLflow."""

    uri: str
    """`models:/NAME/VERSION`; for a folder that MLflow's pyfunc loads, its path."""
    name: str
    version: int
    run_id: str | None
    """MLflow's id of the training run."""
    request_id: str | None
    """The unlearn request that made this version; None for a version that training or an import made."""
    experiment_id: str
    tracking_uri: str
    pointer: dict[str, Any]
    """The content of `nulls.json`."""
    folder: Path | None = None
    """The directory that the pointer was read from, where the store is not known."""

    @property
    def bases(self) -> list[Path]:
        """The folders that paths of the pointer may be under, the likeliest first."""
        store = places.folder_of(self.tracking_uri)
        return ([store] if store else []) + (list(self.folder.absolute().parents) if self.folder else [])

    @property
    def snapshot(self) -> str:
        """The id of the snapshot it was trained on."""
        return str(self.pointer["snapshot"])

    @property
    def registry(self) -> str:
        """The URI of the snapshot's registry: where it is now, if it moved with the store; else as at training.

        Empty in an exported folder, which names none.
        """
        recorded = str(self.pointer.get("registry", ""))
        if not recorded:
            return recorded
        at = places.find(recorded, self.bases, lambda path: (path / "snapshots" / self.snapshot).is_dir())
        if at is None and places.local_path(recorded) is not None:
            return os.environ.get("NULLS_REGISTRY") or recorded
        return recorded if at is None else str(at)

    @property
    def weights(self) -> Path:
        """The directory of its weights where the store is now; if they are nowhere, where they should be."""
        recorded = str(self.pointer["weights"])
        elsewhere = os.environ.get(places.WEIGHTS)
        given = [Path(elsewhere).absolute()] if elsewhere else []
        found = places.find(recorded, [*self.bases, *given], has_weights)
        if found is None and given and has_weights(given[0]):
            found = given[0]
        return found or (self.bases[0] / recorded if self.bases else Path(recorded))

    @property
    def weights_copy(self) -> str | None:
        """The s3:// prefix of the remote copy of its weights; None if the run kept none."""
        return self.pointer.get("weights_copy")

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weight files."""
        return str(self.pointer["weights_sha256"])

    @property
    def weights_id(self) -> str:
        """The id of the weights: versions with the same id have the same revocations."""
        return weights_id(self.weights_digest, self.pointer["layout"])

    @property
    def lineage(self) -> tuple[str, ...]:
        """The ids of the weights that these were made from (by erasing or fine-tuning), the nearest first."""
        return tuple(self.pointer.get("lineage", ()))

    @property
    def layout(self) -> SinkLayout:
        """The layout that its sinks are drawn from."""
        return SinkLayout.from_dict(self.pointer["layout"])

    @property
    def heldout(self) -> frozenset[SourceId]:
        """The sources that were never trained on."""
        return frozenset(SourceId(int(text, 16)) for text in self.pointer["heldout"])

    @property
    def revoked(self) -> frozenset[SourceId]:
        """The sources that were revoked when this version was made; more may be by now."""
        return frozenset(SourceId(int(text, 16)) for text in self.pointer["revoked"])

    @property
    def erased(self) -> frozenset[SourceId]:
        """The sources whose sinks are zero in these weights: they never answer again, whatever is reinstated."""
        return frozenset(SourceId(int(text, 16)) for text in self.pointer.get("erased", ()))

    def same_sinks(self, source_ids: Collection[int]) -> frozenset[SourceId]:
        """Return the other sources that cannot be used without the sinks of one of these.

        Only an imported model has any: its scheme can give several sources the same sinks.
        """
        if self.layout.scheme == KEYED or not source_ids:
            return frozenset()
        table = MaskIds.load(self.weights)
        return frozenset(table.covering(source_ids, self.layout.scheme).tolist() if table else ())
