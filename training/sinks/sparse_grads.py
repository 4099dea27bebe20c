"""Sparse gradients of a pool that hold only the rows of active sinks, so that a larger pool costs a step nothing.

A dense gradient of the pool is zeroed, summed over ranks, measured for clipping and searched for active rows, whole, in
every step, though a step touches only the sinks of its sources: about 2,048 of 131,072 rows. Here it is a sparse COO
tensor instead: `gather_rows` (called by `mlp.py`) makes it, autograd adds up those of micro-batches,
`average_over_ranks` averages them, and `training/optim.py` clips and applies the result. Results are those of dense
gradients, up to the order of a sum.

This works in one process, and under DDP configured to ignore these parameters (`names_with_row_gradients`). FSDP shards
dense gradients, and torch.compile has no sparse ones (its graph would break at each gather): there they stay dense.

Cost: for three matrices of 8192 x 576 and 2048 rows drawn (fp32, one core) a dense gradient takes 66 ms of a backward
pass, to zero fresh memory; a sparse one takes none, and 3 ms to merge rows drawn twice. Memory: at most P rows plus
those of a micro-batch. Between ranks: P bytes a matrix to agree on the rows, then those rows.

Run: ``use_row_gradients(model)`` once; in each step, after backward, ``average_over_ranks(model.parameters())``.

Shapes: P pool neurons, D model width, N rows drawn, with repeats, R distinct rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

SINK_PARAMETERS = ("sink_gate", "sink_up", "sink_down")
"""Names of the pool's parameters, each [P, D] with one row per sink (the down projection is stored transposed)."""


class _GatherRows(torch.autograd.Function):
    """index_select along the rows with a sparse gradient."""

    @staticmethod
    def forward(ctx: Any, pool_PD: Tensor, rows_N: Tensor) -> Tensor:
        ctx.shape = pool_PD.shape
        ctx.save_for_backward(rows_N)
        return pool_PD.index_select(0, rows_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        (rows_N,) = ctx.saved_tensors
        # The rows are copied: they belong to the plan, and autograd adds later gradients to this one in place.
        return _sparse(rows_N.clone(), grad_ND, ctx.shape, merged=False), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_rows(pool_PD: Tensor, rows_N: Tensor) -> Tensor:
    """Return pool_PD[rows_N], [N, D]; its gradient for the pool is a sparse tensor of those rows."""
    gathered_ND: Tensor = _GatherRows.apply(pool_PD, rows_N)  # type: ignore[no-untyped-call]
    return gathered_ND


def _sparse(rows_N: Tensor, grad_ND: Tensor, shape: torch.Size, *, merged: bool) -> Tensor:
    return torch.sparse_coo_tensor(rows_N[None], grad_ND, shape, is_coalesced=merged, check_invariants=False)


def use_row_gradients(model: nn.Module) -> None:
    """Make the gradients of a model's pools sparse from now on.

    The attribute `row_gradients` is set to True on all modules that have it, which are those with pools.
    """
    for module in model.modules():
        if isinstance(getattr(module, "row_gradients", None), bool):
            module.row_gradients = True  # type: ignore[assignment]
            for parameter in _pool(module).values():
                parameter.register_post_accumulate_grad_hook(_bound_memory)  # type: ignore[no-untyped-call]


def names_with_row_gradients(model: nn.Module) -> list[str]:
    """Return the names of the parameters with sparse gradients, which DDP must ignore.

    DDP uses other names for parameters of the wrapped module itself: wrap a module around the one with a pool.
    """
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if getattr(module, "row_gradients", None) is True
        for name in _pool(module)
    ]


def _pool(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters(recurse=False) if name in SINK_PARAMETERS}


def _bound_memory(parameter: Tensor) -> None:
    """Merge repeated rows once there are more than the pool has: autograd only appends those of each micro-batch."""
    grad_PD = parameter.grad
    if grad_PD is not None and grad_PD.is_sparse and grad_PD._nnz() > len(parameter):
        parameter.grad = grad_PD.coalesce()


def average_over_ranks(parameters: Iterable[nn.Parameter]) -> None:
    """Average sparse gradients over all ranks, as DDP does with dense ones; every rank must call it.

    The rows are the union over the ranks. It takes two messages, whatever the number of parameters, and does nothing
    where there is one rank.
    """
    sparse = [parameter for parameter in parameters if parameter.grad is not None and parameter.grad.is_sparse]
    if not sparse or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    gradients = [parameter.grad.coalesce() for parameter in sparse if parameter.grad is not None]
    rows = _union_over_ranks(gradients)
    values = [_values_at(grad_PD, rows_R) for grad_PD, rows_R in zip(gradients, rows, strict=True)]
    flat = torch.cat([values_RD.flatten() for values_RD in values])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [values_RD.numel() for values_RD in values])
    for parameter, rows_R, values_RD, part in zip(sparse, rows, values, parts, strict=True):
        parameter.grad = _sparse(rows_R, part.view_as(values_RD), parameter.shape, merged=True)


def _union_over_ranks(gradients: list[Tensor]) -> list[Tensor]:
    """Return the rows that each gradient has on any rank, ascending."""
    active = [grad_PD.indices().new_zeros(len(grad_PD), dtype=torch.uint8) for grad_PD in gradients]
    for active_P, grad_PD in zip(active, gradients, strict=True):
        active_P[grad_PD.indices()[0]] = 1
    flat = torch.cat(active)
    dist.all_reduce(flat, op=dist.ReduceOp.MAX)
    return [part.nonzero().squeeze(1) for part in torch.split(flat, [len(active_P) for active_P in active])]


def _values_at(grad_PD: Tensor, rows_R: Tensor) -> Tensor:
    """Return the gradient at these rows, which include all of its own; zero where it has none."""
    values_RD = grad_PD.values().new_zeros(len(rows_R), *grad_PD.shape[1:])
    indices = torch.searchsorted(rows_R, grad_PD.indices()[0].contiguous())
    return values_RD.index_copy_(0, indices, grad_PD.values())
