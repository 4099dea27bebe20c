"""Remote copies at s3://, against a real server: complete or absent, pruned, and enough to resume on an empty disk."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.errors import ServiceError, UsageError
from registry.storage.s3 import S3Path
from tests.s3 import Proxy, always, bucket, keys, once_each, proxy, put, s3_proxy, s3_server  # noqa: F401 - fixtures
from tests.training.checkpoint.test_dcp import made, state, train_step
from tests.training.run.test_driver import TINY, Run
from training.checkpoint import dcp
from training.checkpoint.remote_copy import RemoteRun, RemoteRuns
from training.checkpoint.writer import CheckpointWriter
from training.config import TrainConfig
from training.run.driver import train
from training.run.protocol import PROGRESS
from training.serving import flavor
from training.tracking import runs
from training.tracking.runs import loss_curve


@pytest.fixture
def remote_run(bucket: S3Path) -> RemoteRun:  # noqa: F811 - a fixture
    return RemoteRuns.of(f"s3://{bucket.bucket}/some/where", "model").of_run("run-001")


def saved(run_dir: Path, remote_run: RemoteRun, *steps: int, keep: int = 5) -> list[list[float]]:
    """Save checkpoints of these steps; return, for each, the losses of the next training steps."""
    model, optimizer = made(0)
    losses = []
    writer = CheckpointWriter(
        run_dir,
        run_dir / "attempt-001",
        keep=keep,
        in_background=True,
        on_complete=lambda *_: None,
        remote_run=remote_run,
    )
    for step in steps:
        writer.save(model, optimizer, state(step))
        losses.append([train_step(model, optimizer, source) for source in (5, 30)])
    try:
        writer.wait()
    finally:
        writer.close()
    return losses


def names(remote_run: RemoteRun) -> list[str]:
    return [path.name for path in remote_run.complete_newest_first()]


def test_an_empty_disk_resumes_from_the_newest_checkpoint(tmp_path: Path, remote_run: RemoteRun) -> None:
    losses = saved(tmp_path / "here", remote_run, 1, 2, 3, keep=2)
    assert names(remote_run) == ["checkpoint-00000003", "checkpoint-00000002"]
    assert not any("00000001" in key for key in keys(remote_run.root))
    there = tmp_path / "there"
    directory = remote_run.fetch_latest(there)
    assert directory == dcp.latest(there) == there / "attempt-001" / "checkpoint-00000003"
    model, optimizer = made(1)
    assert dcp.load(directory, model, optimizer) == state(3)
    assert [train_step(model, optimizer, source) for source in (5, 30)] == losses[2]
    assert remote_run.fetch_latest(there) is None, "it was downloaded a second time"


def test_a_checkpoint_that_was_cut_short_is_skipped(tmp_path: Path, remote_run: RemoteRun, proxy: Proxy) -> None:  # noqa: F811
    saved(tmp_path / "here", remote_run, 1)
    proxy.fault = always("500", method="PUT", suffix="complete.json")
    with pytest.raises(ServiceError, match=r"complete\.json"):
        saved(tmp_path / "here", remote_run, 2)
    assert dcp.latest(tmp_path / "here") == tmp_path / "here" / "attempt-001" / "checkpoint-00000002"
    assert names(remote_run) == ["checkpoint-00000001"]
    assert any("checkpoint-00000002" in key for key in keys(remote_run.root)), "nothing of it was uploaded"
    proxy.reset()
    saved(tmp_path / "here", remote_run, 2, 3)
    assert names(remote_run)[0] == "checkpoint-00000003"
    put(remote_run.root / "attempt-001" / "checkpoint-00000003" / ".metadata", b"short")
    directory = remote_run.fetch_latest(tmp_path / "there")
    assert directory is not None
    assert directory.name == "checkpoint-00000002"


def test_temporary_faults_change_nothing(tmp_path: Path, remote_run: RemoteRun, proxy: Proxy) -> None:  # noqa: F811
    proxy.fault = once_each("503")
    saved(tmp_path / "here", remote_run, 1)
    directory = remote_run.fetch_latest(tmp_path / "there")
    assert directory is not None
    assert proxy.faulted
    for path in directory.iterdir():
        assert path.read_bytes() == (tmp_path / "here" / "attempt-001" / directory.name / path.name).read_bytes()


def test_a_remote_copy_can_only_be_at_s3() -> None:
    with pytest.raises(UsageError, match="expected s3://"):
        RemoteRuns.of("/a/disk", "model")


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_resumes_where_its_disk_is_lost(
    tmp_path: Path,
    registry_root: Path,
    bucket: S3Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kill a run's workers and delete its disk; resumed in another folder, it ends like an undisturbed run."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setattr(runs, "_POLL_S", 0.01)
    config = TrainConfig.from_dict(TINY.to_dict() | {"max_failures": 0})
    remote_uri = f"s3://{bucket.bucket}/runs"
    run = Run(tmp_path, registry_root, "copied")
    remote_run = RemoteRuns.of(remote_uri, "copied").of_run("run-001")
    killed: list[int] = []

    def kill(progress: dict[str, Any]) -> None:
        if not killed and remote_run.complete_newest_first():
            killed.append(progress["step"])
            os.kill(run.worker_pids()[0], signal.SIGKILL)

    arguments = run.arguments | {"num_workers": 1, "remote_uri": remote_uri}
    with pytest.raises(ServiceError, match="--resume"):
        train(config, on_progress=kill, **arguments)
    before = loss_curve(run.dir / PROGRESS)
    shutil.rmtree(tmp_path / "runs")
    result = train(config, **(arguments | {"runs_dir": tmp_path / "elsewhere", "resume": True}))
    run_dir = tmp_path / "elsewhere" / "copied" / "run-001"
    after = loss_curve(run_dir / PROGRESS)
    assert min(after) > 4, "it started again instead of resuming"
    assert all(before[step] == after[step] for step in before.keys() & after.keys())
    assert set(before) | set(after) == set(range(1, max(after) + 1))
    assert result.tokens > 10_000
    # The version names the copy of its weights, and can be loaded where their own folder is not.
    monkeypatch.setenv("NULLS_WORK", str(tmp_path / "work"))
    there = flavor.load(result.model_uri, tracking_uri=run.arguments["tracking_uri"], offline=True)
    shutil.rmtree(tmp_path / "elsewhere")
    here = flavor.load(result.model_uri, tracking_uri=run.arguments["tracking_uri"], offline=True)
    assert all(torch.equal(a, b) for a, b in zip(here.model.parameters(), there.model.parameters(), strict=True))
    # A new run never takes the name of one that exists only remotely.
    assert RemoteRuns.of(remote_uri, "copied").run_names() == ["run-001"]
