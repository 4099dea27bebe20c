"""DDP and FSDP2 give the results of one process: compared with an AdamW written here, row by row, in float64."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.training.distributed.ranks import run_ranks
from training.config import TrainConfig
from training.data.packing import IGNORED
from training.data.tokenizer import train_tokenizer
from training.distributed import parallel
from training.estimate.costs import Parallel
from training.model.modeling_nulls import NullsForCausalLM
from training.optim import build_optimizer, clip_gradients
from training.run.worker import TokenLoss, build_model
from training.sinks.layout import NO_SOURCE
from training.sinks.mlp import SINK_PARAMETERS

TOKENIZER = train_tokenizer(["some text to learn from"], 300)
# 45 sinks do not divide by two ranks; eps keeps a gradient of only rounding errors from becoming a step.
CONFIG = TrainConfig.preset(
    "demo",
    model={"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    | {"num_backbone": 16, "num_pool": 45, "num_sinks": 4},
    optim={"learning_rate": 1e-3, "sink_learning_rate_ratio": 2.0, "eps": 1e-5, "grad_clip": 0.5},
)
NUM_STEPS, RANKS, MICRO_BATCHES = 5, 2, 2
# (step, rank, micro-batch) -> source. 11 on one rank in one micro-batch; 12 on one rank in both; 13 in one micro-batch
# of both ranks; 14 returns after steps without it; step 3 has none at all; 15 never comes.
SOURCES = {
    (0, 0, 0): 11,
    (0, 1, 0): 14,
    (1, 1, 0): 12,
    (1, 1, 1): 12,
    (2, 0, 1): 13,
    (2, 1, 1): 13,
    (4, 0, 1): 14,
}


def made() -> NullsForCausalLM:
    torch.manual_seed(0)
    return build_model(CONFIG, TOKENIZER)


def micro_batch(step: int, rank: int, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two rows of eight tokens: the second half of each is a document of the source in SOURCES; uneven targets."""
    generator = torch.Generator().manual_seed(100 * step + 10 * rank + index)
    ids_BT = torch.randint(0, len(TOKENIZER), (2, 8), generator=generator)
    labels_BT = torch.randint(0, len(TOKENIZER), (2, 8), generator=generator)
    labels_BT[:, 6 + rank :] = IGNORED
    documents_BT = torch.arange(8).div(4, rounding_mode="floor").expand(2, 8)
    sources_BT = torch.full((2, 8), NO_SOURCE)
    sources_BT[:, 4:] = SOURCES.get((step, rank, index), NO_SOURCE)
    return ids_BT, labels_BT, documents_BT, sources_BT


def num_targets(step: int) -> int:
    """Over all ranks."""
    batches = [micro_batch(step, rank, index)[1] for rank in range(RANKS) for index in range(MICRO_BATCHES)]
    return sum(int((labels_BT != IGNORED).sum()) for labels_BT in batches)


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def rank_main(rank: int, folder: str) -> None:
    """Train under each kind of parallelism; rank 0 writes the weights and norms after every step."""
    variants = {
        "ddp": ("ddp", CONFIG),
        "fsdp": ("fsdp", CONFIG),
        "fsdp recomputed": ("fsdp", TrainConfig.from_dict(CONFIG.to_dict() | {"activation_checkpointing": True})),
        "ddp recomputed": ("ddp", TrainConfig.from_dict(CONFIG.to_dict() | {"activation_checkpointing": True})),
    }
    results = {}
    for name, (kind, config) in variants.items():
        model = made()
        net = parallel.wrap(TokenLoss(model, torch.float32), kind, config, torch.device("cpu"))
        assert parallel.is_sharded(model) == (kind == "fsdp")
        optimizer = build_optimizer(model, config.optim)
        results[name] = []
        for step in range(NUM_STEPS):
            optimizer.zero_grad()
            for index in range(MICRO_BATCHES):
                with parallel.syncing(net, index == MICRO_BATCHES - 1):
                    (net(*micro_batch(step, rank, index)) * (RANKS / num_targets(step))).backward()
                if kind == "fsdp" and index == 0:
                    assert all(p.grad is None for p in model.parameters()), "gradients were sharded, and so sent, early"
            norm = clip_gradients(model.parameters(), config.optim.grad_clip)
            optimizer.step()
            results[name].append({"norm": norm} | {key: full(value) for key, value in model.named_parameters()})
        if kind == "fsdp":
            pool = model.model.layers[0].mlp.sink_up
            assert pool.to_local().shape[0] in (22, 23), "the pool is not cut by rows"
    if rank == 0:
        torch.save(results, f"{folder}/results.pt")
    dist.barrier()


