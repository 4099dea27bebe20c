"""GPU memory and model FLOP utilisation (MFU) of a step, with the step's rows as they were packed.

MFU is reported twice, both as a share of the data sheet's peak: for the FLOPs of the active neurons, which were
computed, and for those of a dense model that computes the whole pool at the same speed. The second can pass 1.

Run: ``of_step(config.model, vocab_size, batch, tokens_per_second=..., device=..., num_workers=...)``. Cost:
microseconds.
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
    """Return `gpu_memory_bytes` (the peak so far), `mfu` and `mfu_dense_equivalent`; nothing on a CPU.

    Args:
        model: the model's shape.
        vocab_size: the tokenizer's.
        batch: this rank's part of the step.
        tokens_per_second: all workers together.
        device: this rank's.
        num_workers: the number of workers, each with its own device.
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
    """Return a GPU's dense bfloat16 FLOP/s by CUDA's name for it ("NVIDIA H100 80GB HBM3"); None if not known."""
    return next((gpu.peak_flops for name, gpu in GPUS.items() if name in device_name.lower()), None)


def mfu(
    model: ModelConfig, vocab_size: int, batch: Batch, *, tokens_per_second: float, flops_per_second: float
) -> dict[str, float]:
    """Return both utilisations; a pure function.

    Args:
        model, vocab_size, batch, tokens_per_second: see `of_step`.
        flops_per_second: the peak of all devices together.
    """
    context_length = batch.input_ids.shape[1]
    keys, share = batch.keys_per_token, tokens_per_second / flops_per_second
    active = model.flops_per_token(vocab_size, context_length, attended=keys, sink_share=batch.sink_share)
    dense = model.dense_flops_per_token(vocab_size, context_length, attended=keys)
    return {"mfu": share * active, "mfu_dense_equivalent": share * dense}
