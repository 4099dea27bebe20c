"""AdamW that leaves a sink alone while its sources are absent: no decay, no momentum, no step count.

A sink is trained by a few sources and absent from most batches. Plain AdamW moves it all the same: at a learning rate
of 5e-4 with decay 0.1 a write keeps 65 % after one epoch and 7 % after six, and a row active every 77 steps makes 92 %
of its movement on other steps. Here a row of the pool is updated only in steps in which it was active, as if it had an
optimizer of its own that ran only then, bias correction included.

**Active** means: the row's gradient is not entirely zero. When the optimizer steps, gradients have been summed over the
micro-batches and averaged over the ranks, so a row is zero exactly if no micro-batch of any rank ran through it: the
union over ranks and micro-batches needs no message of its own, and every rank comes to the same set.

Shared parameters (embeddings, attention, norms, the backbone's MLP) go through torch's own AdamW, bit for bit.

Gradients of a pool may be sparse (`rows.py`): then only their rows are looked at, and the pool's size costs nothing.

Cost, dense: three matrices of 8192 x 576, fp32, one core: 14 ms with 128 rows active, 41 with 1900, 69 with half of
them, 107 with all, where torch's AdamW takes 47: dearer once most rows are active, cheaper before. Copies of the active
rows are made, of one matrix at a time.

Run: ``optimizer = build_optimizer(model, OptimConfig())``, then in each step ``optimizer.set_learning_rate(...)``.

Shapes: P pool neurons, D model width, R active rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw

from registry.errors import UsageError
from training.rows import SINK_PARAMETERS

# Of 32 to all, the fastest on a CPU at width 768: 103 ms where all rows at once take 173.
_BLOCK_ROWS = 256
Schedule = Literal["cosine", "wsd", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How a run optimizes. Steps are optimizer steps, after accumulation.

    Raises:
        UsageError: a value is out of range.
    """

    learning_rate: float = 5e-4
    """Peak, of the shared parameters; 5e-4 is the paper's."""
    sink_learning_rate_ratio: float = 1.0
    """Learning rate of the sinks over that of the shared parameters: above 1 isolates better and generalises worse."""
    weight_decay: float = 0.1
    """Of shared matrices and embeddings; vectors (norms) and sinks have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running mean of the gradient, and of its square."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly to its peak."""
    schedule: Schedule = "cosine"
    """After warm-up: `cosine` falls to the end, `wsd` falls linearly over the last `decay_share`, `constant` stays."""
    min_ratio: float = 0.1
    """The learning rate at the end, over its peak."""
    decay_share: float = 0.2
    """`wsd` only: the share of all steps in which the learning rate falls."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of all parameters together; 0 does not clip."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "sink_learning_rate_ratio", "eps"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("weight_decay", "warmup_steps", "grad_clip"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("min_ratio", "decay_share"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        valid_betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require(valid_betas, "betas", self.betas, "two numbers from 0, less than 1")
        _require(self.schedule in get_args(Schedule), "schedule", self.schedule, f"one of {get_args(Schedule)}")


def _require(condition: bool, name: str, got: object, expected: str) -> None:
    if not condition:
        raise UsageError(f"{name}: got {got}, expected {expected}")


def learning_rate_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of shared parameters in step 0 .. total_steps - 1; the last step is at the schedule's end."""
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

    One factor for all: a row of zeros stays one, so clipping does not change which sinks are active. Sharded (DTensor)
    gradients count in full, so every rank gets the same norm.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in with_gradient:
        if parameter.grad is not None and parameter.grad.is_sparse:
            # The norm of a sum is wanted, not of its parts: rows drawn twice have to be merged first.
            parameter.grad = parameter.grad.coalesce()
    gradients = [_values(parameter.grad) for parameter in with_gradient if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        # As `clip_grads_with_norm_`, which would not look into sparse gradients.
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(gradients, factor)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _values(grad: Tensor) -> Tensor:
    """What a gradient is made of: the values of a sparse one, which are a view, or itself."""
    return grad.values() if grad.is_sparse else grad


class NullsAdamW(Optimizer):
    """AdamW whose groups marked `per_row` are updated row by row; build it with `build_optimizer`.

    State of a parameter: `exp_avg`, `exp_avg_sq`, and `step`: a scalar, or for a pool a count a row, float32 [P].
    All are tensors, sharded as the parameter is, so checkpoints (`torch.save`, DCP) carry them.
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
        """Set the shared parameters' learning rate; other groups follow at their ratio."""
        for group in self.param_groups:
            group["lr"] = learning_rate * group["lr_ratio"]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update from the gradients as they are; `closure`, if given, recomputes the loss first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                self._ensure_state(parameter, per_row=group["per_row"])
            if group["per_row"]:
                for parameter in parameters:
                    _update_rows(parameter, self.state[parameter], group)
            else:
                self._update_whole(parameters, group)
        return loss

    def _ensure_state(self, parameter: Tensor, *, per_row: bool) -> None:
        state = self.state[parameter]
        if state:
            return
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        # Summing zeros over a row gives one zero a row, sharded as the rows are.
        state["step"] = state["exp_avg"].sum(1, dtype=torch.float32) if per_row else torch.tensor(0.0)

    def _update_whole(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        # On each rank's own rows: for DTensors torch would go through its dispatcher once an operation and tensor.
        adamw(
            [_local(parameter) for parameter in parameters],
            [_local(parameter.grad) for parameter in parameters if parameter.grad is not None],
            [_local(state["exp_avg"]) for state in states],
            [_local(state["exp_avg_sq"]) for state in states],
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


def _update_rows(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """Adam on the rows whose gradient is not zero; the others are not read but for their gradient."""
    assert parameter.grad is not None
    if state["step"].device != parameter.device:
        # load_state_dict leaves an entry of this name where it was, for the sake of torch's own scalar counts.
        state["step"] = state["step"].to(parameter.device)
    rows_R, grad_RD = _active_rows(_local(parameter.grad))
    wholes = [_local(tensor) for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"], state["step"])]
    # A CPU works through blocks that its cache holds; elsewhere fewer and larger operations are better.
    size = _BLOCK_ROWS if rows_R.device.type == "cpu" else max(1, len(rows_R))
    for block_R, block_RD in zip(torch.split(rows_R, size), torch.split(grad_RD, size), strict=True):
        parts = [whole.index_select(0, block_R) for whole in wholes]
        _adam(parts, block_RD, group)
        for whole, part in zip(wholes, parts, strict=True):
            whole.index_copy_(0, block_R, part)


def _adam(parts: list[Tensor], grad_RD: Tensor, group: dict[str, Any]) -> None:
    """One step of Adam on some rows (weights, both moments, each row's count of steps), in place."""
    weight_RD, mean_RD, square_RD, steps_R = parts
    beta1, beta2 = group["betas"]
    steps_R += 1
    mean_RD.lerp_(grad_RD, 1 - beta1)
    square_RD.mul_(beta2).addcmul_(grad_RD, grad_RD, value=1 - beta2)
    # In float64, since 1 - 0.999 ** step keeps only four digits in float32.
    rate_R1 = (group["lr"] / (1 - beta1 ** steps_R.double()))[:, None].to(grad_RD.dtype)
    root_R1 = (1 - beta2 ** steps_R.double()).sqrt()[:, None].to(grad_RD.dtype)
    denominator_RD = square_RD.sqrt().div_(root_R1).add_(group["eps"])
    weight_RD.addcdiv_(mean_RD * rate_R1, denominator_RD, value=-1)


def _active_rows(grad_PD: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with a gradient that is not zero, and these gradients: [R], [R, D]."""
    rows_N, grad_ND = None, grad_PD
    if grad_PD.is_sparse:
        grad_PD = grad_PD.coalesce()
        rows_N, grad_ND = grad_PD.indices()[0], grad_PD.values()
    # Exact for the smallest numbers, as a norm is not, and several times as fast as counting or `any`.
    found_R = grad_ND.abs().amax(1).nonzero().squeeze(1)
    if rows_N is not None and len(found_R) == len(rows_N):
        return rows_N, grad_ND
    return found_R if rows_N is None else rows_N[found_R], grad_ND.index_select(0, found_R)


def _local(tensor: Tensor) -> Tensor:
    """This rank's rows of a tensor that FSDP2 shards by rows; any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def build_optimizer(model: nn.Module, config: OptimConfig) -> NullsAdamW:
    """One optimizer over all trainable parameters of a model, whether or not it is wrapped (DDP, FSDP2, compile).

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
