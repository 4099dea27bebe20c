"""Adam on the rows of pools that were active in a step, each with its own step count; `training/optim.py` says why.

Two bodies do the same arithmetic. "rows" takes the active rows of one matrix out, updates them and puts them back. Its
cost grows with the active rows; it is for CPUs, where few rows of a pool are active in a step, and for sparse
gradients. "masked" updates every row and keeps the old values of inactive ones. It never waits to learn which those
are, and as one kernel a matrix (torch.compile) reads and writes each number once. It is for GPUs, whose steps are so
large that most rows are active, and which would otherwise idle at each matrix of each layer.

Cost of "rows", dense gradients, three matrices of 8192 x 576, fp32, one core: 14 ms with 128 rows active, 41 with 1900,
69 with half of them, 107 with all, where torch's AdamW takes 47. The active rows are copied, one matrix at a time. Of
sparse gradients (`sparse_grads.py`) only the rows are read, and the size of the pool costs nothing.

Run: ``update_rows(parameters, states, group)``; `NullsAdamW` does.

Shapes: P pool neurons (of this rank), D model width, R active rows, N matrices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Body = Literal["rows", "masked"]
# The fastest of 32 rows to all on a CPU at width 768: 103 ms, where all rows at once take 173.
_BLOCK_ROWS = 256


def choose_body(*, device: str, is_sparse: bool) -> Body:
    """Return the body that updates a pool, by the type of its device and whether its gradient is sparse."""
    return "rows" if device == "cpu" or is_sparse else "masked"


def update_rows(
    parameters: Sequence[Tensor], states: Sequence[dict[str, Tensor]], group: dict[str, Any], body: Body | None = None
) -> None:
    """Take one step on pools that have gradients, in place.

    Args:
        parameters: float [P, D] each, whole or sharded by rows.
        states: for each parameter, `exp_avg` and `exp_avg_sq` of its shape, and `step`, float32 [P].
        group: `lr`, `betas` and `eps`.
        body: "rows" or "masked", instead of `choose_body`'s choice; for tests and measurements.
    """
    chosen: dict[Body, list[list[Tensor]]] = {"rows": [], "masked": []}
    for parameter, state in zip(parameters, states, strict=True):
        assert parameter.grad is not None
        if state["step"].device != parameter.device:
            # load_state_dict does not move an entry of this name, because torch's own counts are scalars on the CPU.
            state["step"] = state["step"].to(parameter.device)
        wholes = (parameter, state["exp_avg"], state["exp_avg_sq"], state["step"], parameter.grad)
        by_rule = choose_body(device=parameter.device.type, is_sparse=parameter.grad.is_sparse)
        chosen[body or by_rule].append([local_rows(tensor) for tensor in wholes])
    for pool in chosen["rows"]:
        _update_active(pool, group)
    if chosen["masked"]:
        _update_masked(chosen["masked"], group)


def local_rows(tensor: Tensor) -> Tensor:
    """Return this rank's rows of a tensor that FSDP2 shards by rows, and any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _update_active(pool: list[Tensor], group: dict[str, Any]) -> None:
    *wholes, grad_PD = pool
    rows_R, grad_RD = _active_rows(grad_PD)
    # On a CPU, blocks that fit its cache are faster; elsewhere fewer and larger operations are.
    size = _BLOCK_ROWS if rows_R.device.type == "cpu" else max(1, len(rows_R))
    for block_R, block_RD in zip(torch.split(rows_R, size), torch.split(grad_RD, size), strict=True):
        parts = [whole.index_select(0, block_R) for whole in wholes]
        weight_RD, mean_RD, square_RD, steps_R = parts
        steps_R += 1
        _adam(
            weight_RD,
            mean_RD,
            square_RD,
            block_RD,
            *_corrections(steps_R, group, block_RD.dtype),
            group["betas"],
            group["eps"],
        )
        for whole, part in zip(wholes, parts, strict=True):
            whole.index_copy_(0, block_R, part)


def _active_rows(grad_PD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows whose gradient is not zero, and their gradients: [R], [R, D]."""
    rows_N, grad_ND = None, grad_PD
    if grad_PD.is_sparse:
        grad_PD = grad_PD.coalesce()
        rows_N, grad_ND = grad_PD.indices()[0], grad_PD.values()
    # Exact for the smallest numbers, unlike a norm, and several times as fast as counting or `any`.
    found_R = grad_ND.abs().amax(1).nonzero().squeeze(1)
    if rows_N is not None and len(found_R) == len(rows_N):
        return rows_N, grad_ND
    return found_R if rows_N is None else rows_N[found_R], grad_ND.index_select(0, found_R)


def _update_masked(pools: list[list[Tensor]], group: dict[str, Any]) -> None:
    counts = [pool[3] for pool in pools]
    # Per-row values are computed for all matrices together: a few small kernels instead of hundreds.
    active = torch.cat([torch.linalg.vector_norm(pool[4], float("inf"), dim=1) > 0 for pool in pools])
    steps = torch.cat(counts) + active
    rates, roots = _corrections(steps, group, pools[0][4].dtype)
    sizes = [len(count) for count in counts]
    torch._foreach_copy_(counts, list(torch.split(steps, sizes)))
    masked_adam = _compiled() if active.device.type == "cuda" else _masked_adam
    for (weight_PD, mean_PD, square_PD, _, grad_PD), active_P1, rate_P1, root_P1 in zip(
        pools,
        torch.split(active[:, None], sizes),
        torch.split(rates, sizes),
        torch.split(roots, sizes),
        strict=True,
    ):
        masked_adam(weight_PD, mean_PD, square_PD, grad_PD, rate_P1, root_P1, active_P1, group["betas"], group["eps"])


def _masked_adam(
    weight_PD: Tensor,
    mean_PD: Tensor,
    square_PD: Tensor,
    grad_PD: Tensor,
    rate_P1: Tensor,
    root_P1: Tensor,
    active_P1: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Apply `_adam` to active rows, in place, and leave every bit of the others."""
    wholes = weight_PD, mean_PD, square_PD
    weight, mean, square = (whole.clone() for whole in wholes)
    _adam(weight, mean, square, grad_PD, rate_P1, root_P1, betas, eps)
    for whole, part in zip(wholes, (weight, mean, square), strict=True):
        whole.copy_(torch.where(active_P1, part, whole))


@functools.cache
def _compiled() -> Callable[..., None]:
    return torch.compile(_masked_adam)


def _corrections(steps_P: Tensor, group: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return, per row, the learning rate over the first bias correction, and the root of the second: [P, 1] each."""
    beta1, beta2 = group["betas"]
    # In float64, since 1 - 0.999 ** step has only four digits in float32.
    rate_P1 = (group["lr"] / (1 - beta1 ** steps_P.double()))[:, None]
    root_P1 = (1 - beta2 ** steps_P.double()).sqrt()[:, None]
    return rate_P1.to(dtype), root_P1.to(dtype)


def _adam(
    weight_RD: Tensor,
    mean_RD: Tensor,
    square_RD: Tensor,
    grad_RD: Tensor,
    rate_R1: Tensor,
    root_R1: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Take one step on weights and both moments, in place."""
    beta1, beta2 = betas
    mean_RD.lerp_(grad_RD, 1 - beta1)
    square_RD.mul_(beta2).addcmul_(grad_RD, grad_RD, value=1 - beta2)
    denominator_RD = square_RD.sqrt().div_(root_R1).add_(eps)
    weight_RD.addcdiv_(mean_RD * rate_R1, denominator_RD, value=-1)
