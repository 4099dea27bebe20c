"""Whole runs on two real workers: killed, restarted and resumed, they end with the numbers of an undisturbed run."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import ray
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from registry import ids
from registry.errors import ModelExistsError, NotFoundError, RefusedError, ServiceError, UsageError
from registry.snapshot import Registry, Snapshot
from tests.training.checkpoint.full_disk import small_disk
from tests.training.run.faults import disk_full_at, killed_at
from training.checkpoint import dcp, export
from training.config import TrainConfig
from training.run import ray_session
from training.run.driver import TrainResult, train
from training.run.protocol import PROGRESS
from training.tracking.runs import DIGEST_CHARS, loss_curve
from training.tracking.store import tracking_uri

TINY = TrainConfig.preset(
    "demo",
    model={"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "num_backbone": 32}
    | {"num_pool": 64, "num_sinks": 16},
    optim={"learning_rate": 1e-2, "warmup_steps": 2},
    epochs=2,
    context_length=64,
    rows_per_step=16,
    micro_batch=4,
    min_heldout=3,
    min_heldout_bytes=500,
    vocab_size=400,
    checkpoint_every=4,
    max_failures=1,
)


class Run:
    """A call of `train`: its arguments, and the progress and messages that it reported."""

    def __init__(self, root: Path, registry: Path, name: str) -> None:
        self.arguments: dict[str, Any] = {
            "registry_uri": registry,
            "model_name": name,
            "runs_dir": root / "runs",
            "tracking_uri": f"sqlite:///{root}/mlflow.db",
        }
        self.dir = root / "runs" / name / "run-001"
        self.progress: list[dict[str, Any]] = []
        self.messages = io.StringIO()

    def train(self, config: TrainConfig = TINY, **changes: Any) -> TrainResult:
        handler = logging.StreamHandler(self.messages)
        logging.getLogger("training").addHandler(handler)
        try:
            return train(config, on_progress=self.progress.append, **(self.arguments | changes))
        finally:
            logging.getLogger("training").removeHandler(handler)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.dir / PROGRESS).read_text().splitlines()]

    def worker_pids(self) -> dict[int, int]:
        workers = [line["workers"] for line in self.lines() if "workers" in line][-1]
        return {worker["rank"]: worker["pid"] for worker in workers}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for runs, with one Ray session for all of them, started from another directory than the project's."""
    path = tmp_path_factory.mktemp("training")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        # Ray Train checks its workers every 2 s by default; these runs last a few seconds.
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield path
        ray.shutdown()
        mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def undisturbed(root: Path, registry_root: Path) -> tuple[Run, TrainResult]:
    run = Run(root, registry_root, "undisturbed")
    return run, run.train()


