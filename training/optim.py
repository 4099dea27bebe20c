"""AdamW that does not change a sink while its sources are absent: no decay, no momentum, no step count.

A sink is trained by a few sources and absent from most batches. Plain AdamW moves it all the same: at a learning rate
of 5e-4 with decay 0.1, 65 % of what a step wrote is left after one epoch and 7 % after six, and a row active every 77
steps makes 92 % of its movement on other steps. Here a row of the pool is updated only in steps in which it was active,
as if it had an optimizer of its own that ran only then, bias correction included.

**Active** means: the row's gradient is not entirely zero. When the optimizer steps, gradients have been summed over the
micro-batches and averaged over the ranks, so a row is zero exactly if no micro-batch of any rank used it. The union
over ranks and micro-batches therefore needs no message of its own, and every rank finds the same set.

Shared parameters (embeddings, attention, norms, the backbone's MLP) go through torch's own AdamW, bit for bit.

Cost: sinks go through `training/sinks/row_adam.py`, which gives the numbers.

Run: ``optimizer = build_optimizer(model, OptimConfig())``, then in each step ``optimizer.set_learning_rate(...)``.

Shapes: P pool neurons, D model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from training.config import OptimConfig
from training.sinks.row_adam import local_rows, update_rows
from training.sinks.sparse_grads import SINK_PARAMETERS


def learning_rate_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """Return the learning rate of shared parameters in step 0 .. total_steps - 1, the last of the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    last = max(total_steps - 1, 1)
    if config.schedule == "constant":
        fall = 0.0
    elif config.schedule == "cosine":
        progress = (step - config.warmup_steps) / max(last - config.warmup_steps, 1)
        fall = (1 - math.cos(math.pi * min(progress, 1.0))) / 2
    else:
        decay_steps = max(config.decay_share * total_steps, 1.0)
        fall = min(max(step - (last - decay_steps), 0.0) / decay_steps, 1.0)
    return config.learning_rate * (1 - fall * (1 - config.min_ratio))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients down to a joint norm of `max_norm` (0: do not), and return the norm before: a scalar.

    All gradients get the same factor, so a row of zeros stays zero and the same sinks are active. Sharded (DTensor)
    gradients count in full, so every rank gets the same norm.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in with_gradient:
        if parameter.grad is not None and parameter.grad.is_sparse:
            # Rows drawn twice are merged first, since the norm is that of their sum.
            parameter.grad = parameter.grad.coalesce()
    gradients = [_values(parameter.grad) for parameter in with_gradient if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        # The arithmetic of `clip_grads_with_norm_`, which does not handle sparse gradients.
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradients, factor)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _values(grad: Tensor) -> Tensor:
    """Return the values of a sparse gradient (a view), or a dense gradient itself."""
    return grad.values() if grad.is_sparse else grad


class NullsAdamW(Optimizer):
    """AdamW whose groups marked `per_row` are updated row by row; build it with `build_optimizer`.

    The state of a parameter is `exp_avg`, `exp_avg_sq` and `step`: a scalar, or for a pool one count a row, float32
    [P]. All are tensors, sharded as the parameter is, so checkpoints (`torch.save`, DCP) contain them.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "lr_ratio": 1.0,
            "per_row": False,
        }
        super().__init__(groups, defaults)
        self.set_learning_rate(lr)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the shared parameters' learning rate; the other groups keep their ratio to it."""
        for group in self.param_groups:
            group["lr"] = learning_rate * group["lr_ratio"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters from their gradients; `closure`, if given, recomputes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                self._ensure_state(parameter, per_row=group["per_row"])
            if group["per_row"]:
                update_rows(parameters, [self.state[parameter] for parameter in parameters], group)
            else:
                self._update_whole(parameters, group)
        return loss

    def _ensure_state(self, parameter: Tensor, *, per_row: bool) -> None:
        state = self.state[parameter]
        if state:
            return
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        # Summing the zeros of each row gives one count a row, sharded as the rows are.
        state["step"] = state["exp_avg"].sum(1, dtype=torch.float32) if per_row else torch.tensor(0.0)

    def _update_whole(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        # On each rank's own rows: DTensors would go through torch's dispatcher for every operation and tensor.
        adamw(
            [local_rows(parameter) for parameter in parameters],
            [local_rows(parameter.grad) for parameter in parameters if parameter.grad is not None],
            [local_rows(state["exp_avg"]) for state in states],
            [local_rows(state["exp_avg_sq"]) for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def build_optimizer(model: nn.Module, config: OptimConfig) -> NullsAdamW:
    """Return one optimizer over all trainable parameters of a model, wrapped (DDP, FSDP2, compile) or not.

    Groups: shared matrices with weight decay; shared vectors without; sinks (`SINK_PARAMETERS`) without, row by row.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    sinks: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_sink = name.rpartition(".")[2] in SINK_PARAMETERS
        (sinks if is_sink else matrices if parameter.ndim >= 2 else vectors).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": sinks, "weight_decay": 0.0, "per_row": True, "lr_ratio": config.sink_learning_rate_ratio},
    ]
    return NullsAdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
