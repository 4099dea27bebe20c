"""Estimate a run's costs before it starts: parameters, memory by part, FLOPs, checkpoints, hours. Pure functions.

Parameters and FLOPs are exact. Memory is counted tensor by tensor, as autograd keeps them. Tests compare both with
built models, with torch's FLOP counter, and with the saved tensors and the peak of real forward and backward passes.
The memory does not include CUDA's context, NCCL's buffers, fragmentation of the allocator (allow a tenth) and padding
of sinks; and torch.compile saves up to half of the activations by fusing.

Cost: microseconds for any model.

Run: ``nulls train --model wiki --preset paper-1b --workers 8 --dry-run``, or
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
"""Bytes of a parameter's weight, gradient and two moments, all float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU's figures from its data sheet."""

    peak_flops: float
    """Dense bfloat16 matrix products, FLOP/s."""
    memory_bytes: int


# NVIDIA's data sheets, the SXM form of each; the B200 as in a DGX.
GPUS = {
    "h100": Gpu(peak_flops=989e12, memory_bytes=80 * 10**9),
    "h200": Gpu(peak_flops=989e12, memory_bytes=141 * 10**9),
    "a100": Gpu(peak_flops=312e12, memory_bytes=80 * 10**9),
    "b200": Gpu(peak_flops=2250e12, memory_bytes=180 * 10**9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of parameters, by part of the model."""

    embeddings: int
    """The input embedding, and the output layer unless the two are tied."""
    attention: int
    norms: int
    backbone_mlp: int
    pool: int
    """All sinks of all layers."""
    sinks: int
    """The sinks of one source."""

    @property
    def backbone(self) -> int:
        """Parameters that every token uses: all but the pool, embeddings included."""
        return self.embeddings + self.attention + self.norms + self.backbone_mlp

    @property
    def total(self) -> int:
        """All stored parameters."""
        return self.backbone + self.pool

    @property
    def active(self) -> int:
        """Parameters that a token can use: the backbone, with whole embeddings, and the sinks of its source."""
        return self.backbone + self.sinks

    def to_dict(self) -> dict[str, int]:
        """Return fields and sums, for JSON."""
        sums = {"total": self.total, "backbone": self.backbone, "pool": self.pool, "active": self.active}
        return sums | dataclasses.asdict(self)


def count_parameters(model: ModelConfig, vocab_size: int) -> Parameters:
    """Count the parameters of a model, exactly; `vocab_size` is the tokenizer's."""
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
    """Return the bytes of weights, gradients and moments of one copy of the model, with the pool's step counts."""
    return _STATE_BYTES * count_parameters(model, vocab_size).total + _step_bytes(model)


def choose_parallel(
    config: TrainConfig, num_workers: int, gpu_bytes: int | None, *, vocab_size: int | None = None
) -> Parallel:
    """Return how workers share the model: `config.parallel`, or the decision where that is `auto`.

    Args:
        config: the run's.
        num_workers: the run's.
        gpu_bytes: memory of one GPU; None on CPUs, whose memory is not the limit.
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
    """Bytes that the forward pass of one micro-batch keeps for backward, and that backward computes again."""

    layers: int
    """Kept by all layers; with checkpointing, only the input of each."""
    recomputed: int
    """With checkpointing, the one layer that is being computed again; else 0."""
    attention: int
    """Masks and softmax sums of all layers, tables of the rotary embedding."""
    logits: int
    """Log-probabilities, which are kept, and two tensors as large in the backward pass of the loss."""

    @property
    def kept(self) -> int:
        """Bytes that autograd holds at the end of the forward pass."""
        return self.layers + self.attention + self.logits // 3

    @property
    def peak(self) -> int:
        """Bytes at the worst moment: in the loss, or while a layer is computed again."""
        return self.layers + self.attention + max(self.logits, self.recomputed)


def activations(
    config: TrainConfig, *, vocab_size: int, num_sources: float, half: bool, masked: bool, checkpointing: bool
) -> Activations:
    """Return the activations of one micro-batch of one worker, in eager mode, where every token uses its sinks.

    Args:
        config: the run's; the rows are `micro_batch` of `context_length` tokens.
        vocab_size: the tokenizer's.
        num_sources: distinct sources in a micro-batch; each has its sinks gathered in every layer.
        half: whether autocast computes in bfloat16; the residual stream and the norms stay float32.
        masked: whether attention takes documents as a mask (on CPUs), which costs the square of the row's length, and
            keys and values repeated for each query head; else it takes their lengths.
        checkpointing: whether layers are computed again in the backward pass.
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
    # The inputs of matrix products: kept once, or as a bfloat16 copy for each of q, k, v, gate and up.
    inputs = size * width * (5 if half else 2)
    attention = size * (2 * query + 2 * (query if masked else key))
    backbone = size * 4 * model.num_backbone
    # The tokens gathered by source (in bfloat16, if that is the arithmetic), neurons, and the outputs to scatter.
    sinks = size * (2 * width + 4 * model.num_sinks)
    gathered = size * 3 * num_sources * model.num_sinks * width
    return round(tokens * (norms + inputs + attention + backbone + sinks) + gathered)


