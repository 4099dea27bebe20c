"""Exported weights: what leaves the training loop, a Hugging Face directory with `nulls.json` beside the weights.

digest = export(model, tokenizer, run_dir / WEIGHTS, {"snapshot": ..., "layout": ...})
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
)
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from registry.storage import new_directory, write_atomic
from training.distributed import parallel
from training.distributed.process_group import rank
from training.model.modeling_nulls import NullsForCausalLM

WEIGHTS = "weights"


NULLS_JSON = "nulls.json"


def whole_model(model: PreTrainedModel) -> PreTrainedModel | None:
    """The model in one piece on rank 0, None on the others; all ranks call it. Unsharded, it is the model itself."""
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
    """Writes a Hugging Face directory with `nulls.json`, whole or not at all; replaces one that is there.

    Args:
        model: saved as safetensors.
        tokenizer: saved beside it.
        directory: where.
        nulls: what `nulls.json` is to hold.

    Returns:
        SHA-256, as hex digits, over the weight file (over all in name order, where there are several).

    Raises:
        ServiceError: the disk is full or cannot be written.
    """
    with new_directory(directory) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(str(staging))
        write_atomic(staging / NULLS_JSON, json.dumps(nulls, indent=1).encode())
        return weights_digest(staging)


def weights_digest(directory: Path) -> str:
    """SHA-256, as hex digits, over the `*.safetensors` of a directory in name order."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
