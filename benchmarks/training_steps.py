"""The parts `sinks`, `step` and `pool` of `training.py`: one MLP, whole steps beside peers, growing pools."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import torch
from timing import interleaved, milliseconds, ratio
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import LlamaConfig, LlamaForCausalLM

from training.config import ModelConfig, OptimConfig, TrainConfig
from training.model.modeling_nulls import NullsConfig, NullsForCausalLM, NullsMLP
from training.optim import build_optimizer, clip_gradients
from training.run.worker import TokenLoss
from training.sinks.layout import SinkLayout
from training.sinks.mlp import SinkPlan, build_plan, dense_masked_mlp, sink_mlp, token_mask
from training.sinks.sparse_grads import use_row_gradients

DOCUMENT_TOKENS = 128
_VOCABULARY = 49152


def sinks(turns: int = 7) -> dict[str, Any]:
    """Time the MLP of one layer: `dense_over_sinks`, `sinks_over_backbone`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, num_tokens, layout = 576, 2048, SinkLayout(num_backbone=512, num_pool=8192, num_sinks=128)
    source_ids_T = torch.arange(num_tokens // 128).repeat_interleave(128)
    plan, mask_TP = build_plan(source_ids_T, layout, 1), token_mask(source_ids_T, layout, 0)
    hidden_TD, weights_TD = torch.randn(num_tokens, width, requires_grad=True), torch.randn(num_tokens, width)
    backbone, pool = (
        [(0.02 * torch.randn(size, width)).requires_grad_() for _ in range(3)]
        for size in (layout.num_backbone, layout.num_pool)
    )

    def backward(out_TD: torch.Tensor) -> None:
        for leaf in (hidden_TD, *backbone, *pool):
            leaf.grad = None
        out_TD.backward(weights_TD)

    def backbone_mlp() -> torch.Tensor:
        gate, up, down = backbone
        return (silu(hidden_TD @ gate.T) * (hidden_TD @ up.T)) @ down

    seconds = interleaved(
        {
            "backbone": lambda: backward(backbone_mlp()),
            "sinks": lambda: backward(backbone_mlp() + sink_mlp(hidden_TD, plan, 0, *pool, row_gradients=True)),
        },
        turns,
    )
    dense = interleaved({"dense": lambda: backward(backbone_mlp() + dense_masked_mlp(hidden_TD, mask_TP, *pool))}, 2)
    return {
        "dense_over_sinks": round(statistics.median(dense["dense"]) / statistics.median(seconds["sinks"]), 2),
        "sinks_over_backbone": ratio(seconds["sinks"], seconds["backbone"]),
        **milliseconds(seconds | dense),
    }


class DenseMLP(NullsMLP):
    """An MLP that computes every neuron of the pool and masks it, as the reference implementation does."""

    def forward(self, hidden_BTD: Tensor, sink_plan: SinkPlan | None = None) -> Tensor:
        backbone_BTD = super().forward(hidden_BTD)
        if sink_plan is None:
            return backbone_BTD
        pool = self.sink_gate, self.sink_up, self.sink_down
        hidden_TD = hidden_BTD.flatten(0, 1)
        device = hidden_TD.device.type
        # The mask has the dtype of the products; otherwise it would turn them into float32.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_TD.dtype
        shape = len(sink_plan.source_ids_G), len(pool[0])
        mask_GP = hidden_TD.new_zeros(shape, dtype=dtype).scatter_(1, sink_plan.sinks_LGK[0], 1)
        counts_G = sink_plan.offsets_G.diff(prepend=sink_plan.offsets_G.new_zeros(1)).long()
        mask_TP = hidden_TD.new_zeros(len(hidden_TD), len(pool[0]), dtype=dtype)
        index_A = sink_plan.token_index_A
        mask_TP[index_A] = mask_GP.repeat_interleave(counts_G, 0, output_size=len(index_A))
        return backbone_BTD + dense_masked_mlp(hidden_TD, mask_TP, *pool).view_as(backbone_BTD)


def nulls(shape: ModelConfig, vocab_size: int, *, dense: bool = False) -> NullsForCausalLM:
    """Return a model of this shape; with `dense`, one that computes every neuron."""
    torch.manual_seed(0)
    config = NullsConfig(
        num_pool=shape.num_pool,
        num_sinks=shape.num_sinks,
        num_backbone=shape.num_backbone,
        **llama_shape(shape, vocab_size),
    )
    model = NullsForCausalLM(config).train()
    for module in model.modules():
        if dense and isinstance(module, NullsMLP):
            module.__class__ = DenseMLP
    return model


def llama_shape(shape: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """Return the settings that transformers' Llama and ours share."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


class LlamaLoss(nn.Module):
    """The loss of a Llama on the same rows; its attention covers the whole row."""

    def __init__(self, shape: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = shape.num_backbone + shape.num_sinks
        self.model = LlamaForCausalLM(LlamaConfig(intermediate_size=width, **llama_shape(shape, vocab_size))).train()

    def forward(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor, source_ids: Tensor) -> Tensor:
        logits = self.model(input_ids=input_ids, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")


def batch(
    vocab_size: int, rows: int, tokens: int, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return rows packed with documents of 128 tokens, each of its own source: inputs, labels, documents, sources."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, vocab_size, (rows, tokens), generator=generator)
    labels_BT = ids_BT.roll(-1, 1)
    document_ids_BT = (torch.arange(tokens) // DOCUMENT_TOKENS).expand(rows, tokens)
    sources_BT = document_ids_BT + 1000 * torch.arange(rows)[:, None] + 1_000_000 * seed
    ids, labels, documents, sources = (x.to(device) for x in (ids_BT, labels_BT, document_ids_BT, sources_BT))
    return ids, labels, documents, sources


def stepper(loss: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    """Return a function that runs one whole step."""
    optimizer = build_optimizer(loss, OptimConfig())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (loss(*inputs) / inputs[0].numel()).backward()
        clip_gradients(loss.parameters(), 1.0)
        optimizer.step()

    return step


def of_rows(model: NullsForCausalLM) -> TokenLoss:
    """Return the loss as the training loop computes it on CPUs, with sparse gradients of the pool."""
    use_row_gradients(model)
    return TokenLoss(model, torch.float32)


def step(turns: int = 3) -> dict[str, Any]:
    """Time a step of `small`: `dense_over_step`, `step_over_llama`."""
    torch.set_num_threads(1)
    shape, inputs = TrainConfig.preset("small").model, batch(_VOCABULARY, 2, 512)
    variants = {
        "step": stepper(of_rows(nulls(shape, _VOCABULARY)), inputs),
        "llama": stepper(LlamaLoss(shape, _VOCABULARY), inputs),
    }
    seconds = interleaved(variants, turns)
    # Last, when the others are freed: it needs 14 GB.
    variants.clear()
    dense_loss = TokenLoss(nulls(shape, _VOCABULARY, dense=True), torch.float32)
    dense = interleaved({"dense": stepper(dense_loss, inputs)}, max(1, turns - 1))
    return {
        "dense_over_step": round(statistics.median(dense["dense"]) / statistics.median(seconds["step"]), 2),
        "step_over_llama": ratio(seconds["step"], seconds["llama"]),
        **milliseconds(dense | seconds),
    }


def pool(turns: int = 5) -> dict[str, Any]:
    """Time a step of two layers of `small`: `growth` with the pool. The vocabulary is too small to hide it."""
    torch.set_num_threads(1)
    small = dataclasses.replace(TrainConfig.preset("small").model, num_layers=2)
    inputs = batch(4096, 2, 512)
    shapes = {f"{size}_sinks": dataclasses.replace(small, num_pool=size) for size in (8192, 131072)}
    steps = {name: stepper(of_rows(nulls(shape, 4096)), inputs) for name, shape in shapes.items()}
    seconds = interleaved(steps, turns)
    below, above = seconds.values()
    return {"growth": round(ratio(above, below) - 1, 3), **milliseconds(seconds)}