def _attention_bytes(config: TrainConfig, *, half: bool, masked: bool, num_layers: int | None) -> int:
    model, tokens = config.model, config.micro_batch * config.context_length
    layers = num_layers or model.num_layers
    mask = tokens * config.context_length
    sums = _FLOAT * tokens * model.num_heads
    rotary = 2 * _FLOAT * tokens * model.head_size
    # SDPA converts a boolean mask to numbers, in every layer again.
    masks = mask + layers * mask * (_HALF if half else _FLOAT) if masked else 0
    return rotary + layers * sums + masks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker (of one GPU, where there are GPUs), by part."""

    weights: int
    gradients: int
    moments: int
    gathered: int
    """FSDP: two gathered layers and the gathered embeddings, and gradients before they are scattered."""
    cast: int
    """DDP: autocast's bfloat16 copies of the shared weights."""
    plain: Activations
    checkpointed: Activations
    """With activation checkpointing."""

    def total(self, *, checkpointing: bool) -> int:
        """Return the bytes at the worst moment of a step."""
        fixed = self.weights + self.gradients + self.moments + self.gathered + self.cast
        return fixed + (self.checkpointed if checkpointing else self.plain).peak

    def to_dict(self) -> dict[str, Any]:
        """Return parts and totals, for JSON."""
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
    """Return one worker's memory at the worst moment of a step, with and without activation checkpointing.

    Args:
        config: the run's.
        vocab_size: the tokenizer's.
        num_workers: the workers that share a step, and under `fsdp` the model.
        parallel: see `choose_parallel`.
        on_gpu: decides the arithmetic of `dtype: auto`, and how attention separates documents.
        document_tokens: the mean length of a document, which gives the sources in a micro-batch; by default half a row.
    """
    model = config.model
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and on_gpu)
    counts = count_parameters(model, vocab_size)
    shards = num_workers if parallel == "fsdp" else 1
    size = _HALF if half else _FLOAT
    layer = (counts.total - counts.embeddings) // model.num_layers
    # A worker's part of a step may be less than a micro-batch.
    rows = min(config.micro_batch, math.ceil(config.rows_per_step / num_workers))
    # Documents that fit a row, and on average half of one more at each end.
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
    """Return the bytes of a checkpoint: weights and moments in float32, tied embeddings twice, under both names."""
    tied = _FLOAT * vocab_size * model.hidden_size if model.tie_embeddings else 0
    return 3 * _FLOAT * count_parameters(model, vocab_size).total + _step_bytes(model) + tied


def weights_bytes(model: ModelConfig, vocab_size: int) -> int:
    """Return the bytes of the exported weights: float32, tied embeddings once."""
    return _FLOAT * count_parameters(model, vocab_size).total


def sources_per_sink(model: ModelConfig, num_sources: int) -> float:
    """Return how many sources share a sink on average; isolation depends on it most (`benchmarks/RESULTS.md`).

    Reserved sources and their sinks do not count: those are not shared.
    """
    layout = model.layout()
    return max(0, num_sources - len(layout.reserved)) * model.num_sinks / layout.num_open


def sink_share(config: TrainConfig) -> float:
    """Return the share of visits that use their sinks: after dropout, and after the steps before sinks open."""
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
    """Return the hours that a run takes at a stated speed.

    Args:
        num_tokens: over all epochs.
        flops_per_token: active FLOPs, which `mfu` is a share of.
        num_workers: the number of GPUs.
        gpu: the kind of each GPU.
        mfu: the share of the peak that a step reaches, 0 to 1.
        tokens_per_second: all workers together; used instead of `gpu` and `mfu`.

    Raises:
        UsageError: the speed is out of range, or none is given.
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
    """Return the bytes of the optimizer's step counts: one for each row of each of a layer's three pool matrices."""
    return 3 * _FLOAT * model.num_layers * model.num_pool


def _cast_weights(model: ModelConfig, vocab_size: int) -> int:
    """Return the number of weights that autocast copies whole: those of the output layer too, not of the pool."""
    counts = count_parameters(model, vocab_size)
    return counts.attention + counts.backbone_mlp + vocab_size * model.hidden_size
