"""The sink part of an MLP: each token passes through the sinks of its own source, and through no other pool neuron.

A sink plan is made once per batch for all layers: which tokens belong to which source, and each source's sinks in each
layer. Tokens of one source are brought together, wherever they are in the batch, so a source costs one gather of 3 * K
rows, however many segments it has. Sources of similar length share one padded batched matmul; a bucket ends where a
source has less than half the tokens of the bucket's first, so less than half of any bucket is padding, and the number
of matmuls grows with the logarithm of the longest source, not with the number of sources. That is the body called
"bmm", and the readable one. The other, "grouped", gives tokens sorted by source to `grouped_mm`: no padding, and no
size that changes with the batch, so all batches share one compiled graph. `choose_body` chooses between them.

The pool's gradient is dense by default. With `row_gradients` it holds only the active rows (`sparse_grads.py`), and no
cost here grows with the pool.

`dense_masked_mlp` is the definition that this must equal: every pool neuron, times the mask. It exists for tests.

Cost of backbone and sinks over that of the backbone alone, forward and backward, 2048 tokens, D 576, 512 neurons and
128 of 8192 sinks, fp32, one core (medians, runs interleaved), grouped and with row gradients: 1.35 with 16 sources of
128 tokens, 1.4 with 15 of 1 to 600, 1.5 with 64 of 32, 4.2 with 256 of 8; "bmm" 1.42, 1.43, 1.83 and 5.2; a dense
gradient adds 0.1 to 0.3. The backbone takes 131 ms, all pool neurons, masked, 5025. A plan for 30 layers: 4 ms.
Run: ``python benchmarks/training.py --only sinks``.

Shapes: T tokens (batch flattened), A of them with a source, D model width, P pool neurons, G distinct sources,
K sinks of a source, L layers, g sources and n tokens each in one bucket.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu

from registry.errors import UsageError
from training.sinks.grouped_mm import GROUPED_DTYPES, grouped_product, is_aligned
from training.sinks.layout import NO_SOURCE, SinkLayout
from training.sinks.sparse_grads import SINK_PARAMETERS as SINK_PARAMETERS
from training.sinks.sparse_grads import gather_rows

Body = Literal["bmm", "grouped"]
_MAX_CUDA_GROUPS = 1024  # torch's kernel fails at run time for this many and more


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinkPlan:
    """Sink plan of a batch: which tokens go through which sinks; made by `build_plan`."""

    token_index_A: Tensor
    """int64: the flat positions of the tokens that have a source."""
    padded_index_A: Tensor
    """int64: the slot of each of those tokens in the buckets, laid end to end."""
    offsets_G: Tensor
    """int32: the end of each source's tokens among those A, in the order of `source_ids_G`."""
    gather_index: Tensor
    """int64 [sum of g * n]: the flat token that fills each slot of the buckets; a padded slot repeats a token."""
    buckets: tuple[tuple[int, int], ...]
    """(g, n) of each bucket, most tokens first; sources are numbered in this order."""
    source_ids_G: Tensor
    """int64: the sources, in the order of the buckets."""
    sinks_LGK: Tensor
    """int64: rows of the pool, by layer and source."""
    valid_GK: Tensor | None
    """bool: False where a source's sinks are padded; None for `keyed-v1`, which never pads."""
    capability: int | None
    """Major compute capability of a CUDA device, else None; kept here because a compiled layer cannot query it."""

    def for_layer(self, layer: int) -> SinkPlan:
        """Return the plan with the sinks of one layer only, as its layer 0."""
        return dataclasses.replace(self, sinks_LGK=self.sinks_LGK[layer : layer + 1])


