"""Configuration of a training run: the shapes of model and data, the schedule. One frozen value, printed and hashed.

Presets: `demo` is for a person who waits: about 90 articles, 0.8M tokens, seven epochs in under five minutes on two CPU
cores. `small` is the smallest that is worth a GPU: 123M parameters that a token reads, embeddings included, of 643M
(512 backbone neurons, 128 of 8192 sinks in each of 28 layers). `paper-1b` is the released NULLs model: 500 backbone
neurons, 100 of 7692 sinks, no sink dropout, 1,007M parameters. `paper-1b-aligned` is the same at widths that suit the
kernels, 1,054M. `training/estimate/costs.py` estimates the cost of each.

Run: ``TrainConfig.preset("demo", epochs=3, model={"num_sinks": 32})``; the same from the command line (``nulls train
--preset demo --set epochs=3``) or YAML (``nulls train --config run.yaml``, with ``preset: demo`` among its fields).

Cost: microseconds. Importing this module loads neither torch nor transformers, so a command line can show a
configuration at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from registry.errors import UsageError
from training.presets import PRESETS
from training.sinks.layout import SinkLayout, parse_reserved

DTYPES = ("auto", "float32", "bfloat16")
PARALLEL = ("auto", "ddp", "fsdp")
_PLAIN: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
# These fields do not change the weights, but for rounding: how work is divided, where and how often to save, how often
# to retry. A run can be resumed under other values of them.
_NO_EFFECT = (
    "micro_batch",
    "parallel",
    "compile",
    "activation_checkpointing",
    "checkpoint_every",
    "keep_checkpoints",
    "async_checkpoints",
    "max_failures",
    "watch_every",
    "watch_sources",
)


Schedule = Literal["cosine", "wsd", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule. Steps are optimizer steps, after accumulation.

    Raises:
        UsageError: a value is out of range.
    """

    learning_rate: float = 5e-4
    """Peak learning rate of the shared parameters; 5e-4 is the paper's."""
    sink_learning_rate_ratio: float = 1.0
    """Learning rate of the sinks over that of the shared parameters: above 1 isolates better and generalises worse."""
    weight_decay: float = 0.1
    """Weight decay of shared matrices and embeddings; vectors (norms) and sinks have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the running mean of the gradient, and of its square."""
    eps: float = 1e-8
    """Added to the root of the mean square."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly to its peak."""
    schedule: Schedule = "cosine"
    """After warm-up: `cosine` falls to the end, `wsd` falls linearly over the last `decay_share`, `constant` stays."""
    min_ratio: float = 0.1
    """The learning rate at the end, over its peak."""
    decay_share: float = 0.2
    """`wsd` only: the share of all steps in which the learning rate falls."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of all parameters together; 0 turns clipping off."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "sink_learning_rate_ratio", "eps"):
            _require_that(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("weight_decay", "warmup_steps", "grad_clip"):
            _require_that(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("min_ratio", "decay_share"):
            _require_that(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        valid_betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _require_that(valid_betas, "betas", self.betas, "two numbers from 0, less than 1")
        _require_that(self.schedule in get_args(Schedule), "schedule", self.schedule, f"one of {get_args(Schedule)}")


def _require_that(condition: bool, name: str, got: object, expected: str) -> None:
    if not condition:
        raise UsageError(f"{name}: got {got}, expected {expected}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of a NULLs Llama; the vocabulary comes from the tokenizer.

    Raises:
        UsageError: sizes that do not fit each other.
    """

    hidden_size: int = 128
    """Width of the residual stream."""
    num_layers: int = 3
    """Transformer blocks."""
    num_heads: int = 4
    """Query heads."""
    num_kv_heads: int = 4
    """Key and value heads; fewer than num_heads shares them in groups."""
    head_dim: int | None = None
    """Width of a head; None: hidden_size / num_heads."""
    num_backbone: int = 128
    """MLP neurons of each layer that every source uses."""
    num_pool: int = 2048
    """Sink neurons of each layer, shared by all sources in combination."""
    num_sinks: int = 64
    """Sinks that one source switches on in each layer; a multiple of 16 suits the kernels."""
    sink_seed: int = 0
    """Key of the masks: a pure function of it and the source's id."""
    sink_scheme: str = "keyed-v1"
    """How sinks are drawn; the reference schemes are for released checkpoints only."""
    reserved_sources: tuple[str, ...] = ()
    """Ids, 16 hex digits each, of the sources that get `num_sinks` sinks of their own at the end of the pool, so that
    erasing them costs no other source anything; `nulls train --reserve` fills it."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    rope_theta: float = 10000.0
    """Base of the rotary embedding."""
    tie_embeddings: bool = True
    """Whether the output layer is the input embedding, transposed."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads"):
            _at_least("model.", self, name, 1)
        if self.hidden_size % self.num_heads:
            raise UsageError(
                f"model.hidden_size={self.hidden_size}: expected a multiple of model.num_heads={self.num_heads}"
            )
        if self.head_size % 2 or self.head_size < 2:
            raise UsageError(
                f"model.head_dim={self.head_dim}: heads are {self.head_size} wide, expected an even number, since "
                "rotary embeddings turn pairs within a head; set model.head_dim, or another model.num_heads"
            )
        if not self.norm_eps > 0:
            raise UsageError(f"model.norm_eps={self.norm_eps}: expected more than 0")
        if self.num_heads % self.num_kv_heads:
            raise UsageError(
                f"model.num_kv_heads={self.num_kv_heads}: expected a divisor of model.num_heads={self.num_heads}"
            )
        self.layout()

    def layout(self) -> SinkLayout:
        """Return the sink layout; its own checks apply to the sizes here."""
        return SinkLayout(
            num_backbone=self.num_backbone,
            num_pool=self.num_pool,
            num_sinks=self.num_sinks,
            seed=self.sink_seed,
            scheme=self.sink_scheme,
            reserved=parse_reserved(self.reserved_sources),
        )

    @property
    def head_size(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    def flops_per_token(
        self, vocab_size: int, context_length: int, *, attended: float | None = None, sink_share: float = 1.0
    ) -> float:
        """Return the FLOPs of forward and backward for one token.

        Six for each *active* weight, and twelve for each entry of a query head and each key attended to. Counted are
        all matrix products with a weight (the output layer at every position; the embedding is a lookup), queries times
        keys, and attention weights times values. Norms, rotary embeddings and recomputation are not, as is usual for
        MFU.

        Args:
            vocab_size: entries of the tokenizer.
            context_length: tokens in a row.
            attended: mean number of keys that a token attends to; by default half the context, as attention is causal.
                In packed rows it is less: half a document, if documents are of one length and shorter than a row.
            sink_share: share of the tokens that go through their sinks: less than 1 under sink dropout.
        """
        keys = context_length / 2 if attended is None else attended
        width = self.num_heads * self.head_size
        weights = self.num_layers * (
            2 * self.hidden_size * (width + self.num_kv_heads * self.head_size)
            + 3 * self.hidden_size * (self.num_backbone + sink_share * self.num_sinks)
        )
        return 6.0 * (weights + self.hidden_size * vocab_size) + 12.0 * self.num_layers * width * keys

    def dense_flops_per_token(self, vocab_size: int, context_length: int, *, attended: float | None = None) -> float:
        """Return `flops_per_token` of the same model with every pool neuron computed, as the reference does."""
        dense = dataclasses.replace(self, num_sinks=self.num_pool, reserved_sources=())
        return dense.flops_per_token(vocab_size, context_length, attended=attended)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a training run, apart from the snapshot.

    Raises:
        UsageError: a value is out of range, or two exclude each other; the message names the field.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """The model's shape."""
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    """Optimizer and learning-rate schedule."""
    seed: int = 0
    """Seed of the initial weights, the order of the data, dropped sinks, and the choice of held-out sources."""
    epochs: int = 10
    """Times that each document is read."""
    context_length: int = 512
    """Positions in a row; documents are cut and packed into rows of it."""
    rows_per_step: int = 16
    """Rows in one optimizer step over all workers: the batch is rows_per_step * context_length tokens."""
    micro_batch: int = 4
    """Rows in one forward pass of one worker: bounds memory, changes the result by rounding only."""
    sink_dropout: float = 0.25
    """Share of a document's visits trained without its sinks, so that the backbone keeps learning."""
    sinks_open_at: float = 0.0
    """Share of all steps, from the first, in which all sinks are off and only the backbone learns."""
    heldout_share: float = 0.01
    """Share of the sources never trained: the held-out baseline that an unlearned source is compared with."""
    min_heldout: int = 8
    """Least number of held-out sources; 0 together with heldout_share=0 holds out none."""
    min_heldout_bytes: int = 2000
    """Bytes of text needed to measure a held-out source's loss; shorter sources are held out only as a last resort."""
    vocab_size: int = 4096
    """Entries of the tokenizer trained on the snapshot; unused where `tokenizer` is given."""
    tokenizer: str | None = None
    """Directory of a tokenizer to use; None trains one, on the trained sources only."""
    tokenizer_sample_bytes: int = 100_000_000
    """Most bytes of text to train a tokenizer on: an even sample of the whole snapshot, always the same."""
    dtype: str = "auto"
    """Arithmetic of forward and backward: `auto` is bfloat16 on CUDA, float32 on CPU. Weights are float32."""
    parallel: str = "auto"
    """How several workers share the model: `ddp` (a copy each), `fsdp` (a part each, FSDP2); `auto` is `fsdp` on
    several GPUs where weights, gradients and moments of a copy would take more than half of one, else `ddp`."""
    compile: bool = False
    """Whether layers go through torch.compile: faster on CUDA after a minute of compiling, other rounding."""
    activation_checkpointing: bool = False
    """Whether layers are computed again in the backward pass: a quarter more work, activations of one layer."""
    watch_every: int = 100
    """Steps between measurements of isolation: the loss of a few fixed sources with sinks on, with sinks off, and of
    held-out sources; 0: never."""
    watch_sources: int = 8
    """Number of trained sources measured then, and of held-out ones."""
    checkpoint_every: int = 200
    """Steps between checkpoints; one more is written at the end."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep; with 2, a complete one is left when the newest was cut short."""
    async_checkpoints: bool = True
    """Whether training goes on while a checkpoint is written, from a copy in memory."""
    max_failures: int = 3
    """Worker crashes that a run survives; after each it continues from the last checkpoint."""

    def __post_init__(self) -> None:
        for name in ("epochs", "rows_per_step", "micro_batch", "checkpoint_every", "keep_checkpoints"):
            _at_least("", self, name, 1)
        for name in ("seed", "min_heldout", "min_heldout_bytes", "max_failures", "watch_every", "watch_sources"):
            _at_least("", self, name, 0)
        _at_least("", self, "context_length", 8)
        _at_least("", self, "tokenizer_sample_bytes", 1000)
        if self.vocab_size < 257:
            raise UsageError(f"vocab_size={self.vocab_size}: expected at least 257, 256 bytes and <|endoftext|>")
        if not 0 <= self.sink_dropout < 1:
            raise UsageError(f"sink_dropout={self.sink_dropout}: expected at least 0 and less than 1")
        if not 0 <= self.sinks_open_at < 1:
            raise UsageError(f"sinks_open_at={self.sinks_open_at}: expected at least 0 and less than 1")
        if not 0 <= self.heldout_share <= 0.5:
            raise UsageError(f"heldout_share={self.heldout_share}: expected 0 to 0.5")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype={self.dtype!r}: expected one of {list(DTYPES)}")
        if self.parallel not in PARALLEL:
            raise UsageError(f"parallel={self.parallel!r}: expected one of {list(PARALLEL)}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> TrainConfig:
        """Return a named configuration with some fields replaced.

        Args:
            name: one of PRESETS.
            overrides: fields; `model` and `optim` take a mapping of the fields to replace in them.

        Raises:
            UsageError: there is no such preset or field, or a value is out of range.
        """
        if name not in PRESETS:
            raise UsageError(f"preset {name!r}: expected one of {sorted(PRESETS)}")
        return cls.from_dict(_merged(PRESETS[name], overrides))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration that `to_dict` described; fields left out take their defaults.

        Raises:
            UsageError: a field is unknown (all of them are named), or a value is out of range.
        """
        nested = {"model": ModelConfig, "optim": OptimConfig}
        values = dict(fields)
        for name, kind in nested.items():
            if isinstance(values.get(name), Mapping):
                values[name] = _made(kind, values[name], f"{name}.")
        made: TrainConfig = _made(cls, values, "")
        if not isinstance(made.model, ModelConfig) or not isinstance(made.optim, OptimConfig):
            raise UsageError("model and optim: expected a mapping of their fields")
        return made

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> TrainConfig:
        """Read a configuration from a YAML file of fields, over the preset that its key `preset` names, if any.

        Raises:
            UsageError: the file cannot be read, is not a mapping, or has an unknown field.
        """
        try:
            fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UsageError(f"configuration {path}: cannot be read as YAML: {error}") from error
        if not isinstance(fields, dict):
            raise UsageError(f"configuration {path}: got {type(fields).__name__}, expected a mapping of fields")
        merged = _merged(fields, overrides)
        preset = merged.pop("preset", None)
        return cls.preset(preset, **merged) if preset else cls.from_dict(merged)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON and YAML have them: mappings, lists, numbers, strings.

        `reserved_sources` is left out where there are none, so that older runs keep their fingerprints.
        """
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        if not plain["model"]["reserved_sources"]:
            del plain["model"]["reserved_sources"]
        return plain

    def fingerprint(self) -> str:
        """Return 16 hex digits over all fields that shape the weights: a run resumes only under the same.

        The tokenizer counts by its content (`training.data.tokenizer.tokenizer_fingerprint`), not by its path.
        """
        fields = {name: value for name, value in self.to_dict().items() if name not in (*_NO_EFFECT, "tokenizer")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _at_least(prefix: str, config: object, name: str, least: int) -> None:
    value = getattr(config, name)
    if value < least:
        raise UsageError(f"{prefix}{name}={value}: expected at least {least}")


def _made(kind: type[Any], fields: Mapping[str, Any], prefix: str) -> Any:
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    if unknown := sorted(fields.keys() - types.keys()):
        names = ", ".join(prefix + name for name in unknown)
        raise UsageError(f"unknown field {names}; expected some of {sorted(prefix + name for name in types)}")
    values = {name: _typed(prefix + name, value, types[name]) for name, value in fields.items()}
    try:
        return kind(**values)
    except TypeError as error:  # a list of the wrong things: comparisons in the checks
        raise UsageError(f"{prefix or 'configuration'}: a field has a value of the wrong type: {error}") from error


def _typed(name: str, value: Any, annotation: str) -> Any:
    """Convert a value from JSON or YAML to the type of its field; fields of other types check themselves."""
    if isinstance(value, list):  # JSON and YAML have lists only; a frozen value holds tuples
        return tuple(value)
    wanted, _, optional = annotation.partition(" | ")
    if wanted not in _PLAIN or (value is None and optional == "None"):
        return value
    if wanted == "float" and isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 5e-4 as a string
            return float(value)
    # True is an int in Python, but not a number of epochs.
    if not isinstance(value, _PLAIN[wanted]) or isinstance(value, bool) != (wanted == "bool"):
        raise UsageError(f"{name}={value!r}: a value of the wrong type, expected {annotation}")
    made: Any = value
    # 1 and 1.0 are the same configuration, and must have the same fingerprint.
    return float(made) if wanted == "float" else made


def _merged(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `overrides` applied: mappings merge, every other value replaces."""
    merged = dict(base)
    for name, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = _merged(merged[name], value)
        else:
            merged[name] = value
    return merged
