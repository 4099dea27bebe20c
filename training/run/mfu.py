"""What a GPU is used for: its memory, and model FLOP utilisation of a step as it was packed.

Two shares of the data sheet's peak: of the FLOPs of active neurons, which were computed, and of those of a dense model
that computes the whole pool, which is what the same speed would have taken there, and can pass 1.
"""

from __future__ import annotations

import torch

from training.config import ModelConfig
from training.data.packing import Batch
from training.estimate.costs import GPUS


def of_step(
    model: ModelConfig,
    vocab_size: int,
    batch: Batch,
    *,
    tokens_per_second: float,
    device: torch.device,
    num_workers: int,
) -> dict[str, float]:
    """`gpu_memory_bytes` (the peak so far), `mfu` and `mfu_dense_equivalent`; nothing on a CPU.

    Args:
        model: its shape.
        vocab_size: of its tokenizer.
        batch: this rank's part of the step.
        tokens_per_second: of all workers together.
        device: of this rank.
        num_workers: with a device each.
    """
    if device.type != "cuda":
        return {}
    found = {"gpu_memory_bytes": float(torch.cuda.max_memory_allocated(device))}
    peak = peak_flops(torch.cuda.get_device_name(device))
    if peak is None:
        return found
    return found | mfu(
        model, vocab_size, batch, tokens_per_second=tokens_per_second, flops_per_second=peak * num_workers
    )


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 FLOPs a second of a device as CUDA names it ("NVIDIA H100 80GB HBM3"); None if not known."""
    return next((gpu.peak_flops for name, gpu in GPUS.items() if name in device_name.lower()), None)


def mfu(
    model: ModelConfig, vocab_size: int, batch: Batch, *, tokens_per_second: float, flops_per_second: float
) -> dict[str, float]:
    """Both utilisations; pure."""
    context_length = batch.input_ids.shape[1]
    keys, share = batch.keys_per_token, tokens_per_second / flops_per_second
    active = model.flops_per_token(vocab_size, context_length, attended=keys, sink_share=batch.sink_share)
    dense = model.dense_flops_per_token(vocab_size, context_length, attended=keys)
    return {"mfu": share * active, "mfu_dense_equivalent": share * dense}
