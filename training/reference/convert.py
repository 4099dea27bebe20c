"""Convert a reference checkpoint to a Hugging Face directory of a `NullsForCausalLM`, tensor by tensor.

litgpt's fused matrices are split: attention's input into queries, keys and values (litgpt's rotary layout is the same
as Hugging Face's: the two halves of a head rotate), and the MLP's into the backbone, its first `num_backbone` neurons,
and the pool, the other neurons. The pool's down projection is stored transposed, one row a sink. Nothing is rounded:
each tensor keeps its type.

The checkpoint is memory-mapped and opened again for each shard of 256 MB, so that its pages are given back. Memory
never holds more than one shard's pages and those of its tensors that had to be copied.

Cost for 0.53 GB: 7.7 s on a busy core, 150 MB of memory and 256 MB of mapped pages, besides torch's own 400 MB.

Run: ``convert(inspect(release), scheme, directory, tokenizer=..., mask_ids=..., nulls=...)``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from registry.errors import DamagedError, InputError
from registry.storage import new_directory, write_atomic
from training.model.modeling_nulls import NullsConfig, NullsForCausalLM
from training.reference.release import WEIGHTS_FILE, ReferenceModel, open_weights, qkv_name
from training.serving.version import POINTER
from training.sinks.layout import SinkLayout
from training.sinks.mask_ids import MaskIds

SHARD_BYTES = 256 << 20
_INDEX = "model.safetensors.index.json"

Tensors = Mapping[str, Tensor]
Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Piece:
    """One tensor of the result.

    Attributes:
        name: its name in a NullsForCausalLM.
        take: makes it from the checkpoint's tensors; a view where that is possible.
    """

    name: str
    take: Callable[[Tensors], Tensor]


def nulls_config(found: ReferenceModel, scheme: str, tokenizer: PreTrainedTokenizerFast) -> NullsConfig:
    """Return the configuration of the converted model."""
    layout: SinkLayout = found.layout(scheme)
    return NullsConfig(
        architectures=[NullsForCausalLM.__name__],
        dtype=found.dtype,
        vocab_size=found.vocab_size,
        hidden_size=found.hidden_size,
        num_hidden_layers=found.num_layers,
        num_attention_heads=found.num_heads,
        num_key_value_heads=found.num_kv_heads,
        head_dim=found.head_size,
        intermediate_size=layout.num_backbone,
        num_pool=layout.num_pool,
        num_sinks=layout.num_sinks,
        sink_scheme=layout.scheme,
        sink_probability=layout.probability,
        rms_norm_eps=found.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": float(found.rope_base)},
        max_position_embeddings=found.context_length,
        tie_word_embeddings=found.is_tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def convert(
    found: ReferenceModel,
    scheme: str,
    directory: Path,
    *,
    tokenizer: PreTrainedTokenizerFast,
    mask_ids: MaskIds,
    nulls: Mapping[str, Any],
    extra: Callable[[Path], None] = lambda _: None,
    progress: Progress = lambda _message, _share: None,
) -> None:
    """Write the model's directory, whole or not at all; replace one that exists.

    Args:
        found: the checkpoint, as `inspect` returned it.
        scheme: `reference-int32` or `reference-int64`.
        directory: the directory to write.
        tokenizer: saved beside the weights.
        mask_ids: saved beside the weights, and covered by their digest.
        nulls: the content of `nulls.json`.
        extra: writes further files into the directory before it is published.
        progress: called with a message and the share that is done.

    Raises:
        DamagedError: a tensor holds values that are not finite, or the file has changed since `inspect`.
        InputError: the tokenizer has more entries than the model.
        ServiceError: the disk is full or cannot be written.
    """
    if len(tokenizer) > found.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} entries, expected {found.vocab_size} at most: it is another model's"
        )
    with new_directory(directory) as staging:
        nulls_config(found, scheme, tokenizer).save_pretrained(staging)
        tokenizer.save_pretrained(str(staging))
        _write_shards(found, staging, progress)
        mask_ids.save(staging)
        extra(staging)
        for path in staging.iterdir():
            path.chmod(0o644)  # safetensors creates files that only their owner can read
        write_atomic(staging / POINTER, json.dumps(nulls, indent=1).encode())


def pieces(found: ReferenceModel) -> list[Piece]:
    """Return all tensors of the result, in the order in which they are written."""
    outer = [
        Piece("model.embed_tokens.weight", lambda t: t["transformer.wte.weight"]),
        Piece("model.norm.weight", lambda t: t["transformer.ln_f.weight"]),
    ]
    if not found.is_tied:
        outer.append(Piece("lm_head.weight", lambda t: t["lm_head.weight"]))
    return outer + [piece for layer in range(found.num_layers) for piece in _layer_pieces(found, layer)]


def _layer_pieces(found: ReferenceModel, layer: int) -> Iterator[Piece]:
    source, target, split = f"transformer.h.{layer}.", f"model.layers.{layer}.", found.num_backbone

    def piece(name: str, source_name: str, cut: Callable[[Tensor], Tensor] = lambda whole: whole) -> Piece:
        return Piece(target + name, lambda tensors: cut(tensors[source + source_name]))

    yield piece("input_layernorm.weight", "norm_1.weight")
    for part, name in enumerate("qkv"):
        yield Piece(f"{target}self_attn.{name}_proj.weight", _attention_part(found, layer, part))
    yield piece("self_attn.o_proj.weight", "attn.proj.weight")
    yield piece("post_attention_layernorm.weight", "norm_2.weight")
    for name, fused in (("gate", "fc_1"), ("up", "fc_2")):
        yield piece(f"mlp.{name}_proj.weight", f"mlp.{fused}.weight", lambda whole: whole[:split])
        yield piece(f"mlp.sink_{name}", f"mlp.{fused}.weight", lambda whole: whole[split:])
    yield piece("mlp.down_proj.weight", "mlp.proj.weight", lambda whole: whole[:, :split])
    yield piece("mlp.sink_down", "mlp.proj.weight", lambda whole: whole[:, split:].T)


def _attention_part(found: ReferenceModel, layer: int, part: int) -> Callable[[Tensors], Tensor]:
    """Return a function that takes the queries (0), keys (1) or values (2) out of a layer's attention input."""
    per_group = found.num_heads // found.num_kv_heads

    def take(tensors: Tensors) -> Tensor:
        name = qkv_name(tensors, layer)
        sizes = [found.num_heads, found.num_kv_heads, found.num_kv_heads]
        if name.endswith("attn.qkv.weight"):
            return torch.split(tensors[name], [n * found.head_size for n in sizes])[part]
        # litgpt until 0.5.4 stored them by group: the queries of a group, its key, its value, the next group.
        grouped = tensors[name].view(found.num_kv_heads, (per_group + 2) * found.head_size, found.hidden_size)
        rows = [per_group * found.head_size, found.head_size, found.head_size]
        return torch.split(grouped, rows, dim=1)[part].flatten(0, 1)

    return take


