"""Isolation as it forms: every few steps, the loss of a few fixed sources on, off and held out.

The same rows each time: the first `context_length` predictions of each watched source. Trained sources are measured
under their own sinks (on), with none (off, backbone) and under the sinks of the next watched one (off, placebo);
held-out sources with none and under a trained source's. Ranks share the rows and add up; all make the same number of
forward passes, since under FSDP each pass is one of all ranks.

Cost: five forward passes over `watch_sources` rows; at the defaults (8, every 100 steps of 16 rows), 1 % of the run.

Shapes: W watched rows of one group, B rows of one pass, T context_length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.data.packing import IGNORED, PADDING, keyed
from training.data.token_cache import TokenCache
from training.evaluate.statistics import closure
from training.sinks.layout import NO_SOURCE

MIN_PREDICTIONS = 32
"""A source with fewer tells little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are measured together, under given sinks. Tensors are int64 [W, T]."""

    input_ids: Tensor
    labels: Tensor
    document_ids: Tensor
    source_ids: Tensor


class Watch:
    """The watched sources of a run.

    Args:
        cache: the tokenised snapshot.
        heldout: sources never trained.
        seed: of the choice, which depends on nothing else but the sources.
        num_sources: trained ones, and as many held-out ones, where there are so many.
        context_length: T.
    """

    def __init__(
        self, cache: TokenCache, heldout: Collection[int], *, seed: int, num_sources: int, context_length: int
    ) -> None:
        self.trained, self.unseen = choose(cache, heldout, seed=seed, num_sources=num_sources)
        """Source ids."""
        self.groups: dict[str, Group] = {}
        if len(self.trained) > 1:
            other = dict(zip(self.trained, [*self.trained[1:], self.trained[0]], strict=True))
            rows = _rows(cache, self.trained, context_length)
            self.groups["on"] = _group(rows, self.trained)
            self.groups["off_backbone"] = _group(rows, [NO_SOURCE] * len(self.trained))
            self.groups["off_placebo"] = _group(rows, [other[source] for source in self.trained])
        if self.groups and self.unseen:
            rows = _rows(cache, self.unseen, context_length)
            stand_ins = [self.trained[place % len(self.trained)] for place in range(len(self.unseen))]
            self.groups["unseen_backbone"] = _group(rows, [NO_SOURCE] * len(self.unseen))
            self.groups["unseen_placebo"] = _group(rows, stand_ins)

    @torch.no_grad()
    def measure(self, loss: nn.Module, device: torch.device, *, micro_batch: int) -> dict[str, float]:
        """Mean losses in nats a token, and closures; all ranks call it, and get the same.

        Args:
            loss: (input_ids, labels, document_ids, source_ids), int64 [B, T] each -> the summed loss, a scalar.
            device: of `loss`.
            micro_batch: B at most.
        """
        found = {name: _mean_loss(loss, group, device, micro_batch) for name, group in self.groups.items()}
        for state in ("backbone", "placebo"):
            if f"unseen_{state}" in found:
                value = closure(on=found["on"], off=found[f"off_{state}"], never=found[f"unseen_{state}"])
                found |= {f"closure_{state}": value} if value is not None else {}
        return found


def choose(cache: TokenCache, heldout: Collection[int], *, seed: int, num_sources: int) -> tuple[list[int], list[int]]:
    """The watched sources, trained and held out: by a keyed hash, of those with `MIN_PREDICTIONS`; pure."""
    sources, place = np.unique(cache.source_id, return_inverse=True)
    sizes = np.bincount(place, weights=cache.length - 1)
    known = sources[sizes >= MIN_PREDICTIONS]
    known = known[np.argsort(keyed(known, "watch", seed, 0))]
    is_unseen = np.isin(known, np.fromiter(heldout, dtype=np.int64))
    return known[~is_unseen][:num_sources].tolist(), known[is_unseen][:num_sources].tolist()


def _rows(cache: TokenCache, sources: Sequence[int], context_length: int) -> dict[str, Tensor]:
    """One row a source: its documents from the first, as far as they fit."""
    shape = (len(sources), context_length)
    rows = {
        "input_ids": torch.full(shape, cache.end_of_text),
        "labels": torch.full(shape, IGNORED),
        "document_ids": torch.full(shape, PADDING),
    }
    for row, source in enumerate(sources):
        filled = 0
        for number, index in enumerate(np.flatnonzero(cache.source_id == source)):
            tokens = torch.from_numpy(cache.document(int(index)))[: context_length - filled + 1]
            end = filled + len(tokens) - 1
            rows["input_ids"][row, filled:end] = tokens[:-1]
            rows["labels"][row, filled:end] = tokens[1:]
            rows["document_ids"][row, filled:end] = number
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
        # A rank past the end repeats the last row and counts nothing: it has to come along.
        taken = part.clamp(max=num_rows - 1)
        labels = group.labels[taken].masked_fill((part >= num_rows)[:, None], IGNORED)
        inputs = (group.input_ids[taken], labels, group.document_ids[taken], group.source_ids[taken])
        total[0] += loss(*(tensor.to(device) for tensor in inputs)).double()
        total[1] += (labels != IGNORED).sum()
    if dist.is_initialized():
        dist.all_reduce(total)
    return float(total[0] / total[1])
