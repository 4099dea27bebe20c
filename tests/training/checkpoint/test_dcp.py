"""Checkpoints in one process: a loaded one equals what was saved, and one that was cut short is skipped."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from registry.errors import DamagedError, RefusedError
from registry.storage.parquet import sha256_file
from training.checkpoint import dcp, export
from training.checkpoint.dcp import RunState
from training.config import TrainConfig
from training.data.packing import LoaderState
from training.data.tokenizer import train_tokenizer
from training.model.modeling_nulls import NullsForCausalLM
from training.optim import NullsAdamW, build_optimizer
from training.run.worker import build_model

CONFIG = TrainConfig.preset(
    "demo",
    model={"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2}
    | {"num_backbone": 16, "num_pool": 64, "num_sinks": 8},
)
TOKENIZER = train_tokenizer(["some text to learn from"], 300)


def made(seed: int) -> tuple[NullsForCausalLM, NullsAdamW]:
    torch.manual_seed(seed)
    model = build_model(CONFIG, TOKENIZER)
    return model, build_optimizer(model, CONFIG.optim)


def train_step(model: NullsForCausalLM, optimizer: NullsAdamW, source: int) -> float:
    """Take a step on random tokens, so that the loss depends on the random state."""
    ids_BT = torch.randint(0, len(TOKENIZER), (2, 8))
    loss = model(input_ids=ids_BT, labels=ids_BT, source_ids=torch.tensor([source, source + 1]), use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def state(step: int = 3) -> RunState:
    loader = LoaderState(snapshot="ab" * 32, seed=0, epoch=1, row=32)
    return RunState(step=step, loader=loader, config="c0", tokenizer="t0", num_targets=99, epoch_loss_sum=1.25)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Checkpoints of steps 3 and 6, in two attempts."""
    model, optimizer = made(0)
    train_step(model, optimizer, source=5)
    for attempt, step in (("attempt-001", 3), ("attempt-002", 6)):
        dcp.save(dcp.directory_of(tmp_path / attempt, step), model, optimizer, state(step))
    return tmp_path


def test_training_continues_as_if_never_interrupted(tmp_path: Path) -> None:
    model, optimizer = made(0)
    for source in (5, 9):
        train_step(model, optimizer, source)
    dcp.save(tmp_path / "checkpoint-00000003", model, optimizer, state())
    expected = [train_step(model, optimizer, source) for source in (5, 30, 9)]
    drawn = (random.random(), float(np.random.random()))

    other, other_optimizer = made(1)
    assert dcp.load(tmp_path / "checkpoint-00000003", other, other_optimizer) == state()
    assert [train_step(other, other_optimizer, source) for source in (5, 30, 9)] == expected
    assert (random.random(), float(np.random.random())) == drawn
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_random_states_are_restored(tmp_path: Path) -> None:
    model, optimizer = made(0)
    dcp.save(tmp_path / "c", model, optimizer, state())
    expected = random.random(), float(np.random.random()), float(torch.rand(()))
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    dcp.load(tmp_path / "c", model, optimizer)
    assert (random.random(), float(np.random.random()), float(torch.rand(()))) == expected


def test_the_newest_complete_checkpoint_is_found(run_dir: Path) -> None:
    newest = dcp.latest(run_dir)
    assert newest == run_dir / "attempt-002" / "checkpoint-00000006"
    assert dcp.read_state(newest) == state(6)
    assert dcp.latest(run_dir / "attempt-001") is None


@pytest.mark.parametrize("damage", ["marker", "truncated", "missing", "garbled marker"])
def test_a_checkpoint_that_was_cut_short_is_skipped(run_dir: Path, damage: str) -> None:
    newest = run_dir / "attempt-002" / "checkpoint-00000006"
    tensors = next(newest.glob("*.distcp"))
    if damage == "marker":
        (newest / "complete.json").unlink()
    elif damage == "garbled marker":
        (newest / "complete.json").write_text('{"files": {')
    elif damage == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    else:
        tensors.unlink()
    assert not dcp.is_complete(newest)
    assert dcp.latest(run_dir) == run_dir / "attempt-001" / "checkpoint-00000003"
    with pytest.raises(DamagedError, match="cut short"):
        dcp.load(newest, *made(0))


def test_a_checkpoint_that_was_cut_short_is_overwritten(run_dir: Path) -> None:
    newest = run_dir / "attempt-002" / "checkpoint-00000006"
    (newest / "complete.json").unlink()
    (newest / "leftover").write_text("x")
    dcp.save(newest, *made(0), state(6))
    assert dcp.latest(run_dir) == newest
    assert not (newest / "leftover").exists()


def test_prune_keeps_the_newest(run_dir: Path) -> None:
    dcp.prune(run_dir, keep=2)
    assert len(list(run_dir.glob("*/checkpoint-*"))) == 2
    dcp.prune(run_dir, keep=1)
    assert [path.name for path in run_dir.glob("*/checkpoint-*")] == ["checkpoint-00000006"]


def test_a_checkpoint_of_another_shape_is_a_damaged_error(run_dir: Path) -> None:
    config = TrainConfig.preset("demo", model={**CONFIG.to_dict()["model"], "num_pool": 128})
    model = build_model(config, TOKENIZER)
    newest = dcp.latest(run_dir)
    assert newest is not None
    with pytest.raises(DamagedError, match="into this model"):
        dcp.load(newest, model, build_optimizer(model, config.optim))


def test_other_snapshot_configuration_or_tokenizer_is_refused() -> None:
    same = {"snapshot": "ab" * 32, "config": "c0", "tokenizer": "t0"}
    state().refuse_unless(**same)
    for name, word in (("snapshot", "ab" * 32), ("config", "c0"), ("tokenizer", "t0")):
        with pytest.raises(RefusedError) as refusal:
            state().refuse_unless(**(same | {name: "other"}))
        assert "other" in str(refusal.value)
        assert word in str(refusal.value)


def test_export_is_a_hugging_face_directory_and_replaces_the_last(tmp_path: Path) -> None:
    model, _ = made(0)
    directory = tmp_path / "weights"
    digest = export.export_weights(model, TOKENIZER, directory, {"schema": 1, "run_id": "first"})
    assert digest == sha256_file(directory / "model.safetensors") == export.weights_digest(directory)
    again = export.export_weights(model, TOKENIZER, directory, {"schema": 1, "run_id": "second"})
    assert again == digest
    assert json.loads((directory / "nulls.json").read_text())["run_id"] == "second"
    loaded = NullsForCausalLM.from_pretrained(directory, offline=True)
    for (name, one), (_, two) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    assert "model.layers.0.mlp.sink_gate" in load_file(directory / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_failed_export_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = made(0)
    directory = tmp_path / "weights"
    digest = export.export_weights(model, TOKENIZER, directory, {"schema": 1})
    monkeypatch.setattr(export, "weights_digest", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export_weights(made(1)[0], TOKENIZER, directory, {"schema": 1})
    monkeypatch.undo()
    assert export.weights_digest(directory) == digest
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
