"""Mask ids: the ids from which an imported model draws its sources' sinks, stored beside its weights.

Sinks are a function of an id. In a model trained here it is the source id. A released checkpoint of the reference
numbered its sources itself (index in title_to_index, plus the vocabulary), so a model imported from one has this table,
which is covered by the weights' digest and read wherever sinks are switched on (`training.serving.served_model`). Under
`reference-int32` about 98 of 6.4 million sources have the same sinks; unlearning one refuses those sinks to all.

Cost: 16 bytes a source (103 MB for 6.4 million, read in 0.1 s); finding sources with equal sinks takes 0.05 s.
Imports no torch. Run: ``MaskIds.load(weights_dir).of(source_id)``.

Shapes: N sources.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from registry import ids
from registry.errors import DamagedError, NotFoundError, UsageError
from registry.ids import MaskId
from training.sinks.layout import REFERENCE_BITS

MASK_IDS_FILE = "mask-ids.safetensors"
_SHIFT = 16  # the reference multiplies an id by 2**16 in its scheme's width, which loses as many high bits


def sinks_class(mask_ids_N: npt.NDArray[np.int64], scheme: str) -> npt.NDArray[np.int64]:
    """Return the low bits that decide the sinks: equal where sinks are equal, 0 where every sink is on. int64 [N]."""
    return mask_ids_N & ((1 << (REFERENCE_BITS[scheme] - _SHIFT)) - 1)


@dataclasses.dataclass(frozen=True)
class MaskIds:
    """Table from source ids to mask ids, the ids that sinks are drawn from.

    Attributes:
        source_ids_N: int64, ascending.
        mask_ids_N: int64.

    Raises:
        UsageError: the two are not int64 [N], or the source ids not ascending and distinct.
    """

    source_ids_N: npt.NDArray[np.int64]
    mask_ids_N: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = {(array.dtype.name, array.ndim, len(array)) for array in (self.source_ids_N, self.mask_ids_N)}
        if shapes != {("int64", 1, len(self.source_ids_N))}:
            raise UsageError(f"mask ids: got {shapes}, expected two arrays of int64 [N]")
        if (np.diff(self.source_ids_N) <= 0).any():
            raise UsageError("mask ids: source ids must ascend, each once")

    def of(self, source_id: int) -> MaskId:
        """Return the id that the sinks of a source are drawn from.

        Raises:
            NotFoundError: the model was not trained on it.
        """
        index = int(np.searchsorted(self.source_ids_N, source_id))
        if index == len(self.source_ids_N) or int(self.source_ids_N[index]) != source_id:
            raise NotFoundError(f"source {ids.format_id(source_id)} has no mask id in this model: it was not trained")
        return MaskId(int(self.mask_ids_N[index]))

    def of_sources(self, source_ids: Collection[int]) -> dict[int, MaskId]:
        """Map those of the sources that the model was trained on to their mask ids."""
        wanted_N = np.fromiter(source_ids, np.int64, len(source_ids))
        found_N = np.isin(self.source_ids_N, wanted_N)
        pairs = zip(self.source_ids_N[found_N].tolist(), self.mask_ids_N[found_N].tolist(), strict=True)
        return {source_id: MaskId(mask_id) for source_id, mask_id in pairs}

    def sources_of(self, mask_ids_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the sources that have these mask ids, all of which must be in the table: int64 [N]."""
        order_N = np.argsort(self.mask_ids_N)
        indices_N = np.searchsorted(self.mask_ids_N, mask_ids_N, sorter=order_N)
        sources_N: npt.NDArray[np.int64] = self.source_ids_N[order_N[indices_N]]
        return sources_N

    def num_distinct(self, scheme: str) -> int:
        """Return the number of different sets of sinks that the sources have."""
        return len(np.unique(self._classes(scheme)))

    def covering(self, source_ids: Collection[int], scheme: str) -> npt.NDArray[np.int64]:
        """Return the other sources whose sinks include all sinks of one of these: int64, ascending.

        They are the sources with the same sinks, and those for which the reference switches on every sink.
        """
        chosen_N = np.isin(self.source_ids_N, np.fromiter(source_ids, np.int64, len(source_ids)))
        if not chosen_N.any():
            return self.source_ids_N[:0]
        class_N = self._classes(scheme)
        covering_N = np.isin(class_N, class_N[chosen_N]) | (class_N == 0)
        others_N: npt.NDArray[np.int64] = self.source_ids_N[covering_N & ~chosen_N]
        return others_N

    def _classes(self, scheme: str) -> npt.NDArray[np.int64]:
        return sinks_class(self.mask_ids_N, scheme)

    def save(self, folder: Path) -> None:
        """Write the table into a directory of weights."""
        from safetensors.numpy import save_file

        save_file({"source_ids": self.source_ids_N, "mask_ids": self.mask_ids_N}, folder / MASK_IDS_FILE)

    @classmethod
    def load(cls, folder: Path) -> MaskIds | None:
        """Read the table of a directory of weights; None if it has none, so that mask ids are source ids.

        Raises:
            DamagedError: the file cannot be read.
        """
        path = folder / MASK_IDS_FILE
        if not path.is_file():
            return None
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            content = load_file(path)
            return cls(content["source_ids"], content["mask_ids"])
        except (SafetensorError, KeyError, UsageError) as error:
            raise DamagedError(f"{path}: cannot be read ({error}); restore it from a copy, or import again") from error