def build_plan(source_ids_T: Tensor, layout: SinkLayout, num_layers: int) -> SinkPlan:
    """Make the sink plan of a batch.

    Args:
        source_ids_T: int64, the source of each token of the flattened batch, or NO_SOURCE.
        layout: how sinks are drawn.
        num_layers: number of decoder layers, each with its own draw.

    Raises:
        UsageError: the ids are not int64 [T].
    """
    if source_ids_T.dtype != torch.int64 or source_ids_T.ndim != 1:
        shape = tuple(source_ids_T.shape)
        raise UsageError(f"source_ids: got {source_ids_T.dtype} of shape {shape}, expected int64 of shape [T]")
    device = source_ids_T.device
    token_index_A = (source_ids_T != NO_SOURCE).nonzero().squeeze(1)
    ids_G, group_A, counts_G = torch.unique(source_ids_T[token_index_A], return_inverse=True, return_counts=True)

    # Order the sources by falling token count, so that a bucket is a run of them.
    order_G = counts_G.argsort(descending=True, stable=True)
    ids_G, counts_G = ids_G[order_G], counts_G[order_G]
    group_A = order_G.argsort()[group_A]
    by_group_A = group_A.argsort(stable=True)
    token_index_A, group_A = token_index_A[by_group_A], group_A[by_group_A]

    buckets = _buckets(counts_G.tolist())
    widths_G = counts_G.new_tensor([n for g, n in buckets for _ in range(g)])
    rank_A = torch.arange(len(group_A), device=group_A.device) - (counts_G.cumsum(0) - counts_G)[group_A]
    padded_index_A = (widths_G.cumsum(0) - widths_G)[group_A] + rank_A
    # Padding computes token 0 again; that result is never read, so it gets no gradient.
    gather_index = token_index_A.new_zeros(sum(g * n for g, n in buckets))
    gather_index[padded_index_A] = token_index_A

    sinks_LGK, valid_GK = _select_layers(layout, ids_G, num_layers)
    return SinkPlan(
        token_index_A=token_index_A,
        padded_index_A=padded_index_A,
        offsets_G=counts_G.cumsum(0).to(torch.int32),
        gather_index=gather_index,
        buckets=buckets,
        source_ids_G=ids_G,
        sinks_LGK=sinks_LGK,
        valid_GK=valid_GK,
        capability=torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else None,
    )


def _buckets(counts: list[int]) -> tuple[tuple[int, int], ...]:
    """Cut falling counts into runs whose last is more than half of the first: (length, first count) of each run."""
    buckets: list[tuple[int, int]] = []
    for count in counts:
        size, width = buckets[-1] if buckets else (0, 0)
        if 2 * count > width:
            buckets[-1:] = [(size + 1, width)] if size else [(1, count)]
        else:
            buckets.append((1, count))
    # One empty bucket where there is no source, so that the matmuls still run and autograd reaches the pool.
    return tuple(buckets) or ((0, 0),)


def _select_layers(layout: SinkLayout, ids_G: Tensor, num_layers: int) -> tuple[Tensor, Tensor | None]:
    if ids_G.device.type != "cpu":
        return layout.select_layers(ids_G, num_layers)
    # On a CPU the same draw is three times as fast in NumPy, with the same bits and shared memory.
    sinks, valid = layout.select_layers(ids_G.numpy(), num_layers)
    sinks = np.require(sinks, requirements=("C", "W"))
    return torch.from_numpy(sinks), None if valid is None else torch.from_numpy(valid)


def choose_body(
    *,
    device: str,
    dtype: torch.dtype,
    width: int,
    num_sinks: int,
    num_groups: int,
    compiling: bool,
    capability: int | None = None,
) -> Body:
    """Return the body that computes a batch: "grouped" wherever it works and is not slower, else "bmm".

    Args:
        device: device type, as `torch.device.type`.
        dtype: of the matmuls.
        width: D.
        num_sinks: K.
        num_groups: G.
        compiling: whether torch.compile is tracing.
        capability: major compute capability of a CUDA device.
    """
    if dtype not in GROUPED_DTYPES or not is_aligned(dtype, width, num_sinks) or num_groups == 0:
        return "bmm"
    on_cuda = device == "cuda"
    if on_cuda and num_groups >= _MAX_CUDA_GROUPS:
        return "bmm"
    # Except in bfloat16 on Hopper and Blackwell, torch loops over the groups, and waits for the offsets first. Under
    # torch.compile "bmm" would be worse: a graph for each number of buckets.
    slow = on_cuda and (dtype != torch.bfloat16 or capability not in (9, 10))
    return "bmm" if slow and not compiling else "grouped"


def sink_mlp(
    hidden_TD: Tensor,
    plan: SinkPlan,
    layer: int,
    gate_PD: Tensor,
    up_PD: Tensor,
    down_PD: Tensor,
    *,
    row_gradients: bool = False,
    body: Body | None = None,
) -> Tensor:
    """Compute down(silu(gate x) * up x) over the sinks of each token's source: out_TD, exactly zero without a source.

    The pool takes part in autograd even when no token has a source (its gradient is then zero), because a
    data-parallel wrapper waits for the gradient of every parameter.

    Args:
        hidden_TD: the MLP's input.
        plan: of this batch.
        layer: the layer of the plan whose sinks to use.
        gate_PD, up_PD, down_PD: the pool.
        row_gradients: whether the pool's gradients are sparse (`sparse_grads.py`) rather than dense.
        body: "bmm" or "grouped", instead of `choose_body`'s choice; for tests and measurements.
    """
    _, num_groups, num_sinks = plan.sinks_LGK.shape
    num_tokens, width = hidden_TD.shape
    device = hidden_TD.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_TD.dtype
    # One gather a matrix, however many buckets there are: its backward makes one gradient of the whole pool.
    take = gather_rows if row_gradients else _select_rows
    rows = plan.sinks_LGK[layer].flatten()
    gate_GKD, up_GKD, down_GKD = (
        take(pool_PD, rows).to(dtype).view(num_groups, num_sinks, width) for pool_PD in (gate_PD, up_PD, down_PD)
    )
    if plan.valid_GK is not None:
        # A padded sink whose row of down is zero adds nothing, and none of its three rows gets a gradient.
        down_GKD = down_GKD * plan.valid_GK[..., None]
    if body is None:
        body = choose_body(
            device=device,
            dtype=dtype,
            width=width,
            num_sinks=num_sinks,
            num_groups=num_groups,
            compiling=torch.compiler.is_compiling(),
            capability=plan.capability,
        )
    compute = _grouped_mlp if body == "grouped" else _bucketed_mlp
    out_AD = compute(hidden_TD.to(dtype), plan, gate_GKD, up_GKD, down_GKD)
    return out_AD.new_zeros(num_tokens, width).index_copy(0, plan.token_index_A, out_AD)


