"""Measure isolation while it forms: every few steps, the loss of a few fixed sources with sinks on and off.

The rows are the same each time: the first `context_length` targets of each probed source. Trained sources are measured
under their own sinks (on), without sinks (off, backbone) and under the sinks of the next probed source (off, placebo);
held-out sources without sinks and under a trained source's. Ranks share the rows and add up their losses. All ranks
make the same number of forward passes, since under FSDP all of them take part in each.

Cost: five forward passes over `watch_sources` rows; at the defaults (8, every 100 steps of 16 rows), 1 % of the run.

Run: ``IsolationProbe(cache, heldout, seed=0, num_sources=8, context_length=512).measure(loss, device, micro_batch=4)``.

Shapes: W rows of one group, B rows of one pass, T context_length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from registry.ids import SourceId
from training.data.packing import IGNORED, PADDING, keyed
from training.data.token_cache import TokenCache
from training.evaluate.statistics import closure
from training.sinks.layout import NO_SOURCE

MIN_TARGETS = 32
"""A source with fewer targets is not probed: its loss is mostly noise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """The rows of one measurement, with the sources whose sinks are on. Tensors are int64 [W, T]."""

    input_ids: Tensor
    labels: Tensor
    document_ids: Tensor
    source_ids: Tensor


class IsolationProbe:
    """The probed sources of a run, and the rows that measure them.

    Args:
        cache: the tokenised snapshot.
        heldout: sources that are never trained.
        seed: the run's; the choice depends on it and on the sources only.
        num_sources: trained sources to probe, and as many held-out ones, where there are so many.
        context_length: T.
    """

    def __init__(
        self, cache: TokenCache, heldout: Collection[int], *, seed: int, num_sources: int, context_length: int
    ) -> None:
        self.trained, self.heldout = choose(cache, heldout, seed=seed, num_sources=num_sources)
        """Source ids."""
        self.groups: dict[str, Group] = {}
        if len(self.trained) > 1:
            other = dict(zip(self.trained, [*self.trained[1:], self.trained[0]], strict=True))
            rows = _rows(cache, self.trained, context_length)
            self.groups["on"] = _group(rows, self.trained)
            self.groups["off_backbone"] = _group(rows, [NO_SOURCE] * len(self.trained))
            self.groups["off_placebo"] = _group(rows, [other[source] for source in self.trained])
        if self.groups and self.heldout:
            rows = _rows(cache, self.heldout, context_length)
            stand_ins = [self.trained[index % len(self.trained)] for index in range(len(self.heldout))]
            self.groups["unseen_backbone"] = _group(rows, [NO_SOURCE] * len(self.heldout))
            self.groups["unseen_placebo"] = _group(rows, stand_ins)

    @torch.no_grad()
    def measure(self, loss: nn.Module, device: torch.device, *, micro_batch: int) -> dict[str, float]:
        """Return mean losses in nats a token, and closures. All ranks must call it; all get the same numbers.

        Args:
            loss: takes (input_ids, labels, document_ids, source_ids), int64 [B, T] each, and returns the summed loss.
            device: the device of `loss`.
            micro_batch: the largest B.
        """
        found = {name: _mean_loss(loss, group, device, micro_batch) for name, group in self.groups.items()}
        for state in ("backbone", "placebo"):
            if f"unseen_{state}" in found:
                value = closure(on=found["on"], off=found[f"off_{state}"], never=found[f"unseen_{state}"])
                found |= {f"closure_{state}": value} if value is not None else {}
        return found


def choose(
    cache: TokenCache, heldout: Collection[int], *, seed: int, num_sources: int
) -> tuple[list[SourceId], list[SourceId]]:
    """Return the sources to probe, trained and held out; pure: by a keyed hash, among those with `MIN_TARGETS`."""
    sources, index = np.unique(cache.source_id, return_inverse=True)
    sizes = np.bincount(index, weights=cache.length - 1)
    known = sources[sizes >= MIN_TARGETS]
    known = known[np.argsort(keyed(known, "watch", seed, 0))]
    is_heldout = np.isin(known, np.fromiter(heldout, dtype=np.int64))
    return known[~is_heldout][:num_sources].tolist(), known[is_heldout][:num_sources].tolist()


def _rows(cache: TokenCache, sources: Sequence[int], context_length: int) -> dict[str, Tensor]:
    """Return one row for each source: its first documents, as far as they fit."""
    shape = (len(sources), context_length)
    rows = {
        "input_ids": torch.full(shape, cache.end_of_text),
        "labels": torch.full(shape, IGNORED),
        "document_ids": torch.full(shape, PADDING),
    }
    for row, source in enumerate(sources):
        filled = 0
        for document, index in enumerate(np.flatnonzero(cache.source_id == source)):
            tokens = torch.from_numpy(cache.document(int(index)))[: context_length - filled + 1]
            end = filled + len(tokens) - 1
            rows["input_ids"][row, filled:end] = tokens[:-1]
            rows["labels"][row, filled:end] = tokens[1:]
            rows["document_ids"][row, filled:end] = document
            filled = end
            if filled == context_length:
                break
    return rows


def _group(rows: dict[str, Tensor], sinks: Sequence[int]) -> Group:
    sinks_WT = torch.tensor(sinks)[:, None].expand_as(rows["labels"])
    return Group(**rows, source_ids=sinks_WT.masked_fill(rows["document_ids"] == PADDING, NO_SOURCE))


def _mean_loss(loss: nn.Module, group: Group, device: torch.device, micro_batch: int) -> float:
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    num_rows = len(group.labels)
    per_rank = -(-num_rows // world_size)
    rows = torch.arange(rank * per_rank, (rank + 1) * per_rank)
    for part in torch.split(rows, micro_batch):
        # A rank past the end repeats the last row and counts nothing, so that all ranks make as many passes.
        taken = part.clamp(max=num_rows - 1)
        labels = group.labels[taken].masked_fill((part >= num_rows)[:, None], IGNORED)
        inputs = (group.input_ids[taken], labels, group.document_ids[taken], group.source_ids[taken])
        total[0] += loss(*(tensor.to(device) for tensor in inputs)).double()
        total[1] += (labels != IGNORED).sum()
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total[0] / total[1])
