"""Inspect a released NULLs checkpoint: sizes from its tensors, the rest from its configuration, both compared.

    lit_model.pth           tensors under litgpt's names, or under "model"; names may begin with `_orig_mod.`
    model_config.yaml       litgpt's fields, p_gen (the backbone's share of the MLP), p_mem (a sink's chance to be on)
    hyperparameters.yaml    `train.max_seq_length`; optional
    tokenizer files

Sizes come from the tensors; a note reports each that the configuration contradicts. Values that tensors do not show
(p_gen, p_mem, rope_base, norm_eps) must be in the configuration. Models that a NullsForCausalLM cannot represent
(biases, other norms, parallel residuals) are refused. The `config.json` of a release is not read: it is wrong there.

Tensors are memory-mapped, and only tensors are unpickled (`weights_only`).

Cost: reads the table of contents only, 0.1 s for 300 tensors.

Run: ``inspect(Path("release")).to_dict()``; `training.reference.convert` converts it.

Shapes: V vocabulary, D model width, M neurons of an MLP, Q query and K key columns (heads * head size).
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor

from registry.errors import DamagedError, InputError, RefusedError, UsageError
from training.sinks.layout import SinkLayout

WEIGHTS_FILE, CONFIG_FILE, HYPERPARAMETERS_FILE = "lit_model.pth", "model_config.yaml", "hyperparameters.yaml"
TRAINED_CONTEXT = 1024
"""Tokens of a row in the paper's runs; used where no hyperparameters.yaml says otherwise."""

_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)")
_IN_LAYER = (
    "norm_1.weight",
    "attn.qkv.weight",
    "attn.proj.weight",
    "norm_2.weight",
    "mlp.fc_1.weight",
    "mlp.fc_2.weight",
    "mlp.proj.weight",
)
_OUTER = ("transformer.wte.weight", "transformer.ln_f.weight", "lm_head.weight")
_MAX_NAMED = 5  # tensors in an error message

