"""Which id a source had when an imported model was trained: beside the weights, and covered by their digest.

Sinks are a function of an id. For a model trained here that is the source's own; a released checkpoint of the
reference numbered its sources itself (index in title_to_index, plus the vocabulary), so a model imported from one
carries this table, and whoever switches sinks on asks it (`training.serving.served_model`). Under `reference-int32` about 98 of 6.4
million sources have the same sinks; to unlearn one of them is to refuse those sinks, whoever asks for them.

Cost: 16 bytes a source (103 MB for 6.4 million, read in 0.1 s); finding who shares sinks takes 0.05 s for as many.
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
from training.sinks.layout import REFERENCE_BITS

MASK_IDS_FILE = "mask-ids.safetensors"
_SHIFT = 16  # the reference multiplies an id by 2**16 in its scheme's width: so many high bits are lost


@dataclasses.dataclass(frozen=True)
class MaskIds:
    """Source id -> the id that its sinks are drawn from.

    Attributes:
        source_ids_N: int64, ascending.
        mask_ids_N: int64.

    Raises:
        UsageError: the two are not int64 [N], or source ids not ascending and distinct.
    """

    source_ids_N: npt.NDArray[np.int64]
    mask_ids_N: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = {(array.dtype.name, array.ndim, len(array)) for array in (self.source_ids_N, self.mask_ids_N)}
        if shapes != {("int64", 1, len(self.source_ids_N))}:
            raise UsageError(f"mask ids: got {shapes}, expected two arrays int64 [N]")
        if (np.diff(self.source_ids_N) <= 0).any():
            raise UsageError("mask ids: source ids must ascend, each once")

    def of(self, source_id: int) -> int:
        """The id that the sinks of a source are drawn from.

        Raises:
            NotFoundError: the model was not trained on it.
        """
        place = int(np.searchsorted(self.source_ids_N, source_id))
        if place == len(self.source_ids_N) or int(self.source_ids_N[place]) != source_id:
            raise NotFoundError(f"source {ids.format_id(source_id)} has no number in this model: it was not trained")
        return int(self.mask_ids_N[place])

    def sources_of(self, mask_ids_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The sources that have these numbers, each of which one has: int64 [N], the inverse of `of`."""
        order_N = np.argsort(self.mask_ids_N)
        places_N = np.searchsorted(self.mask_ids_N, mask_ids_N, sorter=order_N)
        sources_N: npt.NDArray[np.int64] = self.source_ids_N[order_N[places_N]]
        return sources_N

    def num_distinct(self, scheme: str) -> int:
        """How many different sets of sinks the sources have."""
        return len(np.unique(self._classes(scheme)))

    def covering(self, source_ids: Collection[int], scheme: str) -> npt.NDArray[np.int64]:
        """The other sources whose sinks hold all of those of one of these: int64, ascending.

        They are those with the same sinks, and those for whom the reference switches on every sink.
        """
        chosen_N = np.isin(self.source_ids_N, np.fromiter(source_ids, np.int64, len(source_ids)))
        if not chosen_N.any():
            return self.source_ids_N[:0]
        class_N = self._classes(scheme)
        covering_N = np.isin(class_N, class_N[chosen_N]) | (class_N == 0)
        others_N: npt.NDArray[np.int64] = self.source_ids_N[covering_N & ~chosen_N]
        return others_N

    def _classes(self, scheme: str) -> npt.NDArray[np.int64]:
        """What is left of the ids: equal where sinks are, 0 where every sink is on."""
        return self.mask_ids_N & ((1 << (REFERENCE_BITS[scheme] - _SHIFT)) - 1)

    def save(self, folder: Path) -> None:
        """Writes the table into a directory of weights."""
        from safetensors.numpy import save_file

        save_file({"source_ids": self.source_ids_N, "mask_ids": self.mask_ids_N}, folder / MASK_IDS_FILE)

    @classmethod
    def load(cls, folder: Path) -> MaskIds | None:
        """The table of a directory of weights; None where sources keep their own ids.

        Raises:
            DamagedError: it is there and cannot be read.
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
