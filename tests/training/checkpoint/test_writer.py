"""Runs on several ranks, interrupted and resumed with other numbers of workers or another kind of parallelism."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from registry.errors import ServiceError
from registry.snapshot import Snapshot
from tests.training.checkpoint.full_disk import small_disk
from tests.training.checkpoint.test_dcp import made, state, train_step
from tests.training.conftest import corpus, write_snapshot
from tests.training.distributed.ranks import prepared, run_ranks, train
from training.checkpoint import dcp, export
from training.checkpoint.dcp import Content
from training.checkpoint.writer import CheckpointWriter
from training.config import TrainConfig
from training.data.token_cache import TokenCache
from training.data.tokenizer import load_tokenizer
from training.run.protocol import PROGRESS, RESULT, Job
from training.tracking.runs import loss_curve

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
    return [json.loads(line) for line in (job.run_dir / PROGRESS).read_text().splitlines()]


def assert_same_numbers(job: Job, other: Job) -> None:
    """Assert equal losses of all steps and equal final weights, up to the order in which floats were added."""
    expected, got = loss_curve(job.run_dir / PROGRESS), loss_curve(other.run_dir / PROGRESS)
    assert got.keys() == expected.keys()
    assert len(expected) == 18
    assert list(got.values()) == pytest.approx(list(expected.values()), rel=1e-4)
    weights = [load_file(run.run_dir / export.WEIGHTS / "model.safetensors") for run in (job, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert (weights[1][name] - value).abs().max() < 2e-3, name


@pytest.fixture(scope="module")
def undisturbed(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run on two workers without interruption."""
    job = prepared(snapshot, tmp_path_factory.mktemp("undisturbed"), CONFIG)
    train(job, 2)
    return job


def result(job: Job) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((job.run_dir / RESULT).read_bytes())
    return content


@pytest.mark.slow
def test_moved_between_numbers_of_workers_and_wrappers(undisturbed: Job, snapshot: Snapshot, tmp_path: Path) -> None:
    job = prepared(snapshot, tmp_path, CONFIG)
    train(job, 2, stop_at=5, parallel="fsdp")
    train(job, 3, stop_at=10, parallel="fsdp")
    train(job, 1, stop_at=15, parallel="ddp")
    train(job, 2, parallel="fsdp", activation_checkpointing=True)
    assert_same_numbers(undisturbed, job)
    begun = [(line["begun_at"], line["world_size"]) for line in lines(job) if "begun_at" in line]
    assert begun == [(0, 2), (5, 3), (10, 1), (15, 2)]
    # The exported model is not wrapped, however it was trained.
    configs = [json.loads((run.run_dir / export.WEIGHTS / "config.json").read_bytes()) for run in (undisturbed, job)]
    assert configs[0] == configs[1]
    assert configs[0]["architectures"] == ["NullsForCausalLM"]


@pytest.mark.slow
def test_every_token_counts_once_over_all_resumes(undisturbed: Job, snapshot: Snapshot, tmp_path: Path) -> None:
    job = prepared(snapshot, tmp_path, CONFIG)
    train(job, 2, stop_at=5)
    train(job, 2, stop_at=15)
    newest = dcp.latest(job.run_dir)
    assert newest is not None
    (newest / ".metadata").unlink()  # cut short, so ten steps are done again
    train(job, 2)
    assert result(job) | {"tokens_per_second": 0} == result(undisturbed) | {"tokens_per_second": 0}
    per_step = {line["step"]: line["num_targets"] for line in lines(job) if "loss" in line}
    assert result(job)["tokens"] == sum(per_step.values())
    assert sum("loss" in line for line in lines(job)) > len(per_step), "no step was done again"
    begun = [line for line in lines(job) if "begun_at" in line]
    assert [line["begun_at"] for line in begun] == [0, 5, 10]
    assert begun[-1]["cut_short"] == [newest.name]
    assert not newest.exists() or dcp.is_complete(newest)


def test_workers_refuse_another_snapshot_too(undisturbed: Job, snapshot: Snapshot, tmp_path: Path) -> None:
    documents = corpus()
    documents["wiki:tinywiki:1"] = ["Something else."]
    other = write_snapshot(tmp_path / "registry", documents)
    tokenizer = load_tokenizer(undisturbed.run_dir / "tokenizer")
    cache = TokenCache.of(other, tokenizer, tmp_path / "cache")
    with pytest.raises(mp.ProcessRaisedException, match="RefusedError: cannot resume") as refusal:
        train(dataclasses.replace(undisturbed, cache=cache.path), 1)
    assert f"got snapshot {other.id}, the run began with snapshot {snapshot.id}" in str(refusal.value)


