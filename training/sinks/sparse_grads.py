"""Gradients of a pool that hold the rows of active sinks alone, so that no step costs more for a larger pool.

A dense gradient of the pool is zeroed, summed over ranks, measured for clipping and searched for active rows, whole, in
every step, though a step touches only what its sources drew: of 131,072 rows, 2,048 or so. Here it is a sparse COO
tensor instead: `gather_rows` (called by `sinks.py`) makes it, autograd adds up those of micro-batches,
`average_over_ranks` makes the ranks agree on it, and `optim.py` clips and applies it. Results are those of dense
gradients, up to the order of a sum.

For one process, and for DDP told to leave these parameters alone (`names_with_row_gradients`). FSDP shards dense
gradients, and torch.compile knows no sparse ones (its graph would break at each gather): there they stay dense.

Cost: for three matrices of 8192 x 576 and 2048 rows drawn (fp32, one core) a dense gradient takes 66 ms of a backward
pass, to zero fresh memory; this one none, and 3 ms to merge rows drawn twice. Memory: at most P rows and those of a
micro-batch. Between ranks: P bytes a matrix to agree on the rows, then those rows.

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
"""Names of the pool's parameters, each [P, D] with one row a sink (the down projection is stored transposed)."""


class _GatherRows(torch.autograd.Function):
    """index_select along the rows, whose gradient is sparse."""

    @staticmethod
    def forward(ctx: Any, pool_PD: Tensor, rows_N: Tensor) -> Tensor:
        ctx.shape = pool_PD.shape
        ctx.save_for_backward(rows_N)
        return pool_PD.index_select(0, rows_N)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None]:
        (rows_N,) = ctx.saved_tensors
        # A copy of the rows: autograd adds later gradients to this one in place, and they are the plan's.
        return _sparse(rows_N.clone(), grad_ND, ctx.shape, merged=False), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gather_rows(pool_PD: Tensor, rows_N: Tensor) -> Tensor:
    """pool_PD[rows_N], [N, D], whose gradient for the pool is a sparse tensor of those rows."""
    gathered_ND: Tensor = _GatherRows.apply(pool_PD, rows_N)  # type: ignore[no-untyped-call]
    return gathered_ND


def _sparse(rows_N: Tensor, grad_ND: Tensor, shape: torch.Size, *, merged: bool) -> Tensor:
    return torch.sparse_coo_tensor(rows_N[None], grad_ND, shape, is_coalesced=merged, check_invariants=False)


def use_row_gradients(model: nn.Module) -> None:
    """From now on, gradients of the model's pools are sparse.

    Modules that have an attribute `row_gradients` are those with pools; it is set on them.
    """
    for module in model.modules():
        if isinstance(getattr(module, "row_gradients", None), bool):
            module.row_gradients = True  # type: ignore[assignment]
            for parameter in _pool(module).values():
                parameter.register_post_accumulate_grad_hook(_bound_memory)  # type: ignore[no-untyped-call]


def names_with_row_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters that `use_row_gradients` changed: what DDP has to leave alone.

    DDP looks parameters of the wrapped module itself up under other names: wrap a module around the one with a pool.
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
    """Merges rows once there are more than the pool has: autograd only appends those of each micro-batch."""
    grad_PD = parameter.grad
    if grad_PD is not None and grad_PD.is_sparse and grad_PD._nnz() > len(parameter):
        parameter.grad = grad_PD.coalesce()


def average_over_ranks(parameters: Iterable[nn.Parameter]) -> None:
    """Makes sparse gradients the mean over all ranks, as DDP does with dense ones; every rank must call it.

    Rows are the union over the ranks: two messages, whatever the number of parameters. Alone, it does nothing.
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
    """The rows that each gradient has on any rank, ascending."""
    active = [grad_PD.indices().new_zeros(len(grad_PD), dtype=torch.uint8) for grad_PD in gradients]
    for active_P, grad_PD in zip(active, gradients, strict=True):
        active_P[grad_PD.indices()[0]] = 1
    flat = torch.cat(active)
    dist.all_reduce(flat, op=dist.ReduceOp.MAX)
    return [part.nonzero().squeeze(1) for part in torch.split(flat, [len(active_P) for active_P in active])]


def _values_at(grad_PD: Tensor, rows_R: Tensor) -> Tensor:
    """The gradient's rows among these, which contain all it has; zero where it has none."""
    values_RD = grad_PD.values().new_zeros(len(rows_R), *grad_PD.shape[1:])
    places = torch.searchsorted(rows_R, grad_PD.indices()[0].contiguous())
    return values_RD.index_copy_(0, places, grad_PD.values())
