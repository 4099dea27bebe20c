"""Checkpoints at s3://, against a real server: whole or not there, pruned, and enough to go on with an empty disk."""

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
from training.checkpoint.remote_copy import Mirror, RunMirror
from training.checkpoint.writer import CheckpointWriter
from training.config import TrainConfig
from training.run.driver import train
from training.run.protocol import PROGRESS
from training.serving import flavor
from training.tracking import runs
from training.tracking.runs import loss_curve


@pytest.fixture
def mirror(bucket: S3Path) -> RunMirror:  # noqa: F811 - a fixture
    return Mirror.of(f"s3://{bucket.bucket}/some/where", "model").of_run("run-001")


def saved(run_dir: Path, mirror: RunMirror, *steps: int, keep: int = 5) -> list[list[float]]:
    """Checkpoints of these steps; what training from each gave next."""
    model, optimizer = made(0)
    losses = []
    writer = CheckpointWriter(
        run_dir, run_dir / "attempt-001", keep=keep, in_background=True, on_complete=lambda *_: None, mirror=mirror
    )
    for step in steps:
        writer.save(model, optimizer, state(step))
        losses.append([train_step(model, optimizer, source) for source in (5, 30)])
    try:
        writer.wait()
    finally:
        writer.close()
    return losses


def names(mirror: RunMirror) -> list[str]:
    return [place.name for place in mirror.complete_newest_first()]


def test_an_empty_disk_goes_on_from_the_newest(tmp_path: Path, mirror: RunMirror) -> None:
    losses = saved(tmp_path / "here", mirror, 1, 2, 3, keep=2)
    assert names(mirror) == ["checkpoint-00000003", "checkpoint-00000002"]
    assert not any("00000001" in key for key in keys(mirror.root))
    there = tmp_path / "there"
    directory = mirror.fetch_latest(there)
    assert directory == dcp.latest(there) == there / "attempt-001" / "checkpoint-00000003"
    model, optimizer = made(1)
    assert dcp.load(directory, model, optimizer) == state(3)
    assert [train_step(model, optimizer, source) for source in (5, 30)] == losses[2]
    assert mirror.fetch_latest(there) is None, "it was brought a second time"


def test_what_was_cut_short_is_passed_over(tmp_path: Path, mirror: RunMirror, proxy: Proxy) -> None:  # noqa: F811
    saved(tmp_path / "here", mirror, 1)
    proxy.fault = always("500", method="PUT", suffix="complete.json")
    with pytest.raises(ServiceError, match=r"complete\.json"):
        saved(tmp_path / "here", mirror, 2)
    assert dcp.latest(tmp_path / "here") == tmp_path / "here" / "attempt-001" / "checkpoint-00000002"
    assert names(mirror) == ["checkpoint-00000001"]
    assert any("checkpoint-00000002" in key for key in keys(mirror.root)), "nothing of it was sent"
    proxy.reset()
    saved(tmp_path / "here", mirror, 2, 3)
    assert names(mirror)[0] == "checkpoint-00000003"
    put(mirror.root / "attempt-001" / "checkpoint-00000003" / ".metadata", b"short")
    directory = mirror.fetch_latest(tmp_path / "there")
    assert directory is not None
    assert directory.name == "checkpoint-00000002"


def test_faults_that_pass_change_nothing(tmp_path: Path, mirror: RunMirror, proxy: Proxy) -> None:  # noqa: F811
    proxy.fault = once_each("503")
    saved(tmp_path / "here", mirror, 1)
    directory = mirror.fetch_latest(tmp_path / "there")
    assert directory is not None
    assert proxy.faulted
    for path in directory.iterdir():
        assert path.read_bytes() == (tmp_path / "here" / "attempt-001" / directory.name / path.name).read_bytes()


def test_only_s3_is_a_mirror() -> None:
    with pytest.raises(UsageError, match="expected s3://"):
        Mirror.of("/a/disk", "model")


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_goes_on_where_nothing_of_it_is_left(
    tmp_path: Path,
    registry_root: Path,
    bucket: S3Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its workers die, then its disk; it is resumed in another folder and ends like a run that was left alone."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setattr(runs, "_POLL_S", 0.01)
    config = TrainConfig.from_dict(TINY.to_dict() | {"max_failures": 0})
    mirror_uri = f"s3://{bucket.bucket}/runs"
    run = Run(tmp_path, registry_root, "mirrored")
    seen = Mirror.of(mirror_uri, "mirrored").of_run("run-001")
    killed: list[int] = []

    def kill(progress: dict[str, Any]) -> None:
        if not killed and seen.complete_newest_first():
            killed.append(progress["step"])
            os.kill(run.worker_pids()[0], signal.SIGKILL)

    arguments = run.arguments | {"num_workers": 1, "mirror_uri": mirror_uri}
    with pytest.raises(ServiceError, match="--resume"):
        train(config, on_progress=kill, **arguments)
    before = loss_curve(run.dir / PROGRESS)
    shutil.rmtree(tmp_path / "runs")
    result = train(config, **(arguments | {"storage": tmp_path / "elsewhere", "resume": True}))
    run_dir = tmp_path / "elsewhere" / "mirrored" / "run-001"
    after = loss_curve(run_dir / PROGRESS)
    assert min(after) > 4, "it began anew instead of going on"
    assert all(before[step] == after[step] for step in before.keys() & after.keys())
    assert set(before) | set(after) == set(range(1, max(after) + 1))
    assert result.tokens > 10_000
    # The version names the copy of its weights, and can be loaded where their own folder is not.
    monkeypatch.setenv("NULLS_WORK", str(tmp_path / "work"))
    there = flavor.load(result.model_uri, tracking_uri=run.arguments["tracking_uri"])
    shutil.rmtree(tmp_path / "elsewhere")
    here = flavor.load(result.model_uri, tracking_uri=run.arguments["tracking_uri"])
    assert all(torch.equal(a, b) for a, b in zip(here.model.parameters(), there.model.parameters(), strict=True))
    # A new run never takes the name of one that is only in the mirror.
    assert Mirror.of(mirror_uri, "mirrored").run_names() == ["run-001"]