def writer_of(run_dir: Path, completed: list[str], *, keep: int = 5) -> CheckpointWriter:
    folder = run_dir / "attempt-001"
    return CheckpointWriter(
        run_dir, folder, keep=keep, in_background=True, on_complete=lambda path, step: completed.append(path.name)
    )


def test_training_continues_during_a_write_and_does_not_change_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, write = threading.Event(), dcp.write

    def delayed(directory: Path, content: Content, group: Any = None) -> None:
        assert may_write.wait(60)
        write(directory, content, group)

    monkeypatch.setattr(dcp, "write", delayed)
    completed: list[str] = []
    writer = writer_of(tmp_path, completed)
    model, optimizer = made(0)
    train_step(model, optimizer, source=5)
    directory, written = writer.save(model, optimizer, state(1))
    expected = [train_step(model, optimizer, source) for source in (5, 30, 9)]
    assert not written.done()
    assert dcp.latest(tmp_path) is None
    assert not completed
    may_write.set()
    writer.close()  # waits for the write, as at the end of a worker
    assert completed == [directory.name]
    assert dcp.latest(tmp_path) == directory == written.result()

    other, other_optimizer = made(1)
    dcp.load(directory, other, other_optimizer)
    assert [train_step(other, other_optimizer, source) for source in (5, 30, 9)] == expected


def test_only_one_write_is_pending_and_old_checkpoints_are_deleted(tmp_path: Path) -> None:
    completed: list[str] = []
    writer = writer_of(tmp_path, completed, keep=2)
    model, optimizer = made(0)
    before = None
    for step in (1, 2, 3):
        train_step(model, optimizer, source=step)
        _, written = writer.save(model, optimizer, state(step))
        assert before is None or before.done()
        before = written
    writer.wait()
    assert completed == [f"checkpoint-{step:08d}" for step in (1, 2, 3)]
    assert sorted(path.name for path in tmp_path.glob("*/checkpoint-*")) == completed[1:]
    writer.close()


def test_a_full_disk_is_reported_at_the_next_save_and_leaves_room_for_it(tmp_path: Path) -> None:
    model, optimizer = made(0)
    train_step(model, optimizer, source=5)
    dcp.save(tmp_path / "sizes" / "checkpoint-00000001", model, optimizer, state(1))
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "sizes").glob("*/*"))
    run_dir, completed = tmp_path / "run", []
    with small_disk(run_dir, 3 * num_bytes):
        writer = writer_of(run_dir, completed)
        for step in (1, 2, 3):
            directory, written = writer.save(model, optimizer, state(step))
        assert isinstance(written.exception(60), ServiceError)
        assert not directory.exists(), "half a checkpoint takes up space"
        assert completed == ["checkpoint-00000001", "checkpoint-00000002"]
        with pytest.raises(ServiceError, match=r"(?s)cannot write .*checkpoint-00000003.* bytes are left.*free some"):
            writer.save(model, optimizer, state(4))
        assert dcp.latest(run_dir) == run_dir / "attempt-001" / "checkpoint-00000002"
        dcp.prune(run_dir, keep=1)
        directory, _ = writer.save(model, optimizer, state(5))
        writer.close()
        assert dcp.latest(run_dir) == directory


def fail_on_both_ranks(rank: int, folder: str) -> None:
    torch.manual_seed(0)
    model, optimizer = made(0)
    writer = writer_of(Path(folder), [])
    writer.save(model, optimizer, state(1))
    writer.wait()
    # Rank 0 cannot create the directory; rank 1, which does not use it, raises the error too.
    (Path(folder) / "attempt-001" / "checkpoint-00000002").write_text("in the way")
    writer.save(model, optimizer, state(2))
    with pytest.raises(ServiceError, match="cannot write"):
        writer.wait()
    writer.save(model, optimizer, state(3))
    writer.close()


def test_all_ranks_raise_the_error_of_one(tmp_path: Path) -> None:
    run_ranks(2, fail_on_both_ranks, str(tmp_path))
    newest = dcp.latest(tmp_path)
    assert newest is not None
    assert newest.name == "checkpoint-00000003"