# litgpt fields that change the computation, and the values under which it is a Llama's.
_AS_LLAMA: dict[str, tuple[Any, ...]] = {
    "norm_class_name": ("RMSNorm",),
    "mlp_class_name": ("LLaMAMLP", "LLaMAMLPSeqTD"),
    "parallel_residual": (False,),
    "rotary_percentage": (1,),
    "bias": (False,),
    "attn_bias": (False, None),
    "lm_head_bias": (False, None),
    "shared_attention_norm": (False, None),
    "post_attention_norm": (False, None),
    "post_mlp_norm": (False, None),
    "norm_qk": (False, None),
    "scale_embeddings": (False, None),
    "attention_scores_scalar": (None,),
    "attention_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "sliding_window_size": (None,),
    "rope_adjustments": (None,),
    "rope_condense_ratio": (1, None),
    "n_expert": (0, None),
    "use_seqtd": (True, None),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceModel:
    """A checkpoint of the reference; sizes are those of its tensors."""

    directory: Path
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    """Width of a head; `num_heads * head_size` need not be `hidden_size` (15 * 128 and 960 in the release)."""
    num_backbone: int
    num_pool: int
    vocab_size: int
    """Rows of the embedding, padding included."""
    id_offset: int
    """The id of a source is its index in title_to_index plus this: the tokenizer's vocabulary, 49152."""
    probability: float
    """A sink's chance to be on, 0.013 in the release."""
    rope_base: float
    norm_eps: float
    context_length: int
    """Tokens of a row in training."""
    is_tied: bool
    """Whether the output layer is the embedding."""
    dtype: str
    num_parameters: int
    notes: tuple[str, ...]
    """Messages about sizes that differ between the configuration and the tensors."""

    @property
    def num_sinks(self) -> int:
        """Sinks of a source on average; under the reference's scheme the number varies."""
        return min(self.num_pool, max(1, round(self.probability * self.num_pool)))

    def layout(self, scheme: str) -> SinkLayout:
        """Return its sink layout under `reference-int32` or `reference-int64`."""
        return SinkLayout(
            num_backbone=self.num_backbone,
            num_pool=self.num_pool,
            num_sinks=self.num_sinks,
            scheme=scheme,
            probability=self.probability,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        fields = dataclasses.asdict(self) | {"directory": str(self.directory), "notes": list(self.notes)}
        return fields | {"num_sinks": self.num_sinks}


def inspect(directory: Path, *, num_backbone: int | None = None) -> ReferenceModel:
    """Inspect the checkpoint in `directory`.

    Args:
        directory: a release, with the files above.
        num_backbone: neurons of the backbone; by default p_gen's share of them.

    Raises:
        InputError: a file is missing, or is not YAML; a field is missing, or out of range.
        DamagedError: the weights are cut short, or tensors are missing or contradict one another.
        RefusedError: it holds more than tensors, or is a model that a NullsForCausalLM cannot represent.
        UsageError: no neuron is left for the backbone, or none for the pool.
    """
    fields = _read_yaml(directory / CONFIG_FILE)
    _refuse_other_models(fields)
    with open_weights(directory) as tensors:
        num_layers = _checked_names(directory, tensors)
        sizes = _checked_shapes(directory, tensors, num_layers)
        dtypes = collections.Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
        is_tied = is_tied_head(tensors)
        counted = {name: t.numel() for name, t in tensors.items() if not (is_tied and name == "lm_head.weight")}
    notes = _Notes(fields)
    notes.compare(n_layer=num_layers, n_embd=sizes.hidden, padded_vocab_size=sizes.vocab)
    notes.compare(intermediate_size=sizes.neurons)
    heads, kv_heads, head_size = _heads(fields, sizes.query, sizes.keys)
    notes.compare(n_head=heads, n_query_groups=kv_heads, head_size=head_size)
    if sizes.hidden % heads:
        raise RefusedError(f"a width of {sizes.hidden} is no multiple of {heads} heads, which transformers requires")
    backbone = num_backbone or int(sizes.neurons * _number(fields, "p_gen", least=0, most=1))
    if not 0 < backbone < sizes.neurons:
        raise UsageError(
            f"{backbone} of {sizes.neurons} neurons for the backbone leaves it or the pool empty: p_gen in "
            f"{CONFIG_FILE} must be the backbone's share; give the number with --num-backbone"
        )
    if len(dtypes) > 1:
        notes.add(f"tensors of several types ({dict(dtypes)}): the model loads as {dtypes.most_common(1)[0][0]}")
    return ReferenceModel(
        directory=directory,
        num_layers=num_layers,
        hidden_size=sizes.hidden,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        num_backbone=backbone,
        num_pool=sizes.neurons - backbone,
        vocab_size=sizes.vocab,
        id_offset=int(_number(fields, "vocab_size", least=0, most=2**31, default=sizes.vocab)),
        probability=_number(fields, "p_mem", least=0, most=1),
        rope_base=_number(fields, "rope_base", least=1, most=1e12),
        norm_eps=_number(fields, "norm_eps", least=0, most=1),
        context_length=_context_length(directory, fields),
        is_tied=is_tied,
        dtype=dtypes.most_common(1)[0][0],
        num_parameters=sum(counted.values()),
        notes=tuple(notes.found),
    )


@contextlib.contextmanager
def open_weights(directory: Path) -> Iterator[dict[str, Tensor]]:
    """Open the tensors under litgpt's names, memory-mapped: pages are read when used, and freed with the last tensor.

    Raises:
        InputError: the file is missing.
        DamagedError: it is cut short, or is not a checkpoint of torch.
        RefusedError: it holds more than tensors; none of the rest was run.
    """
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{path}: missing; expected a directory with {WEIGHTS_FILE} and {CONFIG_FILE}")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise RefusedError(
            f"{path}: holds more than tensors, and was not unpickled ({_first_line(error)}); get it from its publisher"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise DamagedError(
            f"{path}: cannot be read as a checkpoint of torch ({_first_line(error)}); fetch it again, and check that "
            "its size is the publisher's"
        ) from error
    inner = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(inner, Mapping) or not all(isinstance(name, str) for name in inner):
        raise DamagedError(f"{path}: got {type(content).__name__}, expected tensors by name, or those under 'model'")
    yield {name.removeprefix("_orig_mod."): value for name, value in inner.items() if isinstance(value, Tensor)}


def is_tied_head(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the output layer is the embedding: it is not stored, or the two share their memory."""
    head = tensors.get("lm_head.weight")
    return head is None or head.data_ptr() == tensors["transformer.wte.weight"].data_ptr()


def qkv_name(tensors: Mapping[str, Any], layer: int) -> str:
    """Return the name of a layer's attention input in this checkpoint; litgpt called it `attn.attn` until 0.5.4."""
    legacy = f"transformer.h.{layer}.attn.attn.weight"
    return legacy if legacy in tensors else f"transformer.h.{layer}.attn.qkv.weight"


class _Sizes(NamedTuple):
    """The sizes V, D, Q, K and M."""

    vocab: int
    hidden: int
    query: int
    keys: int
    neurons: int


class _Notes:
    """Collects messages about sizes that differ between the configuration and the tensors."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self._fields = fields
        self.found: list[str] = []

    def add(self, text: str) -> None:
        self.found.append(text)

    def compare(self, **sizes: int) -> None:
        for name, size in sizes.items():
            stated = self._fields.get(name)
            if stated is not None and stated != size:
                self.add(f"{CONFIG_FILE} says {name}: {stated}, the tensors show {size}, which is used")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; p_gen, p_mem, rope_base and more are only in it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({_first_line(error)}); fetch it again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: got {type(fields).__name__}, expected fields by name")
    return fields


def _refuse_other_models(fields: Mapping[str, Any]) -> None:
    others = [
        f"{name}: {fields[name]!r} (expected {' or '.join(map(repr, known))})"
        for name, known in _AS_LLAMA.items()
        if name in fields and fields[name] not in known
    ]
    if others:
        raise RefusedError(f"{CONFIG_FILE} describes another model than a Llama with sinks: {', '.join(others)}")


def _number(fields: Mapping[str, Any], name: str, *, least: float, most: float, default: float | None = None) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value <= most:
        raise InputError(f"{CONFIG_FILE}: {name}: got {value!r}, expected a number above {least}, {most} at most")
    return value


def _checked_names(directory: Path, tensors: Mapping[str, Tensor]) -> int:
    """Return the number of layers, after checking that no tensor is missing and none is unknown."""
    layers = {int(match[1]) for name in tensors if (match := _LAYER.fullmatch(name))}
    if layers != set(range(len(layers))) or not layers:
        raise DamagedError(f"{directory / WEIGHTS_FILE}: {len(layers)} layers, not numbered from 0; fetch it again")
    expected = {*_OUTER}
    for layer in layers:
        expected |= {f"transformer.h.{layer}.{name}" for name in _IN_LAYER}
        expected.discard(f"transformer.h.{layer}.attn.qkv.weight")
        expected.add(qkv_name(tensors, layer))
    missing = sorted(expected - tensors.keys() - {"lm_head.weight"})
    if missing:
        raise DamagedError(f"{directory / WEIGHTS_FILE}: lacks {_named(missing)}; fetch it again")
    unknown = sorted(tensors.keys() - expected)
    if unknown:
        raise RefusedError(f"{directory / WEIGHTS_FILE}: has {_named(unknown)}, which a NullsForCausalLM does not have")
    return len(layers)


def _checked_shapes(directory: Path, tensors: Mapping[str, Tensor], num_layers: int) -> _Sizes:
    """Return the sizes, after checking that all tensors agree on them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = [
        f"{name} {shapes[name]} of {tensor.dtype}"
        for name, tensor in tensors.items()
        if tensor.ndim != (1 if name.endswith(("norm_1.weight", "norm_2.weight", "ln_f.weight")) else 2)
        or not tensor.is_floating_point()
    ]
    if odd:
        raise DamagedError(f"{directory / WEIGHTS_FILE}: has {_named(odd)}, expected matrices of weights and norms")
    vocab, hidden = shapes["transformer.wte.weight"]
    query, neurons = shapes["transformer.h.0.attn.proj.weight"][1], shapes["transformer.h.0.mlp.fc_1.weight"][0]
    keys = (shapes[qkv_name(shapes, 0)][0] - query) // 2
    in_layer: list[tuple[int, ...]] = [(hidden,), (query + 2 * keys, hidden), (hidden, query), (hidden,)]
    in_layer += [(neurons, hidden), (neurons, hidden), (hidden, neurons)]
    expected: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
    }
    expected["transformer.ln_f.weight"] = (hidden,)
    for layer in range(num_layers):
        names = [f"transformer.h.{layer}.{name}" for name in _IN_LAYER]
        names[1] = qkv_name(shapes, layer)
        expected |= dict(zip(names, in_layer, strict=True))
    wrong = [f"{name} {got} (expected {expected[name]})" for name, got in shapes.items() if got != expected[name]]
    if wrong or keys < 1:
        raise DamagedError(
            f"{directory / WEIGHTS_FILE}: shapes contradict one another: {_named(wrong) or 'qkv has no keys'}"
        )
    return _Sizes(vocab, hidden, query, keys, neurons)


def _heads(fields: Mapping[str, Any], query: int, keys: int) -> tuple[int, int, int]:
    """Return (heads, key heads, head size): tensors give the products, the configuration must give one factor.

    At least two of its three fields must fit the tensors: so one wrong field is outvoted, and nothing is guessed.
    """
    heads, size, groups = (fields.get(name) for name in ("n_head", "head_size", "n_query_groups"))
    groups = heads if groups is None else groups
    candidates = [size] + [columns / n for columns, n in ((query, heads), (keys, groups)) if isinstance(n, int) and n]
    best: tuple[int, int] = (0, 0)
    for candidate in candidates:
        if isinstance(candidate, (int, float)) and candidate > 0 and _fits(candidate, query, keys):
            votes = sum((size == candidate, heads == query // candidate, groups == keys // candidate))
            best = max(best, (votes, int(candidate)))
    votes, head_size = best
    if votes < 2:
        raise InputError(
            f"{CONFIG_FILE}: n_head {heads}, n_query_groups {groups}, head_size {size} do not fit the tensors, which "
            f"have {query} query and {keys} key columns: two of the three must"
        )
    return query // head_size, keys // head_size, head_size


def _fits(head_size: float, query: int, keys: int) -> bool:
    """Return whether columns divide into heads of an even size, and heads into groups."""
    if head_size % 2 or query % head_size or keys % head_size:
        return False
    return (query // head_size) % (keys // head_size) == 0


def _context_length(directory: Path, fields: Mapping[str, Any]) -> int:
    block_size = int(_number(fields, "block_size", least=1, most=2**31, default=TRAINED_CONTEXT))
    path = directory / HYPERPARAMETERS_FILE
    training = _read_yaml(path).get("train") if path.is_file() else None
    length = training.get("max_seq_length") if isinstance(training, dict) else None
    return length if isinstance(length, int) and 1 < length <= block_size else min(block_size, TRAINED_CONTEXT)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
