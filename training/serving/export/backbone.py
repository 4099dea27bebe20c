"""Export the backbone of a model version as a plain Llama, for engines that do not know sinks.

Without a source a NULLs model is `LlamaForCausalLM` at the backbone's width, with the same names of tensors. So the
folder holds those tensors and a Llama's configuration, and its logits equal those of the model with sinks off, bit for
bit. It holds no row of any sink: there is nothing to refuse.

Cost: the weights are read twice, and the backbone is written once. Run: ``export_backbone(version, found, out)``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from registry.storage import write_atomic
from training.model.modeling_nulls import NullsConfig, NullsForCausalLM
from training.serving.export import model_card
from training.serving.export.folder import (
    CARD,
    TOKENIZER_FILES,
    Progress,
    facts_of,
    published,
    read_config,
    target_of,
)
from training.serving.in_force import InForce
from training.serving.version import ModelVersion
from training.serving.weights import local_weights
from training.sinks.mlp import SINK_PARAMETERS


def export_backbone(
    version: ModelVersion, found: InForce, directory: Path, *, progress: Progress = lambda _message, _share: None
) -> dict[str, Any]:
    """Write the backbone's folder, completely or not at all.

    Args:
        version: the version.
        found: what is revoked in it, which the facts state.
        directory: the new folder; an empty one may exist.
        progress: called with a message, and the share done if known.

    Returns:
        Facts of the export, with `directory`.

    Raises:
        UsageError, DamagedError, ServiceError: as for `training.serving.export.folder.export_version`.
    """
    logging.disable_progress_bar()  # transformers' own, for files; a command shows its own
    directory = target_of(directory)
    progress("comparing the weights with what was registered", None)
    weights = local_weights(version)
    read_config(weights, version)
    progress("reading the weights", None)
    model = backbone_of(NullsForCausalLM.from_checked_folder(weights))
    facts = facts_of(version, found)
    with published(directory) as staging:
        progress("writing the backbone", None)
        model.save_pretrained(staging)
        _name_theta(staging / "config.json")
        for path in sorted({path for pattern in TOKENIZER_FILES for path in weights.glob(pattern)}):
            shutil.copyfile(path, staging / path.name)
        write_atomic(staging / CARD, model_card.of_backbone(version, facts).encode())
    return facts | {"directory": str(directory), "num_revoked": 0}


def backbone_of(model: NullsForCausalLM) -> LlamaForCausalLM:
    """Return the model without its sinks, as a Llama that shares its tensors."""
    with torch.device("meta"):
        llama = LlamaForCausalLM(_llama_config(model.config))
    tensors = {
        name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[2] not in SINK_PARAMETERS
    }
    llama.load_state_dict(tensors, assign=True)
    llama.tie_weights()
    llama.generation_config = model.generation_config
    return llama.eval()


def _llama_config(config: NullsConfig) -> LlamaConfig:
    kept = LlamaConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    fields = {key: value for key, value in config.to_dict().items() if key in kept}
    return LlamaConfig(**fields, architectures=[LlamaForCausalLM.__name__])


def _name_theta(path: Path) -> None:
    """Write the base of the rotary embedding where transformers 4 and other engines read it, too."""
    config = json.loads(path.read_text())
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        write_atomic(path, (json.dumps(config | {"rope_theta": theta}, indent=2) + "\n").encode())