@pytest.fixture(scope="module")
def disturbed(root: Path, registry_root: Path) -> tuple[Run, TrainResult]:
    """A run whose worker dies twice: Ray restarts it the first time and gives up the second; then it is resumed."""
    run = Run(root, registry_root, "disturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_session, "run_worker", killed_at(6, 14))
        with pytest.raises(ServiceError, match="--resume"):
            run.train()
    return run, run.train(resume=True)


@pytest.mark.ray
def test_a_run_leaves_a_model_and_its_facts(undisturbed: tuple[Run, TrainResult], snapshot: Snapshot) -> None:
    run, result = undisturbed
    weights = run.dir / export.WEIGHTS
    nulls = json.loads((weights / "nulls.json").read_text())
    assert result.model_uri == "models:/undisturbed/1"
    assert result.snapshot == nulls["snapshot"] == snapshot.id
    assert nulls["schema"] == 1
    assert nulls["tokens"] == result.tokens > 10_000
    assert nulls["run_id"] == result.run_id
    assert TrainConfig.from_dict(nulls["train_config"]) == TINY
    assert nulls["layout"]["num_sinks"] == 16
    assert len(nulls["heldout"]) == 3
    keys = {ids.format_id(row["source_id"]): row for row in snapshot.table("sources").to_pylist()}
    assert all(keys[source]["num_bytes"] >= 500 for source in nulls["heldout"])
    assert nulls["num_trained_sources"] == len(keys) - 3 - 1  # one source has no text
    assert AutoModelForCausalLM.from_pretrained(weights, offline=True).config.num_pool == 64
    assert AutoTokenizer.from_pretrained(weights).eos_token == "<|endoftext|>"
    assert [line["step"] for line in run.progress] == list(range(1, run.progress[-1]["total_steps"] + 1))


@pytest.mark.ray
def test_the_loss_falls_and_is_reported_over_the_last_epoch(undisturbed: tuple[Run, TrainResult]) -> None:
    run, result = undisturbed
    steps = [line for line in run.lines() if "loss" in line]
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    last = [line for line in steps if line["epoch"] == 1]
    total = sum(line["num_targets"] for line in last)
    assert result.loss == pytest.approx(sum(line["loss"] * line["num_targets"] for line in last) / total)
    assert result.tokens == 2 * total


@pytest.mark.ray
@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bits(
    undisturbed: tuple[Run, TrainResult], disturbed: tuple[Run, TrainResult]
) -> None:
    (whole, whole_result), (killed, killed_result) = undisturbed, disturbed
    expected, got = loss_curve(whole.dir / PROGRESS), loss_curve(killed.dir / PROGRESS)
    assert got == expected
    assert export.weights_digest(killed.dir / "weights") == export.weights_digest(whole.dir / "weights")
    assert (killed_result.loss, killed_result.tokens) == (whole_result.loss, whole_result.tokens)
    # Not vacuous: three sets of workers, over two drivers, and steps that were repeated.
    lines = killed.lines()
    assert sum("workers" in line for line in lines) == 3
    assert len(list(killed.dir.glob("attempt-*"))) == 2
    assert sum("loss" in line for line in lines) > len(expected)
    # Each repetition of a step has the same loss, not only the last one.
    assert {(line["step"], line["loss"]) for line in lines if "loss" in line} == set(expected.items())


@pytest.mark.ray
@pytest.mark.slow
def test_mlflow_holds_parameters_curve_dataset_and_checkpoint(
    undisturbed: tuple[Run, TrainResult], disturbed: tuple[Run, TrainResult], snapshot: Snapshot
) -> None:
    for run, result in (undisturbed, disturbed):
        client = MlflowClient(run.arguments["tracking_uri"])
        logged = client.get_run(result.run_id)
        assert logged.info.status == "FINISHED"
        assert logged.data.params["model.num_sinks"] == "16"
        assert logged.data.params["sink_dropout"] == str(TINY.sink_dropout)
        history = client.get_metric_history(result.run_id, "loss")
        assert {metric.step: metric.value for metric in history} == loss_curve(run.dir / PROGRESS)
        assert len(history) == run.progress[-1]["total_steps"]  # each step once, repeated ones included
        assert logged.inputs.dataset_inputs[0].dataset.digest == snapshot.id[:DIGEST_CHARS]
        assert dcp.is_complete(Path(logged.data.tags["nulls.checkpoint"]))


@pytest.mark.ray
@pytest.mark.slow
def test_what_interrupted_a_run_is_reported_and_kept(
    undisturbed: tuple[Run, TrainResult], disturbed: tuple[Run, TrainResult]
) -> None:
    run, result = disturbed
    kept = json.loads(MlflowClient(run.arguments["tracking_uri"]).get_run(result.run_id).data.tags["nulls.restarts"])
    begun = [line["begun_at"] for line in run.lines() if "begun_at" in line]
    assert begun == [0, 4, 12], "the last whole checkpoints before steps 6 and 14"
    assert [entry["step"] for entry in kept] == begun[1:]
    assert [entry["workers"] for entry in kept] == [2, 2]
    assert all("rank 1" in entry["cause"] and "died" in entry["cause"] for entry in kept), kept
    messages = run.messages.getvalue()
    assert messages.count("training was interrupted: rank 1") == 2
    assert [f"goes on from step {step}" in messages for step in begun[1:]] == [True, True]
    other, other_result = undisturbed
    tags = MlflowClient(other.arguments["tracking_uri"]).get_run(other_result.run_id).data.tags
    assert "nulls.restarts" not in tags


@pytest.mark.ray
@pytest.mark.slow
def test_a_disk_that_fills_up_costs_steps_and_no_more(
    root: Path, registry_root: Path, undisturbed: tuple[Run, TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is full while the second checkpoint is written, and has room again after the restart."""
    disk = root / "small disk"
    with small_disk(disk, 8 << 20):
        run = Run(root, registry_root, "fills")
        run.arguments["runs_dir"] = disk
        run.dir = disk / "fills" / "run-001"
        monkeypatch.setattr(ray_session, "run_worker", disk_full_at(6, disk / "ballast"))
        result = run.train(TrainConfig.from_dict(TINY.to_dict() | {"max_failures": 3}))
        assert " bytes are left on that disk" in run.messages.getvalue()
        begun = [line["begun_at"] for line in run.lines() if "begun_at" in line]
        assert begun == [0, 4], "the disk was full after step 6"
        whole, whole_result = undisturbed
        assert (result.loss, result.tokens) == (whole_result.loss, whole_result.tokens)
        assert export.weights_digest(run.dir / "weights") == export.weights_digest(whole.dir / "weights")
        tags = MlflowClient(run.arguments["tracking_uri"]).get_run(result.run_id).data.tags
        assert " bytes are left on that disk" in json.loads(tags["nulls.restarts"])[0]["cause"]


@pytest.mark.ray
@pytest.mark.slow
def test_old_checkpoints_are_deleted_over_all_attempts(disturbed: tuple[Run, TrainResult]) -> None:
    run, _ = disturbed
    found = sorted(path.name for path in run.dir.glob("attempt-*/checkpoint-*"))
    total = run.progress[-1]["total_steps"]
    assert found == [f"checkpoint-{step:08d}" for step in ((total - 1) // 4 * 4, total)]


@pytest.mark.ray
def test_resuming_a_finished_run_returns_its_result(undisturbed: tuple[Run, TrainResult]) -> None:
    run, result = undisturbed
    assert run.train(resume=True) == result


@pytest.mark.ray
def test_a_taken_name_is_refused_before_training(
    undisturbed: tuple[Run, TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "fit", lambda *_: pytest.fail("trained"))
    run, _ = undisturbed
    with pytest.raises(ModelExistsError, match="undisturbed"):
        run.train()


@pytest.mark.ray
def test_other_data_or_settings_are_not_resumed(
    undisturbed: tuple[Run, TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = undisturbed
    changed = TrainConfig.from_dict(TINY.to_dict() | {"seed": 1})
    with pytest.raises(RefusedError) as refusal:
        run.train(changed, resume=True)
    assert changed.fingerprint() in str(refusal.value)
    assert TINY.fingerprint() in str(refusal.value)

    other = Registry.open(run.arguments["registry_uri"]).snapshot()
    manifest = {**other.manifest, "snapshot": "cd" * 32}
    monkeypatch.setattr(Registry, "snapshot", lambda *_: Snapshot(other.path, manifest))
    with pytest.raises(RefusedError, match="cd" * 32) as refusal:
        run.train(resume=True)
    assert other.id in str(refusal.value)


def test_what_would_stop_a_run_is_found_before_it(
    tmp_path: Path, registry_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "fit", lambda *_: pytest.fail("trained"))
    run = Run(tmp_path, registry_root, "early")
    with pytest.raises(UsageError, match="model name"):
        run.train(model_name="a/b")
    with pytest.raises(UsageError, match="num_workers=0"):
        run.train(num_workers=0)
    with pytest.raises(UsageError, match="held-out sources: got"):
        run.train(TrainConfig.from_dict(TINY.to_dict() | {"min_heldout": 20}))
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match=r"MLflow at sqlite.*file"):
        run.train(tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(ServiceError, match="MLflow server at http"):
        run.train(tracking_uri="http://127.0.0.1:9")
    with pytest.raises(ServiceError, match="cannot write"):
        run.train(runs_dir=tmp_path / "file")
    mlflow.set_tracking_uri(None)
    assert tracking_uri("sqlite:///x.db").startswith("sqlite:////")


def test_what_does_not_exist_is_never_begun_by_resume(
    tmp_path: Path, registry_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_session, "fit", lambda *_: pytest.fail("trained"))
    with pytest.raises(NotFoundError, match="'typo'"):
        Run(tmp_path, registry_root, "typo").train(resume=True)
    assert list(tmp_path.iterdir()) == []
