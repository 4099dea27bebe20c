"""Runs on several ranks that are cut off and go on elsewhere: other numbers of workers, another way of sharing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from registry.snapshot import Snapshot
from tests.training.ranks import prepared, train
from training import checkpoint, loop
from training.config import TrainConfig
from training.loop import Job
from training.tracking import loss_curve

CONFIG = TrainConfig.preset(
    "demo",
    model={"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "num_backbone": 32}
    | {"num_pool": 65, "num_sinks": 16},
    optim={"learning_rate": 2e-3, "warmup_steps": 2, "eps": 1e-6},
    epochs=2,
    context_length=64,
    rows_per_step=16,
    micro_batch=2,
    vocab_size=400,
    checkpoint_every=5,
)


def lines(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.run_dir / loop.PROGRESS).read_text().splitlines()]


def assert_same_numbers(job: Job, other: Job) -> None:
    """The loss of every step, and the weights at the end, but for the order in which floats were added."""
    expected, got = loss_curve(job.run_dir / loop.PROGRESS), loss_curve(other.run_dir / loop.PROGRESS)
    assert got.keys() == expected.keys()
    assert len(expected) >= 20
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-4)
    weights = [load_file(run.run_dir / checkpoint.WEIGHTS / "model.safetensors") for run in (job, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert (weights[1][name] - value).abs().max() < 2e-3, name


@pytest.fixture(scope="module")
def alone(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run on two workers that nothing disturbed."""
    job = prepared(snapshot, tmp_path_factory.mktemp("alone"), CONFIG)
    train(job, 2)
    return job


def result(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((job.run_dir / loop.RESULT).read_bytes())
    return content


def test_moved_between_numbers_of_workers_and_wrappers(alone: Job, snapshot: Snapshot, tmp_path: Path) -> None:
    job = prepared(snapshot, tmp_path, CONFIG)
    train(job, 2, stop_at=5, parallel="fsdp")
    train(job, 3, stop_at=10, parallel="fsdp")
    train(job, 1, stop_at=15, parallel="ddp")
    train(job, 2, parallel="fsdp", activation_checkpointing=True)
    assert_same_numbers(alone, job)
    begun = [(line["begun_at"], line["world_size"]) for line in lines(job) if "begun_at" in line]
    assert begun == [(0, 2), (5, 3), (10, 1), (15, 2)]
    # The exported model is the plain one, whatever trained it.
    configs = [json.loads((run.run_dir / checkpoint.WEIGHTS / "config.json").read_bytes()) for run in (alone, job)]
    assert configs[0] == configs[1]
    assert configs[0]["architectures"] == ["NullsForCausalLM"]


def test_every_token_counts_once_over_all_resumes(alone: Job, snapshot: Snapshot, tmp_path: Path) -> None:
    job = prepared(snapshot, tmp_path, CONFIG)
    train(job, 2, stop_at=5)
    train(job, 2, stop_at=15)
    newest = checkpoint.latest(job.run_dir)
    assert newest is not None
    (newest / ".metadata").unlink()  # cut short: ten steps are done again
    train(job, 2)
    assert result(job) | {"tokens_per_second": 0} == result(alone) | {"tokens_per_second": 0}
    per_step = {line["step"]: line["num_targets"] for line in lines(job) if "loss" in line}
    assert result(job)["tokens"] == sum(per_step.values())
    assert sum("loss" in line for line in lines(job)) > len(per_step), "no step was done again"
    begun = [line for line in lines(job) if "begun_at" in line]
    assert [line["begun_at"] for line in begun] == [0, 5, 10]
    assert begun[-1]["cut_short"] == [newest.name]
    assert not newest.exists() or checkpoint.is_complete(newest)
