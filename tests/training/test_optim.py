"""The optimizer: torch's AdamW for shared parameters, and an Adam for each row of a pool, run when it is active."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from registry.errors import UsageError
from training.config import OptimConfig, Schedule
from training.optim import NullsAdamW, build_optimizer, clip_gradients, learning_rate_at
from training.sinks.layout import NO_SOURCE, SinkLayout
from training.sinks.mlp import build_plan, sink_mlp

LAYOUT = SinkLayout(num_pool=24, num_sinks=3)
CONFIG = OptimConfig(learning_rate=0.01, sink_learning_rate_ratio=2.0, weight_decay=0.1, betas=(0.9, 0.999))
POOL = ("sink_gate", "sink_up", "sink_down")


class TinyNulls(nn.Module):
    """One shared matrix, one vector and a pool: every kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.row_gradients = False
        generator = torch.Generator().manual_seed(0)
        self.shared = nn.Linear(6, 6, bias=False)
        self.norm = nn.Parameter(torch.ones(6))
        for name in POOL:
            setattr(self, name, nn.Parameter(torch.randn(LAYOUT.num_pool, 6, generator=generator)))
        with torch.no_grad():
            self.shared.weight.copy_(torch.randn(6, 6, generator=generator))

    def forward(self, hidden_TD: Tensor, source_ids_T: Tensor) -> Tensor:
        shared_TD = self.shared(hidden_TD) * self.norm
        plan = build_plan(source_ids_T, LAYOUT, 1)
        pool = self.sink_gate, self.sink_up, self.sink_down
        return shared_TD + sink_mlp(shared_TD, plan, 0, *pool, row_gradients=self.row_gradients)