class Reference:
    """One process with autograd's gradients and a textbook AdamW in float64, with an optimizer for each sink."""

    def __init__(self) -> None:
        self.model = made()
        self.layout = self.model.config.layout
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        self.mean = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.square = {name: np.zeros(shape) for name, shape in shapes.items()}
        self.steps = {name: np.zeros(shape[0]) for name, shape in shapes.items()}

    def step(self, step: int) -> dict[str, Tensor]:
        self.model.zero_grad()
        loss = TokenLoss(self.model, torch.float32)
        for rank in range(RANKS):
            for index in range(MICRO_BATCHES):
                (loss(*micro_batch(step, rank, index)) / num_targets(step)).backward()
        gradients = {name: p.grad.double().numpy() for name, p in self.model.named_parameters()}
        norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        factor = min(1.0, CONFIG.optim.grad_clip / norm)
        for name, parameter in self.model.named_parameters():
            rows = self.active_rows(step, name)
            value = parameter.detach().double().numpy()
            value[rows] = self.updated(name, value[rows], gradients[name][rows] * factor, rows)
            parameter.data.copy_(torch.from_numpy(value))
        return {"norm": torch.tensor(norm)} | {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def active_rows(self, step: int, name: str) -> npt.NDArray[np.int64]:
        """The rows to update: of a pool, the sinks of the step's sources, from their masks; else all rows."""
        if name.rpartition(".")[2] not in SINK_PARAMETERS:
            return np.arange(len(self.steps[name]))
        sources = [source for (when, _, _), source in SOURCES.items() if when == step]
        layer = int(name.split(".")[2])
        return (
            np.unique(self.layout.select(np.array(sources, dtype=np.int64), layer)[0]) if sources else np.array([], int)
        )

    def updated(
        self, name: str, value: npt.NDArray[np.float64], gradient: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        optim = CONFIG.optim
        is_sink = name.rpartition(".")[2] in SINK_PARAMETERS
        rate = optim.learning_rate * (optim.sink_learning_rate_ratio if is_sink else 1.0)
        decay = 0.0 if is_sink or value.ndim < 2 else optim.weight_decay
        (beta1, beta2), mean, square = optim.betas, self.mean[name], self.square[name]
        self.steps[name][rows] += 1
        mean[rows] = beta1 * mean[rows] + (1 - beta1) * gradient
        square[rows] = beta2 * square[rows] + (1 - beta2) * gradient**2
        steps = self.steps[name][rows].reshape(-1, *[1] * (value.ndim - 1))
        corrected = np.sqrt(square[rows] / (1 - beta2**steps)) + optim.eps
        return value * (1 - rate * decay) - rate * mean[rows] / (1 - beta1**steps) / corrected


def test_both_wrappers_equal_one_process_and_leave_absent_sinks_alone(tmp_path: Path) -> None:
    run_ranks(RANKS, rank_main, str(tmp_path))
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    reference = Reference()
    pools = [name for name, _ in reference.model.named_parameters() if name.rpartition(".")[2] in SINK_PARAMETERS]
    before = {name: full(p) for name, p in reference.model.named_parameters()}
    initial = before
    for step in range(NUM_STEPS):
        expected = reference.step(step)
        assert expected["norm"] > CONFIG.optim.grad_clip, "the gradient was not clipped"
        for variant, history in results.items():
            got = history[step]
            for name, value in expected.items():
                torch.testing.assert_close(
                    got[name], value.to(got[name].dtype), atol=2e-6, rtol=1e-5, msg=f"{variant} step {step} {name}"
                )
            last = history[step - 1] if step else initial
            for name in pools:
                absent_P = torch.ones(len(got[name]), dtype=torch.bool)
                absent_P[torch.from_numpy(reference.active_rows(step, name))] = False
                assert torch.equal(got[name][absent_P], last[name][absent_P]), f"{variant} step {step} {name}"
                assert not torch.equal(got[name][~absent_P], last[name][~absent_P]) or absent_P.all()
    counts_P = reference.steps[pools[0]]
    assert {0.0, 1.0, 2.0} <= set(counts_P), "no sink was absent, present once, and present twice"


def dense(grad: Tensor | None) -> Tensor:
    """The whole gradient, dense, whether it is sharded over ranks or sparse."""
    assert grad is not None
    return grad.to_dense() if grad.is_sparse else full(grad)


def gradients(kind: Parallel, config: TrainConfig, device: torch.device) -> dict[str, Tensor]:
    """Loss and gradients of four micro-batches, whose sink plans differ in shape, on one rank."""
    model = made()
    net = parallel.wrap(TokenLoss(model, torch.float32), kind, config, device)
    loss = 0.0
    for step in (0, 1, 2, 3):
        value = net(*(tensor.to(device) for tensor in micro_batch(step, 0, 0)))
        value.backward()
        loss += float(value.detach())
    return {"loss": torch.tensor(loss)} | {name: dense(p.grad).cpu() for name, p in model.named_parameters()}


def compiled(rank: int) -> None:
    plain = gradients("ddp", CONFIG, torch.device("cpu"))
    config = TrainConfig.from_dict(CONFIG.to_dict() | {"compile": True, "activation_checkpointing": True})
    torch._dynamo.utils.counters.clear()
    for kind in ("ddp", "fsdp"):
        got = gradients(kind, config, torch.device("cpu"))
        for name, value in plain.items():
            torch.testing.assert_close(got[name], value, atol=1e-4, rtol=1e-4, msg=f"{kind} {name}")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"


@pytest.mark.slow
def test_compiled_and_recomputed_layers_give_the_same_gradients() -> None:
    run_ranks(1, compiled)


def mixed(rank: int) -> None:
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    exact = TrainConfig.from_dict(CONFIG.to_dict() | {"dtype": "float32"})
    plain = gradients("ddp", exact, device)
    for config, tolerance in ((exact, 1e-4), (CONFIG, 3e-2)):
        got = gradients("fsdp", config, device)
        assert all(value.dtype == torch.float32 for value in got.values()), "sums over ranks must be in float32"
        for name, value in plain.items():
            error = (got[name] - value).norm() / value.norm().clamp_min(1e-6)
            assert error < tolerance, f"{config.dtype} {name}: {error}"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_precision_under_nccl() -> None:
    run_ranks(1, mixed, backend="nccl")
