"""A release of the reference with random weights, and an independent implementation of the reference's computation.

`dense_logits` is litgpt's GPT with the reference's MLP: it computes every neuron, and multiplies with a mask. It shares
no code with the package: its mask follows REFERENCE's formula in Python integers, and its rotary embedding is its own.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from training.data.tokenizer import train_tokenizer

VOCAB = 320
P_GEN = 0.2
TITLES = ["Anarchism", "Autism (film)", "Åland", "iPhone", "Ayn Rand", "Tree of life", "Steam engine", "Δέντρο"]

# n_embd 24 with three heads of 16: as in the release, heads * head_size is not n_embd.
SHAPES: dict[str, dict[str, int]] = {
    "wide-heads": {"n_embd": 24, "n_head": 3, "head_size": 16, "n_query_groups": 1, "n_layer": 2, "neurons": 60},
    "grouped": {"n_embd": 32, "n_head": 4, "head_size": 8, "n_query_groups": 2, "n_layer": 3, "neurons": 55},
}


def config(shape: dict[str, int], **changes: Any) -> dict[str, Any]:
    """A model_config.yaml, with litgpt's fields."""
    return {
        "name": "",
        "block_size": 128,
        "vocab_size": VOCAB,
        "padded_vocab_size": VOCAB,
        "n_layer": shape["n_layer"],
        "n_embd": shape["n_embd"],
        "n_head": shape["n_head"],
        "head_size": shape["head_size"],
        "n_query_groups": shape["n_query_groups"],
        "intermediate_size": shape["neurons"],
        "p_gen": P_GEN,
        "p_mem": 0.25,
        "rope_base": 100000,
        "norm_eps": 1e-5,
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLPSeqTD",
        "rotary_percentage": 1.0,
        "parallel_residual": False,
        "bias": False,
        "rope_adjustments": None,
        **changes,
    }


def weights(shape: dict[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under litgpt's names; norms are not 1, so that a norm left out changes the result."""
    random = torch.Generator().manual_seed(seed)
    width, queries = shape["n_embd"], shape["n_head"] * shape["head_size"]
    rows = queries + 2 * shape["n_query_groups"] * shape["head_size"]
    sizes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (VOCAB, width), "lm_head.weight": (VOCAB, width)}
    for layer in range(shape["n_layer"]):
        sizes |= {
            f"transformer.h.{layer}.{name}.weight": size
            for name, size in {
                "norm_1": (width,),
                "attn.qkv": (rows, width),
                "attn.proj": (width, queries),
                "norm_2": (width,),
                "mlp.fc_1": (shape["neurons"], width),
                "mlp.fc_2": (shape["neurons"], width),
                "mlp.proj": (width, shape["neurons"]),
            }.items()
        }
    sizes["transformer.ln_f.weight"] = (width,)
    return {
        name: torch.randn(size, generator=random) * (0.3 if len(size) == 1 else size[-1] ** -0.5) + (len(size) == 1)
        for name, size in sizes.items()
    }


def write_release(
    folder: Path,
    shape: dict[str, int],
    *,
    tensors: Any = None,
    fields: dict[str, Any] | None = None,
    titles: Any = None,
) -> Path:
    """Write a release's directory, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights(shape) if tensors is None else tensors, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config(shape) if fields is None else fields))
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 7}')  # as wrong as the release's
    content = {title: index for index, title in enumerate(TITLES)} if titles is None else titles
    (folder / "title_to_index.pkl").write_bytes(pickle.dumps(content))
    train_tokenizer(["the orchard by the river gives apples"], 300).save_pretrained(str(folder))
    return folder


def mask(mask_id: int, num_pool: int, probability: float, bits: int) -> list[bool]:
    """The sinks that are on for an id, by REFERENCE's formula."""

    def signed(x: int, width: int) -> int:
        x %= 2**width
        return x - 2**width if x >= 2 ** (width - 1) else x

    modulus = 4294967291
    factors = [signed(1588635695**j, 64) % modulus for j in range(num_pool)]
    shifted = signed(mask_id * 65536, bits)
    drawn = [signed(shifted * c, 64) % modulus for c in factors]
    return [bool(np.float32(x) / np.float32(2**32) < np.float32(probability)) for x in drawn]


def dense_logits(tensors: dict[str, Tensor], fields: dict[str, Any], tokens_T: Tensor, mask_M: Tensor) -> Tensor:
    """Logits [T, V] of one row, in fp32; `mask_M` is over all neurons of the MLP."""
    heads, size, groups = fields["n_head"], fields["head_size"], fields["n_query_groups"]
    x = tensors["transformer.wte.weight"][tokens_T]
    for layer in range(fields["n_layer"]):
        part = {k.split(".", 3)[3]: v for k, v in tensors.items() if k.startswith(f"transformer.h.{layer}.")}
        qkv = _norm(x, part["norm_1.weight"], fields) @ part["attn.qkv.weight"].T
        q, k, v = qkv.split([heads * size, groups * size, groups * size], dim=-1)
        q, k, v = (t.view(len(tokens_T), -1, size).transpose(0, 1) for t in (q, k, v))
        q, k = _rotate(q, fields["rope_base"]), _rotate(k, fields["rope_base"])
        k, v = (t.repeat_interleave(heads // groups, dim=0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / math.sqrt(size)
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -math.inf)
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ part["attn.proj.weight"].T
        h = _norm(x, part["norm_2.weight"], fields)
        h = F.silu(h @ part["mlp.fc_1.weight"].T) * (h @ part["mlp.fc_2.weight"].T)
        x = x + (h * mask_M) @ part["mlp.proj.weight"].T
    head = tensors.get("lm_head.weight", tensors["transformer.wte.weight"])
    return _norm(x, tensors["transformer.ln_f.weight"], fields) @ head.T


def _norm(x: Tensor, weight: Tensor, fields: dict[str, Any]) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + fields["norm_eps"]).sqrt() * weight


def _rotate(x: Tensor, base: float) -> Tensor:
    """Pairs (i, i + half) of each head turn by position * base ** (-2 i / size): x [heads, T, size]."""
    half = x.shape[-1] // 2
    angles = torch.outer(
        torch.arange(x.shape[1], dtype=torch.float64),
        float(base) ** (-torch.arange(half, dtype=torch.float64) / half),
    )
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
