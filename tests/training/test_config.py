"""Configurations: every mistake is named by its field, and what shapes the weights shapes the fingerprint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from registry.errors import UsageError
from training.config import PRESETS, ModelConfig, TrainConfig


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_hold_and_survive_json(name: str) -> None:
    config = TrainConfig.preset(name)
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.fingerprint() == config.fingerprint()


def test_overrides_merge_into_nested_fields() -> None:
    config = TrainConfig.preset("small", epochs=1, model={"num_sinks": 64}, optim={"learning_rate": 1e-3})
    assert (config.epochs, config.model.num_sinks, config.optim.learning_rate) == (1, 64, 1e-3)
    assert config.model.hidden_size == TrainConfig.preset("small").model.hidden_size


def test_small_is_about_125_million_parameters() -> None:
    config = TrainConfig.preset("small")
    shape = config.model
    attention = 2 * shape.hidden_size**2 * (1 + shape.num_kv_heads / shape.num_heads)
    mlp = 3 * shape.hidden_size * (shape.num_backbone + shape.num_sinks)
    active = shape.num_layers * (attention + mlp) + config.vocab_size * shape.hidden_size
    stored = active + shape.num_layers * 3 * shape.hidden_size * (shape.num_pool - shape.num_sinks)
    assert 50e6 < active < 125e6 < stored < 350e6


def test_flops_count_active_weights_only() -> None:
    shape = ModelConfig()
    more = dataclasses.replace(shape, num_pool=2 * shape.num_pool)
    assert more.flops_per_token(4096, 512) == shape.flops_per_token(4096, 512)
    wider = dataclasses.replace(shape, num_sinks=shape.num_sinks + 16)
    extra = wider.flops_per_token(4096, 512) - shape.flops_per_token(4096, 512)
    assert extra == 6 * 3 * 16 * shape.hidden_size * shape.num_layers


def test_yaml_over_a_preset(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("preset: small\nepochs: 2\nmodel:\n  num_sinks: 32\noptim: {betas: [0.8, 0.9]}\n")
    config = TrainConfig.from_yaml(path, seed=7)
    assert (config.epochs, config.model.num_sinks, config.seed, config.context_length) == (2, 32, 7, 1024)
    assert config.optim.betas == (0.8, 0.9)
    for text in ("- a list", "a: [", "seed: 1\nspeed: 3"):
        path.write_text(text)
        with pytest.raises(UsageError):
            TrainConfig.from_yaml(path)
    with pytest.raises(UsageError, match="cannot be read"):
        TrainConfig.from_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"seed": -1}, "seed=-1"),
        ({"sink_dropout": 1.0}, "sink_dropout=1.0"),
        ({"heldout_share": 0.9}, "heldout_share=0.9"),
        ({"vocab_size": 200}, "vocab_size=200"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"speed": 1}, "unknown field speed"),
        ({"model": {"width": 1}}, r"unknown field model\.width"),
        ({"model": {"num_sinks": 100_000}}, "num_sinks"),
        ({"model": {"hidden_size": 130}}, r"model\.hidden_size=130"),
        ({"model": {"num_heads": 3, "hidden_size": 96, "num_kv_heads": 2}}, r"model\.num_kv_heads=2"),
        ({"optim": {"learning_rate": -1.0}}, "learning_rate"),
        ({"epochs": "ten"}, "wrong type"),
        ({"model": 3}, "mapping"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig.preset("demo", **change)


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(UsageError, match="demo"):
        TrainConfig.preset("huge")


def test_the_fingerprint_covers_what_shapes_the_weights() -> None:
    config = TrainConfig.preset("demo")
    # The tokenizer counts by its content; the rest says how work is shared out, what to watch, and how often to save.
    without_effect = {"checkpoint_every", "keep_checkpoints", "async_checkpoints", "max_failures", "tokenizer"}
    without_effect |= {"watch_every", "watch_sources", "micro_batch", "parallel", "compile", "activation_checkpointing"}
    changes: dict[str, Any] = {"dtype": "float32", "tokenizer": "elsewhere", "model": ModelConfig(sink_seed=1)}
    changes |= {"parallel": "fsdp", "sinks_open_at": 0.5}
    changes["optim"] = dataclasses.replace(config.optim, learning_rate=0.123)
    seen = {config.fingerprint()}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        changed = changes.get(field.name, value / 2 if isinstance(value, float) else None)
        if changed is None:
            changed = not value if isinstance(value, bool) else value + 1
        fingerprint = dataclasses.replace(config, **{field.name: changed}).fingerprint()
        assert (fingerprint == config.fingerprint()) == (field.name in without_effect), field.name
        seen.add(fingerprint)
    assert len(seen) > 10
