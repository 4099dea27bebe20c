"""A range of workers: how it is parsed, and a run on a cluster that loses a node."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from registry.errors import UsageError
from tests.training.run.faults import stuck_at
from tests.training.run.test_driver import TINY
from training.config import TrainConfig
from training.run import ray_session
from training.run.driver import train
from training.run.protocol import PROGRESS
from training.run.ray_session import on_gpus
from training.run.worker_range import Workers


@pytest.mark.parametrize(("text", "least", "most"), [("2", 2, 2), ("1-4", 1, 4), (" 3 ", 3, 3), (2, 2, 2)])
def test_a_number_or_a_range(text: str | int, least: int, most: int) -> None:
    workers = Workers.parse(text)
    assert workers == Workers(least=least, most=most)
    assert str(workers) == str(text).strip()


@pytest.mark.parametrize("text", ["", "two", "1-", "-4", "4-1", "0", "0-2", "1-2-3", "1.5"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"workers.*(1-4|at least 1)"):
        Workers.parse(text)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster on this machine, of one node with one core."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_loses_a_node_goes_on_with_the_others(
    cluster: Cluster, registry_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    run_dir, lost = tmp_path / "runs" / "elastic" / "run-001", []
    monkeypatch.setattr(ray_session, "run_worker", stuck_at(6))

    def lose(progress: dict[str, Any]) -> None:
        if progress["step"] >= 6 and not lost:
            lost.append(progress["step"])
            cluster.remove_node(second, allow_graceful=False)

    result = train(
        TrainConfig.from_dict(TINY.to_dict() | {"max_failures": 3}),
        registry_uri=registry_root,
        model_name="elastic",
        num_workers=Workers(least=1, most=2),
        runs_dir=tmp_path / "runs",
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        ray_address=cluster.address,
        on_progress=lose,
    )
    lines = [json.loads(line) for line in (run_dir / PROGRESS).read_text().splitlines()]
    begun = [(line["begun_at"], line["world_size"]) for line in lines if "begun_at" in line]
    assert begun[0] == (0, 2)
    assert begun[-1][1] == 1
    assert begun[-1][0] == 4, "the last whole checkpoint before the node was lost"
    # The batches are the same with one worker: so is the loss of a repeated step. Every token counts once.
    by_step: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        if "loss" in line:
            by_step.setdefault(line["step"], []).append(line)
    repeated = [(step_lines[0]["loss"], step_lines[-1]["loss"]) for step_lines in by_step.values() if step_lines[1:]]
    assert repeated
    assert [first for first, _ in repeated] == pytest.approx([last for _, last in repeated], rel=1e-4)
    assert result.tokens == sum(step_lines[-1]["num_targets"] for step_lines in by_step.values())
    assert (run_dir / "weights" / "model.safetensors").exists()


def test_fewer_gpus_than_workers_give_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    two = Workers(least=2, most=4)
    assert not on_gpus(0, two)
    assert on_gpus(2, two)
    assert not caplog.messages
    assert not on_gpus(1, two)
    (message,) = caplog.messages
    assert "--workers 1" in message
