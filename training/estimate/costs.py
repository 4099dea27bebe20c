"""What a run will take, before it runs: parameters, memory by part, FLOPs, checkpoints, hours. Pure functions.

Parameters and FLOPs are exact, and memory follows what autograd keeps, tensor by tensor: tests hold them to built
models, to torch's FLOP counter, and to the tensors saved and the peak of real forward and backward passes. What the
memory does not hold: CUDA's context, NCCL's buffers, a fragmented allocator (allow a tenth), padding of sinks, and
what torch.compile saves by fusing (up to half of the activations).

Cost: microseconds, whatever the model. Run: ``nulls train --model wiki --preset paper-1b --workers 8 --dry-run``, or
``memory_per_worker(config, vocab_size=49152, num_workers=8, parallel="fsdp", on_gpu=True)``.

Shapes: N tokens of a micro-batch, D model width, Q and V widths of all query and all key heads, I backbone neurons, K
sinks, G sources in a micro-batch, L layers, P pool neurons.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from registry.errors import UsageError
from training.config import ModelConfig, TrainConfig

Parallel = Literal["ddp", "fsdp"]
_FLOAT, _HALF = 4, 2
_STATE_BYTES = 4 * _FLOAT
"""A parameter's: weight, gradient and two moments, all float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """What a data sheet says."""

    peak_flops: float
    """Dense bfloat16 matrix products, FLOP/s."""
    memory_bytes: int