def batch(step: int, rank: int, micro_batch: int) -> tuple[Tensor, Tensor]:
    """Four tokens: three of one source for each rank and micro-batch, new in every other step, and one without."""
    generator = torch.Generator().manual_seed(100 * step + 10 * rank + micro_batch)
    source = 1000 * (step // 2) + 10 * rank + micro_batch
    return torch.randn(4, 6, generator=generator), torch.tensor([source] * 3 + [NO_SOURCE])


def backward(model: nn.Module, step: int, *, ranks: int = 1, micro_batches: int = 1) -> None:
    """Compute the gradient averaged over ranks and micro-batches, in this one process."""
    model.zero_grad()
    for rank in range(ranks):
        for micro_batch in range(micro_batches):
            (model(*batch(step, rank, micro_batch)).square().mean() / (ranks * micro_batches)).backward()


def train(model: nn.Module, optimizer: NullsAdamW, steps: range) -> None:
    for step in steps:
        backward(model, step)
        optimizer.step()


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_each_row_is_an_adam_of_its_own() -> None:
    model = TinyNulls()
    optimizer = build_optimizer(model, CONFIG)
    lr = CONFIG.learning_rate * CONFIG.sink_learning_rate_ratio
    rows = {name: [row.clone().requires_grad_() for row in getattr(model, name).detach()] for name in POOL}
    adams = {name: [torch.optim.Adam([row], lr=lr, betas=CONFIG.betas) for row in rows[name]] for name in POOL}
    steps_active = torch.zeros(LAYOUT.num_pool)
    for step in range(12):
        backward(model, step)
        before = parameters_of(model)
        optimizer.step()
        for name in POOL:
            gradient_PD = getattr(model, name).grad
            active_P = (gradient_PD != 0).any(1)
            assert torch.equal(getattr(model, name)[~active_P], before[name][~active_P]), "an inactive row moved"
            assert (getattr(model, name)[active_P] != before[name][active_P]).any(1).all()
            for i in active_P.nonzero().flatten().tolist():
                rows[name][i].grad = gradient_PD[i].clone()
                adams[name][i].step()
            torch.testing.assert_close(getattr(model, name), torch.stack(rows[name]), atol=1e-6, rtol=1e-6)
        steps_active += (model.sink_gate.grad != 0).any(1)
    assert torch.equal(optimizer.state[model.sink_gate]["step"], steps_active)
    assert steps_active.min() == 0
    assert len(steps_active.unique()) >= 3, "rows had equal step counts: bias correction was not tested"


def test_shared_parameters_are_torchs_adamw_bit_for_bit() -> None:
    model, twin = TinyNulls(), TinyNulls()
    optimizer = build_optimizer(model, CONFIG)
    groups = [{"params": [twin.shared.weight]}, {"params": [twin.norm], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=CONFIG.learning_rate, betas=CONFIG.betas, weight_decay=0.1)
    start = parameters_of(model)
    for step in range(5):
        backward(model, step)
        twin.shared.weight.grad, twin.norm.grad = model.shared.weight.grad.clone(), model.norm.grad.clone()
        optimizer.step()
        reference.step()
        assert torch.equal(model.shared.weight, twin.shared.weight)
        assert torch.equal(model.norm, twin.norm)
    assert not torch.equal(model.norm, start["norm"])


def test_groups_follow_the_config() -> None:
    optimizer = build_optimizer(TinyNulls(), CONFIG)
    optimizer.set_learning_rate(0.5)
    described = [(len(g["params"]), g["weight_decay"], g["lr"], g["per_row"]) for g in optimizer.param_groups]
    assert described == [(1, 0.1, 0.5, False), (1, 0.0, 0.5, False), (3, 0.0, 1.0, True)]
    assert len(build_optimizer(nn.Linear(2, 2, bias=False), CONFIG).param_groups) == 1


def test_a_step_without_sources_does_not_change_the_pool() -> None:
    model = TinyNulls()
    optimizer = build_optimizer(model, CONFIG)
    train(model, optimizer, range(2))
    before, states = parameters_of(model), copy.deepcopy([optimizer.state[getattr(model, name)] for name in POOL])
    model.zero_grad()
    model(torch.randn(4, 6), torch.full((4,), NO_SOURCE)).sum().backward()
    optimizer.step()
    for name, state in zip(POOL, states, strict=True):
        assert torch.equal(getattr(model, name), before[name])
        for key, value in state.items():
            assert torch.equal(optimizer.state[getattr(model, name)][key], value)
            assert value.any()
    assert not torch.equal(model.shared.weight, before["shared.weight"])


def assert_continues_bit_exactly(
    model: TinyNulls, optimizer: NullsAdamW, resumed: TinyNulls, other: NullsAdamW
) -> None:
    at_checkpoint = parameters_of(model)
    train(model, optimizer, range(4, 8))
    train(resumed, other, range(4, 8))
    for name, parameter in parameters_of(model).items():
        assert torch.equal(parameter, parameters_of(resumed)[name]), name
        assert not torch.equal(parameter, at_checkpoint[name])


def test_state_dict_continues_bit_exactly(tmp_path: Path) -> None:
    model = TinyNulls()
    optimizer = build_optimizer(model, CONFIG)
    train(model, optimizer, range(4))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    resumed = copy.deepcopy(model)
    other = build_optimizer(resumed, OptimConfig(learning_rate=9.0, sink_learning_rate_ratio=9.0))
    other.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert_continues_bit_exactly(model, optimizer, resumed, other)


def test_distributed_checkpoint_continues_bit_exactly(tmp_path: Path) -> None:
    model = TinyNulls()
    optimizer = build_optimizer(model, CONFIG)
    train(model, optimizer, range(4))
    saved = get_optimizer_state_dict(model, optimizer)
    assert saved["state"]["sink_up"]["step"].shape == (LAYOUT.num_pool,)
    assert len(saved["state"]["sink_up"]["step"].unique()) > 1
    dcp.save({"optimizer": saved}, checkpoint_id=tmp_path, no_dist=True)

    resumed = copy.deepcopy(model)
    other = build_optimizer(resumed, CONFIG)
    loaded = {"optimizer": get_optimizer_state_dict(resumed, other)}
    assert not loaded["optimizer"]["state"]["sink_up"]["step"].any()
    assert torch.equal(resumed.sink_up, model.sink_up), "initialising the state changed the weights"
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(resumed, other, loaded["optimizer"])
    assert_continues_bit_exactly(model, optimizer, resumed, other)


def run_rank(rank: int, folder: str) -> None:
    """Take six steps of two micro-batches on one of two ranks, under DDP and FSDP2; write the results to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    replicated = TinyNulls()
    wrapped = DistributedDataParallel(replicated)
    sharded = TinyNulls()
    fully_shard(sharded)
    optimizers = build_optimizer(wrapped, CONFIG), build_optimizer(sharded, CONFIG)
    for step in range(6):
        wrapped.zero_grad()
        sharded.zero_grad()
        with wrapped.no_sync():
            (wrapped(*batch(step, rank, 0)).square().mean() / 2).backward()
        (wrapped(*batch(step, rank, 1)).square().mean() / 2).backward()
        for micro_batch in range(2):
            (sharded(*batch(step, rank, micro_batch)).square().mean() / 2).backward()
        norms = clip_gradients(wrapped.parameters(), 1.0), clip_gradients(sharded.parameters(), 1.0)
        torch.testing.assert_close(*norms)
        for optimizer in optimizers:
            optimizer.step()
    steps = optimizers[1].state[sharded.sink_gate]["step"]
    assert steps.to_local().numel() == LAYOUT.num_pool // 2
    result = {
        "ddp": parameters_of(replicated),
        "fsdp": {name: value.full_tensor() for name, value in parameters_of(sharded).items()},
        "ddp steps": optimizers[0].state[replicated.sink_gate]["step"],
        "fsdp steps": steps.full_tensor(),
    }
    # The same helpers save and load FSDP2's state.
    state = get_optimizer_state_dict(sharded, optimizers[1])
    set_optimizer_state_dict(sharded, optimizers[1], state)
    assert torch.equal(optimizers[1].state[sharded.sink_gate]["step"].full_tensor(), result["fsdp steps"])
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_active_rows_are_the_union_over_ranks_and_micro_batches(tmp_path: Path) -> None:
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    model = TinyNulls()
    optimizer = build_optimizer(model, CONFIG)
    for step in range(6):
        backward(model, step, ranks=2, micro_batches=2)
        assert clip_gradients(model.parameters(), 1.0) > 1, "the gradient was not clipped"
        optimizer.step()
    expected, steps_P = parameters_of(model), optimizer.state[model.sink_gate]["step"]
    assert steps_P.min() < steps_P.max()
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for kind in ("ddp", "fsdp"):
            assert torch.equal(result[f"{kind} steps"], steps_P)
            for name, value in result[kind].items():
                torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=f"{kind} {name}")


def test_clipping_scales_to_the_norm_and_keeps_zero_rows() -> None:
    model = TinyNulls()
    backward(model, 0)
    zero_P = (model.sink_up.grad == 0).all(1)
    norm = clip_gradients(model.parameters(), 0.0)
    assert norm == clip_gradients(model.parameters(), 0.25), "0 must not clip"
    assert norm > 0.25
    after = torch.sqrt(sum(parameter.grad.square().sum() for parameter in model.parameters()))
    torch.testing.assert_close(after, torch.tensor(0.25), atol=1e-4, rtol=0)
    assert torch.equal((model.sink_up.grad == 0).all(1), zero_P)
    assert 0 < zero_P.sum() < len(zero_P)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # Two steps of warm-up, then the fall from 2.0 to a tenth of it over steps 2 to 6, or 4 to 6.
        ("cosine", [1.0, 2.0, 2.0, 1.7364, 1.1, 0.4636, 0.2]),
        ("wsd", [1.0, 2.0, 2.0, 2.0, 2.0, 1.1, 0.2]),
        ("constant", [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]),
    ],
)
def test_schedules(schedule: Schedule, expected: list[float]) -> None:
    config = OptimConfig(learning_rate=2.0, warmup_steps=2, schedule=schedule, min_ratio=0.1, decay_share=2 / 7)
    assert [learning_rate_at(step, 7, config) for step in range(7)] == pytest.approx(expected, abs=1e-4)


@given(st.sampled_from(["cosine", "wsd", "constant"]), st.integers(1, 300), st.integers(0, 300), st.floats(0.0, 1.0))
@settings(deadline=None)
def test_schedules_stay_in_range(schedule: Schedule, total_steps: int, warmup_steps: int, min_ratio: float) -> None:
    config = OptimConfig(warmup_steps=warmup_steps, schedule=schedule, min_ratio=min_ratio)
    rates = [learning_rate_at(step, total_steps, config) for step in range(total_steps)]
    peak = config.learning_rate
    assert all(0 < rate <= peak * (1 + 1e-12) or rate == pytest.approx(min_ratio * peak) for rate in rates)
    after = rates[warmup_steps:]
    assert after == sorted(after, reverse=True)


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0.0},
        {"sink_learning_rate_ratio": 0.0},
        {"weight_decay": -1.0},
        {"betas": (0.9, 1.0)},
        {"schedule": "linear"},
        {"min_ratio": 2.0},
        {"grad_clip": -1.0},
    ],
)
def test_a_bad_config_names_its_field(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        OptimConfig(**fields)  # type: ignore[arg-type]
