"""Configurations: an error names the field, and the fingerprint depends on the fields that shape the weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from registry.errors import UsageError
from training.config import ModelConfig, TrainConfig
from training.presets import PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_and_survive_json(name: str) -> None:
    config = TrainConfig.preset(name)
    again = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.fingerprint() == config.fingerprint()


def test_overrides_merge_into_nested_fields() -> None:
    config = TrainConfig.preset("small", epochs=1, model={"num_sinks": 64}, optim={"learning_rate": 1e-3})
    assert (config.epochs, config.model.num_sinks, config.optim.learning_rate) == (1, 64, 1e-3)
    assert config.model.hidden_size == TrainConfig.preset("small").model.hidden_size


def test_flops_count_active_weights_only() -> None:
    shape = ModelConfig()
    more = dataclasses.replace(shape, num_pool=2 * shape.num_pool)
    assert more.flops_per_token(4096, 512) == shape.flops_per_token(4096, 512)
    wider = dataclasses.replace(shape, num_sinks=shape.num_sinks + 16)
    extra = wider.flops_per_token(4096, 512) - shape.flops_per_token(4096, 512)
    assert extra == 6 * 3 * 16 * shape.hidden_size * shape.num_layers
    assert shape.dense_flops_per_token(4096, 512) == dataclasses.replace(
        shape, num_sinks=shape.num_pool
    ).flops_per_token(4096, 512)
    # Attention of a layer: the products of a token with each key and each value, once forward and twice backward.
    one_more = shape.flops_per_token(4096, 512, attended=257) - shape.flops_per_token(4096, 512)
    assert one_more == 3 * (2 + 2) * shape.hidden_size * shape.num_layers


def test_heads_may_be_wider_than_hidden_size_over_num_heads() -> None:
    assert ModelConfig(hidden_size=96, num_heads=3, num_kv_heads=3).head_size == 32
    assert ModelConfig(hidden_size=96, num_heads=3, num_kv_heads=3, head_dim=64).head_size == 64


def test_a_number_may_be_written_in_any_form(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optim: {learning_rate: 5e-4, grad_clip: 1}\n")  # YAML 1.1 reads 5e-4 as a string
    config = TrainConfig.from_yaml(path)
    assert config.optim.learning_rate == 5e-4
    assert config.fingerprint() == TrainConfig().fingerprint()


def test_a_resolved_configuration_can_be_loaded(tmp_path: Path) -> None:
    for name in PRESETS:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(TrainConfig.preset(name, seed=3).to_dict()))
        assert TrainConfig.from_yaml(path) == TrainConfig.preset(name, seed=3)


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
        ({"model": {"head_dim": 33}}, r"model\.head_dim=33"),
        ({"model": {"norm_eps": 0}}, r"model\.norm_eps=0"),
        ({"epochs": "ten"}, r"epochs='ten'.*wrong type, expected int"),
        ({"epochs": 1.5}, r"epochs=1\.5.*wrong type"),
        ({"epochs": True}, "epochs=True.*wrong type"),
        ({"compile": 1}, "compile=1.*wrong type, expected bool"),
        ({"tokenizer": 1}, "tokenizer=1.*wrong type"),
        ({"optim": {"learning_rate": "fast"}}, r"optim\.learning_rate='fast'.*wrong type"),
        ({"optim": {"betas": ["a", "b"]}}, "wrong type"),
        ({"model": 3}, "mapping"),
        ({"model": {"reserved_sources": [7]}}, "reserved source 7: expected 16 hex digits in quotes"),
        ({"model": {"reserved_sources": [f"{n:016x}" for n in range(25)]}}, "reserved: 25 sources of 160 sinks"),
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
    # The tokenizer counts by its content; the others say how work is divided, what to watch, and how often to save.
    without_effect = {"checkpoint_every", "keep_checkpoints", "async_checkpoints", "max_failures", "tokenizer"}
    without_effect |= {"watch_every", "watch_sources", "micro_batch", "parallel", "compile", "activation_checkpointing"}
    changes: dict[str, Any] = {"dtype": "float32", "tokenizer": "elsewhere", "model": ModelConfig(sink_seed=1)}
    changes |= {"optim": dataclasses.replace(config.optim, learning_rate=0.123), "parallel": "fsdp"}
    seen = {config.fingerprint()}
    for field in dataclasses.fields(config):
        changed = changes[field.name] if field.name in changes else _other(getattr(config, field.name))
        assert changed != getattr(config, field.name), field.name
        fingerprint = dataclasses.replace(config, **{field.name: changed}).fingerprint()
        assert (fingerprint == config.fingerprint()) == (field.name in without_effect), field.name
        seen.add(fingerprint)
    assert len(seen) == 1 + len(dataclasses.fields(config)) - len(without_effect)


def test_a_run_without_reserved_sources_keeps_the_fingerprint_that_it_had_before_there_were_any() -> None:
    config = TrainConfig.preset("demo")
    assert config.fingerprint() == "7ef7688ade7c9f94"
    assert "reserved_sources" not in config.to_dict()["model"]
    reserved = TrainConfig.preset("demo", model={"reserved_sources": ["0000000000000007"]})
    assert reserved.fingerprint() != config.fingerprint()
    assert TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(reserved.to_dict()))) == reserved
    assert reserved.model.layout().reserved == (7,)
    assert reserved.model.dense_flops_per_token(300, 64) == config.model.dense_flops_per_token(300, 64)


def _other(value: Any) -> Any:
    """Return another value of the same type, valid where this one is."""
    if isinstance(value, bool):
        return not value
    return value + 0.125 if isinstance(value, float) else value + 1
