"""Refuse the sinks of revoked sources in a model's own forward, before anything is computed.

The served model asks more (held-out sources, sources that were never trained) and says more. This is what is left when
somebody loads the weights with transformers: a forward or `generate` with the id of a revoked source is an error. Where
nothing is revoked there is no object of this class and no cost.

Run: ``Refusals.of(carried, layout).check(source_ids_BT)``. Cost: one `unique` over the batch's ids, 0.1 ms.

Shapes: B rows, T tokens, N refused sources.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from registry import ids
from registry.errors import RefusedError
from training.model.carried import NO_MASK, Carried
from training.sinks.layout import KEYED, NO_SOURCE, SinkLayout
from training.sinks.mask_ids import sinks_class


@dataclasses.dataclass(frozen=True)
class Refusals:
    """The ids that a model refuses.

    Attributes:
        classes_N: int64: source ids, or in an imported model the bits of mask ids that decide the sinks.
        scheme: how sinks are drawn from an id.
    """

    classes_N: npt.NDArray[np.int64]
    scheme: str

    @classmethod
    def of(cls, carried: Carried | None, layout: SinkLayout) -> Refusals | None:
        """Return what a model with these facts refuses; None if that is nothing."""
        if carried is None or not carried.revoked:
            return None
        if layout.scheme == KEYED:
            return cls(np.array(carried.revoked, dtype=np.int64), KEYED)
        masks_N = np.array([mask for mask in carried.masks or () if mask != NO_MASK], dtype=np.int64)
        if not len(masks_N):
            return None
        # An id of class 0 switches on every sink of the pool, the refused ones too.
        return cls(np.append(sinks_class(masks_N, layout.scheme), 0), layout.scheme)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def check(self, source_ids: Tensor) -> None:
        """Check the ids of a batch, of any shape; NO_SOURCE is always right.

        Raises:
            RefusedError: one is that of a revoked source.
        """
        asked_N = torch.unique(source_ids).cpu().numpy()
        asked_N = asked_N[asked_N != NO_SOURCE]
        classes_N = asked_N if self.scheme == KEYED else sinks_class(asked_N, self.scheme)
        refused_N = asked_N[np.isin(classes_N, self.classes_N)]
        if not len(refused_N):
            return
        if self.scheme == KEYED:
            names = ", ".join(ids.format_id(source_id) for source_id in refused_N.tolist())
            raise RefusedError(f"source {names} is unlearned in these weights: its sinks stay off")
        raise RefusedError(
            f"the sinks of mask id {', '.join(map(str, refused_N.tolist()))} are those of a source that is unlearned "
            "in these weights: they stay off"
        )