def _write_shards(found: ReferenceModel, folder: Path, progress: Progress) -> None:
    """Write shards and their index, as transformers reads them."""
    shards = _shards(found)
    file_names: dict[str, str] = {}
    total = 0
    for number, chosen in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        total += _write_shard(found, chosen, folder / file_name)
        file_names |= dict.fromkeys((piece.name for piece in chosen), file_name)
        progress(f"writing weights ({number} of {len(shards)} shards)", number / len(shards))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_names.items()))}
    write_atomic(folder / _INDEX, json.dumps(index, indent=1).encode())


def _shards(found: ReferenceModel) -> list[list[Piece]]:
    """Return the pieces of each shard: as many as fit, at least one."""
    shards: list[list[Piece]] = []
    size = 0
    with open_weights(found.directory) as tensors:
        for piece in pieces(found):
            num_bytes = piece.take(tensors).nbytes
            if not shards or size + num_bytes > SHARD_BYTES:
                shards.append([])
                size = 0
            shards[-1].append(piece)
            size += num_bytes
    return shards


def _write_shard(found: ReferenceModel, chosen: Sequence[Piece], path: Path) -> int:
    """Write one shard; return the bytes of its tensors. The checkpoint is open, and its pages mapped, only here."""
    with open_weights(found.directory) as tensors:
        content = {piece.name: piece.take(tensors).contiguous() for piece in chosen}
    for name, tensor in content.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DamagedError(
                f"{found.directory / WEIGHTS_FILE}: {name} has values that are not finite; fetch it again"
            )
    save_file(content, path, metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in content.values())
