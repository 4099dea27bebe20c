"""Exported weights: a Hugging Face directory of a trained model, with its tokenizer and `nulls.json`.

The directory is published whole: it is written beside its path and renamed. Cost: the size of the weights (4 bytes a
parameter), written once and read once for the digest.
Run: ``export_weights(model, tokenizer, run_dir / WEIGHTS, {"snapshot": ..., "layout": ...})``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from registry.storage import new_directory, write_atomic
from training.distributed import parallel
from training.distributed.process_group import rank
from training.model.modeling_nulls import NullsForCausalLM
from training.serving.version import POINTER
from training.serving.version import weights_digest as weights_digest

WEIGHTS = "weights"


def whole_model(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return the unsharded model on rank 0, and None on the others; all ranks call it."""
    if not parallel.is_sharded(model):
        return model if rank() == 0 else None
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank():
        return None
    with torch.device("meta"):
        whole = NullsForCausalLM(model.config)
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    return whole


def export_weights(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path, nulls: Mapping[str, Any]
) -> str:
    """Write a Hugging Face directory with `nulls.json`, completely or not at all; an existing one is replaced.

    Args:
        model: saved as safetensors.
        tokenizer: saved beside it.
        directory: directory to write.
        nulls: content of `nulls.json`.

    Returns:
        SHA-256, as hex digits, over the weight file (over all in name order, where there are several).

    Raises:
        ServiceError: the disk is full or cannot be written.
    """
    with new_directory(directory) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(str(staging))
        write_atomic(staging / POINTER, json.dumps(nulls, indent=1).encode())
        return weights_digest(staging)
