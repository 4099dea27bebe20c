"""Several ranks without Ray, in seconds: processes forked from one that has done their imports."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from registry.snapshot import Snapshot
from training.checkpoint import dcp
from training.config import TrainConfig
from training.data.token_cache import TokenCache
from training.data.tokenizer import sample_texts, train_tokenizer
from training.run.protocol import PROGRESS, Job, ProgressLog
from training.run.worker import Worker


def run_ranks(world_size: int, function: Callable[..., None], *arguments: Any, backend: str = "gloo") -> None:
    """Call `function(rank, *arguments)` on each rank of a process group; raise the error of any."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "training.run.worker", "tests.training.distributed.ranks"])
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _in_group, (world_size, folder, backend, function, arguments), nprocs=world_size, start_method="forkserver"
        )


def _in_group(
    rank: int, world_size: int, folder: str, backend: str, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    function(rank, *arguments)
    dist.destroy_process_group()


def prepared(snapshot: Snapshot, folder: Path, config: TrainConfig) -> Job:
    """Return the job that the driver would give to workers."""
    run_dir = folder / "run-001"
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**9), config.vocab_size)
    tokenizer.save_pretrained(str(run_dir / "tokenizer"))
    cache = TokenCache.of(snapshot, tokenizer, folder / "cache")
    return Job(config=config, run_dir=run_dir, attempt="attempt-001", cache=cache.path, heldout=(), facts={})


class StoppedError(Exception):
    """Stops a run, on all ranks, after a checkpoint."""


def train(job: Job, world_size: int, *, stop_at: int | None = None, **changes: Any) -> None:
    """Train to the end, or until the checkpoint of a step is written; `changes` are configuration fields."""
    config = TrainConfig.from_dict(job.config.to_dict() | changes)
    run_ranks(world_size, _train_rank, dataclasses.replace(job, config=config).to_plain(), stop_at)


def _train_rank(rank: int, plain_job: dict[str, Any], stop_at: int | None) -> None:
    job = Job.from_plain(plain_job)

    def report(step: int, directory: Path, written: Future[Path]) -> None:
        if step == stop_at:
            assert dcp.is_complete(written.result())
            raise StoppedError

    with (job.run_dir / PROGRESS).open("a") as file:
        log = ProgressLog(None if rank else file)
        worker = Worker(job, torch.device("cpu"), rank, dist.get_world_size(), log, report)
        try:
            worker.run(log)
        except StoppedError:
            assert stop_at is not None
        finally:
            worker.writer.close()
