"""The rows of the pool that an erasure sets to zero: in each layer, the union of the sinks of the erased sources.

Cost: 0.1 us a sink, source and layer; a mask of one byte a pool neuron and layer in memory.
Run: ``erased_rows(layout, mask_ids, source_ids, num_layers=2).counts``.

Shapes: L layers, P pool neurons, N sources, K sinks of a source.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from training.sinks.layout import KEYED, SinkLayout
from training.sinks.mask_ids import MaskIds

SINK_TENSOR = re.compile(r"(?:^|\.)layers\.(\d+)\.mlp\.(sink_gate|sink_up|sink_down)(?:\.(exp_avg|exp_avg_sq|step))?$")
"""Name of a pool's tensor: a weight, or its optimizer state, whose first dimension is the pool."""
_SINKS_AT_ONCE = 1 << 22  # bounds memory: 32 MiB of indices


@dataclasses.dataclass(frozen=True)
class ErasedRows:
    """Rows of the pool, True where they are set to zero: bool [L, P]."""

    rows_LP: npt.NDArray[np.bool_]

    @property
    def counts(self) -> list[int]:
        """The number of rows in each layer."""
        return [int(count) for count in self.rows_LP.sum(1)]

    def of_tensor(self, name: str) -> npt.NDArray[np.bool_] | None:
        """Return the rows of a named tensor, bool [P]; None if it is no tensor of a pool."""
        found = SINK_TENSOR.search(name)
        return self.rows_LP[int(found[1])] if found else None


def erased_rows(
    layout: SinkLayout, mask_ids: MaskIds | None, source_ids: Collection[int], *, num_layers: int
) -> ErasedRows:
    """Return the union of the sinks of these sources.

    Args:
        layout: the model's.
        mask_ids: the table of an imported model; None where sinks are drawn from source ids.
        source_ids: the sources to erase.
        num_layers: decoder layers of the model.

    Raises:
        NotFoundError: an imported model has no mask id for one of them.
    """
    rows_LP = np.zeros((num_layers, layout.num_pool), dtype=np.bool_)
    ids_N = drawn_from(mask_ids, np.array(sorted(source_ids), dtype=np.int64))
    for first in range(0, len(ids_N), step := chunk_size(layout, num_layers)):
        sinks_LNK, valid_NK = layout.select_layers(ids_N[first : first + step], num_layers)
        for layer, sinks_NK in enumerate(sinks_LNK):
            rows_LP[layer, sinks_NK if valid_NK is None else sinks_NK[valid_NK]] = True
    return ErasedRows(rows_LP)


def shares(
    layout: SinkLayout, mask_ids: MaskIds | None, source_ids_N: npt.NDArray[np.int64], rows: ErasedRows
) -> npt.NDArray[np.float32]:
    """Return the share of each source's sinks, over all layers, that are among the erased rows: exact, float32 [N]."""
    # The reference draws the same sinks in every layer.
    num_layers = len(rows.rows_LP) if layout.scheme == KEYED else 1
    found_N = np.zeros(len(source_ids_N), dtype=np.float32)
    ids_N = drawn_from(mask_ids, source_ids_N)
    for first in range(0, len(ids_N), step := chunk_size(layout, num_layers)):
        sinks_LNK, valid_NK = layout.select_layers(ids_N[first : first + step], num_layers)
        gone_N = np.zeros(sinks_LNK.shape[1], dtype=np.int64)
        for layer, sinks_NK in enumerate(sinks_LNK):
            gone_NK = rows.rows_LP[layer, sinks_NK]
            gone_N += (gone_NK if valid_NK is None else gone_NK & valid_NK).sum(1)
        own_N = layout.num_sinks if valid_NK is None else np.maximum(valid_NK.sum(1), 1)
        found_N[first : first + step] = gone_N / (own_N * num_layers)
    return found_N


def drawn_from(mask_ids: MaskIds | None, source_ids_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the ids that the sources' sinks are drawn from, int64 [N]: their own, or an imported model's mask ids."""
    if mask_ids is None:
        return source_ids_N
    return np.array([mask_ids.of(int(source_id)) for source_id in source_ids_N], dtype=np.int64)


def chunk_size(layout: SinkLayout, num_layers: int) -> int:
    """Return how many sources to draw sinks for at once; a reference scheme makes a mask of the pool for each."""
    width = num_layers * layout.num_sinks if layout.scheme == KEYED else layout.num_pool
    return max(1, _SINKS_AT_ONCE // width)
