"""What an erasure costs the other sources, before anything is written: shared sinks, and the loss that follows.

Every other trained source loses the sinks that it shares with an erased one. How many is exact and computed for all of
them. What that does to their text is measured, in nats a token, on a sample: the sources that lose most, and randomly
drawn ones. The rows are set to zero in memory, in a model of its own. Reserved sources share nothing: their erasure
costs exactly 0.

Cost: 0.1 us a sink, layer and other source (40 s for 100,000 sources of 128 sinks in 32 layers on one core); loading
the model, and two passes over at most 8,192 tokens of each sampled source.
Run: ``measure(version, [source_id], snapshot, revoked=(), load=load).worst_nats``.

Shapes: N sources.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from registry.ids import format_id
from registry.lookup import Source, read_sources
from registry.snapshot import Snapshot
from training.erasure.erase import rows_of
from training.erasure.rows import ErasedRows, shares
from training.evaluate.ablation import Examiner
from training.serving.router import Router
from training.serving.served_model import ServedModel
from training.serving.version import ROUTER_FILE, ModelVersion
from training.serving.weights import local_weights
from training.sinks.mask_ids import MaskIds
from training.sinks.sparse_grads import SINK_PARAMETERS

if TYPE_CHECKING:
    from training.model.modeling_nulls import NullsForCausalLM

NUM_WORST = 20
"""Sources named that lose the largest share of their sinks."""
NUM_MEASURED_WORST, NUM_MEASURED_RANDOM = 8, 16
"""Sources whose loss is measured: of those that lose most, and drawn at random."""
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of an erasure to the other trained sources that are not revoked."""

    num_sources: int
    """The number of those sources."""
    num_losing: int
    """How many of them lose a sink."""
    share: dict[str, float]
    """Share of a source's sinks that go, over those sources: `mean`, `p50`, `p90`, `p99`, `max`."""
    worst: list[dict[str, Any]]
    """The sources that lose most: `key` (the id without a snapshot's entry) and `share`."""
    measured: list[dict[str, Any]]
    """The sampled sources: `key`, `share`, `drawn` (`worst` or `random`), `loss_before`, `loss_after`, nats a token."""
    mean_nats: float | None
    """Mean rise of the loss over the random sample; None if the snapshot has no text to measure."""
    worst_nats: float | None
    """Largest rise of the loss over all that were measured; None likewise."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return dataclasses.asdict(self)


def measure(
    version: ModelVersion,
    source_ids: Collection[int],
    snapshot: Snapshot,
    *,
    revoked: Collection[int],
    load: Callable[[], ServedModel],
    progress: Callable[[str], None] = lambda _: None,
) -> Cost:
    """Return what erasing these sources would cost the others; nothing is written.

    Args:
        version: the version to erase from.
        source_ids: the sources to erase, shared ones included.
        snapshot: the one that it was trained on.
        revoked: sources that are out of force already, and so have nothing to lose.
        load: loads the version; called if the snapshot has text to measure.
        progress: called with a message at each step.

    Raises:
        DamagedError, ServiceError: see `training.serving.weights.local_weights`.
        NotFoundError: an imported model has no mask id for a source.
    """
    folder = local_weights(version)
    rows = rows_of(version, folder, source_ids)
    gone = np.array(sorted({*source_ids, *revoked}), dtype=np.int64)
    others_N = np.setdiff1d(Router.trained_ids(folder / ROUTER_FILE), gone)
    progress(f"sinks that {len(others_N):,} other sources share")
    share_N = shares(version.layout, MaskIds.load(folder), others_N, rows)
    order_N = np.argsort(-share_N, kind="stable")
    worst_N = order_N[:NUM_WORST][share_N[order_N[:NUM_WORST]] > 0]
    named = read_sources(snapshot, others_N[worst_N].tolist())
    measured = []
    if snapshot.shards() and len(others_N):
        drawn = {int(others_N[index]): how for index, how in _sample(share_N, order_N).items()}
        sources = read_sources(snapshot, drawn)
        losses = _losses(load(), snapshot, list(sources.values()), rows, progress)
        share_of = dict(zip(others_N.tolist(), share_N.tolist(), strict=True))
        measured = [
            {"key": source.key, "share": share_of[n], "drawn": drawn[n], "loss_before": old, "loss_after": new}
            for (n, source), (old, new) in zip(sources.items(), losses, strict=True)
        ]
    mean, worst = rises(measured)
    return Cost(
        num_sources=len(others_N),
        num_losing=int((share_N > 0).sum()),
        share=_quantiles(share_N),
        worst=[{"key": _key(named, int(others_N[i])), "share": float(share_N[i])} for i in worst_N],
        measured=measured,
        mean_nats=mean,
        worst_nats=worst,
    )


def rises(measured: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """Return the mean rise of the loss over the random sample, and the largest over all: nats a token, None for none.

    Where there are so few sources that all were drawn as the worst, the mean is over them.
    """
    if not measured:
        return None, None
    rise = [(row["loss_after"] - row["loss_before"], row["drawn"]) for row in measured]
    drawn = [value for value, how in rise if how == "random"] or [value for value, _ in rise]
    return statistics.fmean(drawn), max(value for value, _ in rise)


def _sample(share_N: npt.NDArray[np.float32], order_N: npt.NDArray[np.int64]) -> dict[int, str]:
    """Return the indices of the sources to measure, and how each was drawn: always the same for the same sources."""
    chosen = dict.fromkeys(order_N[:NUM_MEASURED_WORST].tolist(), "worst")
    # Ids are hashes, in ascending order, so a permutation with a fixed seed is a random draw of sources.
    for index in np.random.default_rng(0).permutation(len(share_N)).tolist():
        if len(chosen) == NUM_MEASURED_WORST + NUM_MEASURED_RANDOM:
            break
        chosen.setdefault(index, "random")
    return chosen


def _quantiles(share_N: npt.NDArray[np.float32]) -> dict[str, float]:
    if not len(share_N):
        return dict.fromkeys(("mean", *_QUANTILES), 0.0)
    values = {name: float(np.quantile(share_N, q)) for name, q in _QUANTILES.items()}
    return {"mean": float(share_N.mean()), **values}


def _losses(
    served: ServedModel,
    snapshot: Snapshot,
    sources: list[Source],
    rows: ErasedRows,
    progress: Callable[[str], None],
) -> list[tuple[float, float]]:
    """Return the loss of each source under its own sinks, with the rows as they are and with zeros."""
    examiner = Examiner(served, snapshot, [], progress)
    progress(f"the loss of {len(sources)} other sources before and after")
    before = [examiner.on_loss(source) for source in sources]
    with zeroed(served.model, rows):
        after = [examiner.on_loss(source) for source in sources]
    return list(zip(before, after, strict=True))


@contextlib.contextmanager
def zeroed(model: NullsForCausalLM, rows: ErasedRows) -> Iterator[None]:
    """Set the rows of a model in memory to zero during the block."""
    saved: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for layer, rows_P in enumerate(rows.rows_LP):
            index = torch.from_numpy(np.flatnonzero(rows_P)).to(model.device)
            for name in SINK_PARAMETERS:
                pool_PD = getattr(model.model.layers[layer].mlp, name).data
                saved.append((pool_PD, index, pool_PD[index].clone()))
                pool_PD[index] = 0
        try:
            yield
        finally:
            for pool_PD, index, values in saved:
                pool_PD[index] = values


def _key(named: Mapping[int, Source], source_id: int) -> str:
    return named[source_id].key if source_id in named else format_id(source_id)