def _select_rows(pool_PD: Tensor, rows: Tensor) -> Tensor:
    return pool_PD.index_select(0, rows)


def _grouped_mlp(hidden_TD: Tensor, plan: SinkPlan, gate_GKD: Tensor, up_GKD: Tensor, down_GKD: Tensor) -> Tensor:
    """Compute the MLP of the tokens in the plan's order, as jagged groups: [A, D]."""
    hidden_AD = hidden_TD.index_select(0, plan.token_index_A)
    gate_AK = grouped_product(hidden_AD, gate_GKD.transpose(1, 2), plan.offsets_G)
    up_AK = grouped_product(hidden_AD, up_GKD.transpose(1, 2), plan.offsets_G)
    return grouped_product(silu(gate_AK) * up_AK, down_GKD, plan.offsets_G)


def _bucketed_mlp(hidden_TD: Tensor, plan: SinkPlan, gate_GKD: Tensor, up_GKD: Tensor, down_GKD: Tensor) -> Tensor:
    """Compute the same in buckets of padded groups: [A, D]."""
    slots_D = hidden_TD.index_select(0, plan.gather_index)
    if len(plan.buckets) == 1:
        # Splitting into one part would copy every gradient again.
        (size, num_tokens), width = plan.buckets[0], hidden_TD.shape[1]
        out_D = _bucket_mlp(slots_D.view(size, num_tokens, width), gate_GKD, up_GKD, down_GKD)
        return out_D.index_select(0, plan.padded_index_A)
    sizes, lengths = [g for g, _ in plan.buckets], [g * n for g, n in plan.buckets]
    slots = torch.split(slots_D, lengths)
    weights = zip(*(torch.split(w_GKD, sizes) for w_GKD in (gate_GKD, up_GKD, down_GKD)), strict=True)
    outputs = [
        _bucket_mlp(slots_nD.view(g, n, -1), *bucket_weights)
        for (g, n), slots_nD, bucket_weights in zip(plan.buckets, slots, weights, strict=True)
    ]
    return torch.cat(outputs).index_select(0, plan.padded_index_A)


def _bucket_mlp(hidden_gnD: Tensor, gate_gKD: Tensor, up_gKD: Tensor, down_gKD: Tensor) -> Tensor:
    """Compute the MLP of the g sources of one bucket: [g * n, D]."""
    gate_gnK = torch.bmm(hidden_gnD, gate_gKD.transpose(1, 2))
    up_gnK = torch.bmm(hidden_gnD, up_gKD.transpose(1, 2))
    return torch.bmm(silu(gate_gnK) * up_gnK, down_gKD).flatten(0, 1)


def token_mask(source_ids_T: Tensor, layout: SinkLayout, layer: int) -> Tensor:
    """Return the mask of each token, True where a pool neuron is on: bool [T, P]; all False at NO_SOURCE."""
    active_T = source_ids_T != NO_SOURCE
    mask_TP = torch.zeros(len(source_ids_T), layout.num_pool, dtype=torch.bool, device=source_ids_T.device)
    mask_TP[active_T] = layout.mask(source_ids_T[active_T], layer)
    return mask_TP


def dense_masked_mlp(hidden_TD: Tensor, mask_TP: Tensor, gate_PD: Tensor, up_PD: Tensor, down_PD: Tensor) -> Tensor:
    """Compute all pool neurons of each token, times the mask: the definition, for tests. 64 times the work."""
    hidden_TP = silu(hidden_TD @ gate_PD.T) * (hidden_TD @ up_PD.T)
    return (hidden_TP * mask_TP) @ down_PD
