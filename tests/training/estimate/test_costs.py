"""Estimates against measurements: built models, torch's FLOP counter, saved tensors, peaks, files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from registry.errors import UsageError
from training.checkpoint import dcp
from training.checkpoint.dcp import RunState
from training.config import TrainConfig
from training.data.packing import LoaderState
from training.estimate import costs
from training.estimate.costs import GPUS, Gpu, Parallel, activations, choose_parallel, count_parameters
from training.model.modeling_nulls import NullsForCausalLM
from training.optim import build_optimizer
from training.presets import PRESETS
from training.run.worker import TokenLoss, build_model
from training.sinks.mlp import SINK_PARAMETERS

VOCAB = 1000
# No two sizes are equal, so that no part can be mistaken for another.
CONFIG = TrainConfig.preset(
    "demo",
    context_length=128,
    micro_batch=4,
    vocab_size=VOCAB,
    model={"hidden_size": 96, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2, "head_dim": 32}
    | {"num_backbone": 80, "num_pool": 512, "num_sinks": 40},
)
NUM_SOURCES = 8


class Tokenizer:
    """The part of a tokenizer that `build_model` uses."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def built(config: TrainConfig) -> NullsForCausalLM:
    torch.manual_seed(0)
    return build_model(config, Tokenizer(config.vocab_size)).train()  # type: ignore[arg-type]


def batch(config: TrainConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """NUM_SOURCES documents of equal length, each with its own source; every position has a target."""
    rows, length = config.micro_batch, config.context_length
    input_ids = torch.randint(config.vocab_size, (rows, length))
    per_row = NUM_SOURCES // rows
    document_ids = (torch.arange(length) * per_row // length).expand(rows, length).contiguous()
    return input_ids, input_ids, document_ids, document_ids + per_row * torch.arange(rows)[:, None]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_parameters_are_those_of_the_built_model(name: str) -> None:
    config = TrainConfig.preset(name)
    with torch.device("meta"):
        model = built(config)
    sizes = {name: parameter.shape for name, parameter in model.named_parameters()}
    pool = {name: shape for name, shape in sizes.items() if name.rpartition(".")[2] in SINK_PARAMETERS}
    counts = count_parameters(config.model, config.vocab_size)
    assert len(pool) == 3 * config.model.num_layers
    assert counts.total == sum(shape.numel() for shape in sizes.values())
    assert counts.pool == sum(shape.numel() for shape in pool.values())
    assert counts.backbone == counts.total - counts.pool
    assert counts.active == counts.backbone + sum(config.model.num_sinks * shape[1] for shape in pool.values())
    parts = {"embeddings": ("embed_tokens", "lm_head"), "attention": ("self_attn",), "norms": ("norm",)}
    for part, names in parts.items():
        found = sum(shape.numel() for name, shape in sizes.items() if any(layer in name for layer in names))
        assert getattr(counts, part) == found, part


def test_the_sizes_that_the_presets_are_named_for() -> None:
    sizes = {}
    for name in PRESETS:
        config = TrainConfig.preset(name)
        sizes[name] = count_parameters(config.model, config.vocab_size)
    assert abs(sizes["small"].active - 125e6) < 3e6
    assert abs(sizes["paper-1b"].total - 1.0e9) < 0.01e9
    assert abs(sizes["paper-1b-aligned"].total - 1.0e9) < 0.06e9
    assert sizes["demo"].total < 3e6


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_torch_counts(tied: bool) -> None:
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, tie_embeddings=tied))
    model = built(config)
    model.set_attn_implementation("eager")  # torch does not count its fused attention on CPUs
    # torch does not count grouped products: of groups of rows with a matrix each, or of two lists of groups.
    counted = {torch.ops.aten._grouped_mm: lambda a, b, *args, out_shape, **kwargs: 2 * a[0] * a[1] * b[-1]}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        TokenLoss(model, torch.float32)(*batch(config)).backward()
    tokens = config.micro_batch * config.context_length
    # Eager attention computes all keys, and masks the half that is not causal.
    expected = config.model.flops_per_token(VOCAB, config.context_length, attended=config.context_length)
    assert counter.get_total_flops() == tokens * expected
    half = config.model.flops_per_token(VOCAB, config.context_length)
    assert 0 < expected - half == 12 * 3 * 6 * 32 * config.context_length / 2