# NVIDIA's data sheets, the SXM form of each; a B200 as DGX has it.
GPUS = {
    "h100": Gpu(peak_flops=989e12, memory_bytes=80 * 10**9),
    "h200": Gpu(peak_flops=989e12, memory_bytes=141 * 10**9),
    "a100": Gpu(peak_flops=312e12, memory_bytes=80 * 10**9),
    "b200": Gpu(peak_flops=2250e12, memory_bytes=180 * 10**9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many there are, by what they are."""

    embeddings: int
    """The input table, and the output layer where it is not the same."""
    attention: int
    norms: int
    backbone_mlp: int
    pool: int
    """All sinks of all layers."""
    sinks: int
    """The sinks of one source."""

    @property
    def backbone(self) -> int:
        """All that every token uses: everything but the pool, embeddings included."""
        return self.embeddings + self.attention + self.norms + self.backbone_mlp

    @property
    def total(self) -> int:
        """All that is stored."""
        return self.backbone + self.pool

    @property
    def active(self) -> int:
        """All that a token can meet on its way: the backbone and its source's sinks, tables of embeddings whole."""
        return self.backbone + self.sinks

    def to_dict(self) -> dict[str, int]:
        """Fields and sums, for JSON."""
        sums = {"total": self.total, "backbone": self.backbone, "pool": self.pool, "active": self.active}
        return sums | dataclasses.asdict(self)


def count_parameters(model: ModelConfig, vocab_size: int) -> Parameters:
    """The parameters of a model, exactly; `vocab_size` is the tokenizer's."""
    width, layers = model.hidden_size, model.num_layers
    return Parameters(
        embeddings=vocab_size * width * (1 if model.tie_embeddings else 2),
        attention=layers * 2 * width * (_query_width(model) + _key_width(model)),
        norms=(2 * layers + 1) * width,
        backbone_mlp=layers * 3 * width * model.num_backbone,
        pool=layers * 3 * width * model.num_pool,
        sinks=layers * 3 * width * model.num_sinks,
    )


def state_bytes(model: ModelConfig, vocab_size: int) -> int:
    """Weights, gradients and moments of one copy of the model, with the pool's counts of steps."""
    return _STATE_BYTES * count_parameters(model, vocab_size).total + _step_bytes(model)


def choose_parallel(
    config: TrainConfig, num_workers: int, gpu_bytes: int | None, *, vocab_size: int | None = None
) -> Parallel:
    """How workers share the model: what `config.parallel` says, and the decision where it says `auto`.

    Args:
        config: of the run.
        num_workers: of the run.
        gpu_bytes: memory of one GPU; None on CPUs, which are not short of it.
        vocab_size: the tokenizer's; by default `config.vocab_size`.

    Returns:
        `fsdp` where weights, gradients and moments of a copy would take more than half of one GPU, else `ddp`.
    """
    if config.parallel != "auto":
        return "fsdp" if config.parallel == "fsdp" else "ddp"
    if num_workers < 2 or gpu_bytes is None:
        return "ddp"
    return "fsdp" if 2 * state_bytes(config.model, vocab_size or config.vocab_size) > gpu_bytes else "ddp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """What forward leaves for backward in one micro-batch, in bytes, and what is computed on the way back."""

    layers: int
    """Kept by all layers; with checkpointing, the input of each."""
    recomputed: int
    """With checkpointing: of the one layer that is being computed again."""
    attention: int
    """Masks and sums of the softmax of all layers, tables of the rotary embedding."""
    logits: int
    """Log-probabilities, which are kept, and two as large in the backward pass of the loss."""

    @property
    def kept(self) -> int:
        """What autograd holds at the end of forward."""
        return self.layers + self.attention + self.logits // 3

    @property
    def peak(self) -> int:
        """At the worst moment: in the loss, or in the layer computed again."""
        return self.layers + self.attention + max(self.logits, self.recomputed)


def activations(
    config: TrainConfig, *, vocab_size: int, num_sources: float, half: bool, masked: bool, checkpointing: bool
) -> Activations:
    """The activations of one micro-batch of one worker, every token with its sinks, by the model's eager code.

    Args:
        config: whose `micro_batch` and `context_length` count.
        vocab_size: the tokenizer's.
        num_sources: distinct ones in a micro-batch: each has its sinks gathered in every layer.
        half: whether autocast computes in bfloat16; the residual stream and the norms stay float32.
        masked: whether attention gets documents as a mask (on CPUs), which costs its square and keys and values
            repeated for each query head; else by their lengths.
        checkpointing: whether layers are computed again.
    """
    model, tokens = config.model, config.micro_batch * config.context_length
    layer = _layer_bytes(model, tokens, num_sources, half=half, masked=masked)
    # The last norm keeps its input, the normalised input and the root; the output layer keeps its own input.
    width = model.hidden_size
    last = tokens * (2 * _FLOAT * width + _FLOAT + (_HALF if half else _FLOAT) * width)
    inputs = _FLOAT * tokens * width * model.num_layers
    return Activations(
        layers=last + (inputs if checkpointing else model.num_layers * layer),
        recomputed=layer if checkpointing else 0,
        attention=_attention_bytes(config, half=half, masked=masked, num_layers=1 if checkpointing else None),
        logits=3 * _FLOAT * tokens * vocab_size,
    )


def _layer_bytes(model: ModelConfig, tokens: int, num_sources: float, *, half: bool, masked: bool) -> int:
    size = _HALF if half else _FLOAT
    width, query, key = model.hidden_size, _query_width(model), _key_width(model)
    # Each norm keeps its input, the normalised input and the root of the mean square, in float32.
    norms = 2 * (2 * _FLOAT * width + _FLOAT)
    # What is read by matrix products: once, or as a copy in bfloat16 for each of q, k, v, gate and up.
    inputs = size * width * (5 if half else 2)
    attention = size * (2 * query + 2 * (query if masked else key))
    backbone = size * 4 * model.num_backbone
    # The tokens brought together (in bfloat16, where that is computed in), neurons, and the outputs to be put back.
    sinks = size * (2 * width + 4 * model.num_sinks)
    gathered = size * 3 * num_sources * model.num_sinks * width
    return round(tokens * (norms + inputs + attention + backbone + sinks) + gathered)


def _attention_bytes(config: TrainConfig, *, half: bool, masked: bool, num_layers: int | None) -> int:
    model, tokens = config.model, config.micro_batch * config.context_length
    layers = num_layers or model.num_layers
    mask = tokens * config.context_length
    sums = _FLOAT * tokens * model.num_heads
    rotary = 2 * _FLOAT * tokens * model.head_size
    # SDPA makes numbers of a mask of booleans, in every layer anew.
    masks = mask + layers * mask * (_HALF if half else _FLOAT) if masked else 0
    return rotary + layers * sums + masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker (one GPU, where there are any), by part."""

    weights: int
    gradients: int
    moments: int
    gathered: int
    """FSDP: what two layers and the embeddings take when put together, and their gradients before they are shared."""
    cast: int
    """DDP: bfloat16 copies of the shared weights, which autocast makes."""
    plain: Activations
    checkpointed: Activations
    """With activation checkpointing."""

    def total(self, *, checkpointing: bool) -> int:
        """At the worst moment of a step."""
        fixed = self.weights + self.gradients + self.moments + self.gathered + self.cast
        return fixed + (self.checkpointed if checkpointing else self.plain).peak

    def to_dict(self) -> dict[str, Any]:
        """Parts and totals, for JSON."""
        totals = {"total": self.total(checkpointing=False), "total_checkpointed": self.total(checkpointing=True)}
        return dataclasses.asdict(self) | totals


def memory_per_worker(
    config: TrainConfig,
    *,
    vocab_size: int,
    num_workers: int,
    parallel: Parallel,
    on_gpu: bool,
    document_tokens: float | None = None,
) -> Memory:
    """What one worker holds at the worst moment of a step, with and without activation checkpointing.

    Args:
        config: of the run.
        vocab_size: the tokenizer's.
        num_workers: that share a step, and under `fsdp` the model.
        parallel: see `choose_parallel`.
        on_gpu: decides what `dtype: auto` is, and how attention keeps documents apart.
        document_tokens: of a document, on average: how many sources a micro-batch has; by default half a row.
    """
    model = config.model
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu)
    counts = count_parameters(model, vocab_size)
    shards = num_workers if parallel == "fsdp" else 1
    size = _HALF if half else _FLOAT
    layer = (counts.total - counts.embeddings) // model.num_layers
    # A worker's part of a step may be less than a micro-batch.
    rows = min(config.micro_batch, math.ceil(config.rows_per_step / num_workers))
    # A row holds so many documents, and on average half of one more at each end.
    per_row = config.context_length / (document_tokens or config.context_length / 2) + 1
    pair = (
        activations(
            dataclasses.replace(config, micro_batch=rows),
            vocab_size=vocab_size,
            num_sources=rows * per_row,
            half=half,
            masked=not on_gpu,
            checkpointing=checkpointing,
        )
        for checkpointing in (False, True)
    )
    plain, checkpointed = pair
    return Memory(
        weights=_FLOAT * counts.total // shards,
        gradients=_FLOAT * counts.total // shards,
        moments=(2 * _FLOAT * counts.total + _step_bytes(model)) // shards,
        gathered=size * (3 * layer + 2 * counts.embeddings) if parallel == "fsdp" else 0,
        cast=_HALF * _cast_weights(model, vocab_size) if half and parallel == "ddp" else 0,
        plain=plain,
        checkpointed=checkpointed,
    )


def checkpoint_bytes(model: ModelConfig, vocab_size: int) -> int:
    """A checkpoint on disk: weights and moments in float32; tied embeddings are in it under both their names."""
    tied = _FLOAT * vocab_size * model.hidden_size if model.tie_embeddings else 0
    return 3 * _FLOAT * count_parameters(model, vocab_size).total + _step_bytes(model) + tied


def weights_bytes(model: ModelConfig, vocab_size: int) -> int:
    """The exported weights: float32, tied embeddings once."""
    return _FLOAT * count_parameters(model, vocab_size).total


def sources_per_sink(model: ModelConfig, num_sources: int) -> float:
    """How many sources share a sink, on average: what isolation depends on most (`benchmarks/RESULTS.md`)."""
    return num_sources * model.num_sinks / model.num_pool


def sink_share(config: TrainConfig) -> float:
    """Share of the visits that go through their sinks: after dropout, and after the steps before sinks open."""
    return (1 - config.sink_dropout) * (1 - config.sinks_open_at)


def hours(
    num_tokens: int,
    flops_per_token: float,
    *,
    num_workers: int,
    gpu: Gpu | None = None,
    mfu: float = 0.4,
    tokens_per_second: float | None = None,
) -> float:
    """How long a run takes at a stated speed.

    Args:
        num_tokens: over all epochs.
        flops_per_token: active ones; `mfu` is on them.
        num_workers: GPUs at work.
        gpu: each of them.
        mfu: share of the peak that the step reaches, 0 to 1.
        tokens_per_second: of all workers together; counts instead of `gpu` and `mfu`.

    Raises:
        UsageError: a speed that is none.
    """
    if tokens_per_second is not None:
        if not tokens_per_second > 0:
            raise UsageError(f"--tokens-per-second {tokens_per_second}: expected more than 0")
        return num_tokens / tokens_per_second / 3600
    if gpu is None or not 0 < mfu <= 1:
        raise UsageError(f"--mfu {mfu}: expected more than 0 and at most 1, of a GPU of {sorted(GPUS)}")
    return num_tokens * flops_per_token / (gpu.peak_flops * mfu * num_workers) / 3600


def _query_width(model: ModelConfig) -> int:
    return model.num_heads * model.head_size


def _key_width(model: ModelConfig) -> int:
    return model.num_kv_heads * model.head_size


def _step_bytes(model: ModelConfig) -> int:
    """The optimizer's counts: one for each row of each of a layer's three pool matrices."""
    return 3 * _FLOAT * model.num_layers * model.num_pool


def _cast_weights(model: ModelConfig, vocab_size: int) -> int:
    """Weights of matrix products that are cast whole: the output layer's too, the pool's not."""
    counts = count_parameters(model, vocab_size)
    return counts.attention + counts.backbone_mlp + vocab_size * model.hidden_size