def saved_bytes(net: TokenLoss, inputs: tuple[Tensor, ...]) -> int:
    """Bytes that autograd keeps between forward and backward, each storage once, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # keeps it alive, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(*inputs)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def estimated(config: TrainConfig, **options: Any) -> costs.Activations:
    fields = {"num_sources": NUM_SOURCES, "half": False, "masked": True, "checkpointing": False} | options
    return activations(config, vocab_size=config.vocab_size, **fields)


@pytest.mark.parametrize(
    "change", [{}, {"num_layers": 6}, {"num_backbone": 320}, {"num_sinks": 200}, {"num_heads": 12}]
)
@pytest.mark.parametrize("half", [False, True])
def test_activations_are_the_tensors_that_autograd_saves(half: bool, change: dict[str, int]) -> None:
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **change))
    measured = saved_bytes(TokenLoss(built(config), torch.bfloat16 if half else torch.float32), batch(config))
    kept = estimated(config, half=half).kept
    if half:
        # Autograd saves the bfloat16 copies of weights too.
        memory = costs.memory_per_worker(
            dataclasses.replace(config, dtype="bfloat16"),
            vocab_size=VOCAB,
            num_workers=1,
            parallel="ddp",
            on_gpu=False,
        )
        kept += memory.cast
    assert measured == pytest.approx(kept, rel=0.02)


@pytest.mark.filterwarnings("ignore:Module is None:UserWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("change", [{"vocab_size": 8000}, {"vocab_size": 300}])
def test_the_peak_is_the_peak(checkpointing: bool, change: dict[str, int]) -> None:
    mem_tracker = pytest.importorskip("torch.distributed._tools.mem_tracker")
    config = dataclasses.replace(CONFIG, **change)
    model = built(config)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    inputs = batch(config)
    tracker = mem_tracker.MemTracker()
    tracker.track_external(model, *inputs)
    with tracker:
        TokenLoss(model, torch.float32)(*inputs).backward()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    counts = count_parameters(config.model, config.vocab_size)
    # Gradients grow while activations shrink: those of the embeddings are there when layers are computed again.
    least, most = 4 * counts.total, 8 * counts.total
    expected = estimated(config, checkpointing=checkpointing).peak
    assert 0.9 * (least + expected) < peak["Total"] < 1.1 * (most + expected)
    assert checkpointing == (estimated(config, checkpointing=checkpointing).recomputed > 0)


def test_checkpointing_keeps_little_of_a_deep_model() -> None:
    deep = TrainConfig.preset("paper-1b")
    options = {"num_sources": 40, "half": True, "masked": False}
    plain, again = (estimated(deep, **options, checkpointing=c) for c in (False, True))
    assert again.layers + again.recomputed < plain.layers / 5
    assert plain.logits == again.logits == 12 * 16 * 1024 * 49152


def test_state_and_checkpoints_are_as_large_as_estimated(tmp_path: Path) -> None:
    for tied in (True, False):
        config = dataclasses.replace(
            CONFIG, vocab_size=4000, model=dataclasses.replace(CONFIG.model, tie_embeddings=tied, num_pool=4096)
        )
        model = built(config)
        optimizer = build_optimizer(model, config.optim)
        TokenLoss(model, torch.float32)(*batch(config)).backward()
        optimizer.step()
        held = list(model.parameters())
        held += [parameter.grad for parameter in held if parameter.grad is not None]
        held += [v for state in optimizer.state.values() for v in state.values() if v.ndim]
        assert sum(t.nbytes for t in held) == costs.state_bytes(config.model, config.vocab_size)
        state = RunState(
            step=1, loader=LoaderState(snapshot="a" * 64, seed=0, epoch=0, row=0), config="x", tokenizer="y"
        )
        directory = tmp_path / f"{tied}" / "checkpoint-00000001"
        dcp.save(directory, model, optimizer, state)
        written = sum(path.stat().st_size for path in directory.iterdir())
        assert written == pytest.approx(costs.checkpoint_bytes(config.model, config.vocab_size), rel=0.02)
        model.save_pretrained(tmp_path / f"{tied}-weights")
        weights = sum(path.stat().st_size for path in (tmp_path / f"{tied}-weights").glob("*.safetensors"))
        assert weights == pytest.approx(costs.weights_bytes(config.model, config.vocab_size), rel=0.01)


@pytest.mark.parametrize(
    ("parallel", "num_workers", "gpu_bytes", "expected"),
    [
        ("auto", 8, 80 * 10**9, "ddp"),  # paper-1b: 16.1 GB of state
        ("auto", 8, 32 * 10**9, "fsdp"),
        ("auto", 8, 33 * 10**9, "ddp"),
        ("auto", 1, 16 * 10**9, "ddp"),
        ("auto", 8, None, "ddp"),
        ("fsdp", 1, None, "fsdp"),
        ("ddp", 8, 16 * 10**9, "ddp"),
    ],
)
def test_parallel_is_decided_by_the_size_of_a_copy(
    parallel: str, num_workers: int, gpu_bytes: int | None, expected: Parallel
) -> None:
    config = TrainConfig.preset("paper-1b", parallel=parallel)
    assert choose_parallel(config, num_workers, gpu_bytes) == expected


def test_a_larger_vocabulary_counts_in_the_decision() -> None:
    config = TrainConfig.preset("paper-1b")
    assert choose_parallel(config, 8, 33 * 10**9, vocab_size=100_000) == "fsdp"


def test_fsdp_shares_state_and_leaves_activations() -> None:
    config = TrainConfig.preset("paper-1b")
    options: dict[str, Any] = {"vocab_size": 49152, "on_gpu": True, "document_tokens": 700}
    ddp = costs.memory_per_worker(config, **options, num_workers=8, parallel="ddp")
    fsdp = costs.memory_per_worker(config, **options, num_workers=8, parallel="fsdp")
    assert ddp.weights + ddp.gradients + ddp.moments == 8 * (fsdp.weights + fsdp.gradients + fsdp.moments)
    assert fsdp.plain == ddp.plain
    assert (ddp.gathered, fsdp.cast) == (0, 0)
    assert fsdp.total(checkpointing=False) < ddp.total(checkpointing=False)
    assert ddp.total(checkpointing=True) < ddp.total(checkpointing=False) < GPUS["h100"].memory_bytes


def test_a_worker_s_part_of_a_step_bounds_its_micro_batch() -> None:
    options: dict[str, Any] = {"vocab_size": VOCAB, "parallel": "ddp", "on_gpu": False}
    one, four, eight = (costs.memory_per_worker(CONFIG, **options, num_workers=n) for n in (1, 4, 8))
    assert (CONFIG.rows_per_step, CONFIG.micro_batch) == (16, 4)
    assert one.plain == four.plain
    assert eight.plain.layers == pytest.approx(four.plain.layers / 2, rel=0.01)


def test_hours_at_a_stated_speed() -> None:
    gpu = Gpu(peak_flops=1e12, memory_bytes=1)
    assert costs.hours(3600, 1e9, num_workers=2, gpu=gpu, mfu=0.5) == pytest.approx(1e-3)
    assert costs.hours(7200, 1e9, num_workers=2, tokens_per_second=1.0) == 2
    for wrong in ({"mfu": 0.0, "gpu": gpu}, {"mfu": 40.0, "gpu": gpu}, {"tokens_per_second": 0.0}):
        with pytest.raises(UsageError, match="expected more than 0"):
            costs.hours(1, 1.0, num_workers=1, **wrong)  # type: ignore[arg-type]
