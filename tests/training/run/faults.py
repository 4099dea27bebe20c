"""Workers that fail at a set step, so that a test proves the same on a machine of any speed.

A fault takes the place of `training.run.ray_session.run_worker`. It happens in the worker itself, once in a run, and
after the last checkpoint before it is whole, so that the step that training goes on from is known.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.checkpoint import dcp
from training.run.worker import Worker, run_worker

RunWorker = Callable[[dict[str, Any]], None]
_MAX_WAIT_S = 240.0


def killed_at(*steps: int) -> RunWorker:
    """Rank 1 is killed after each of these steps: each time another process, after a restart."""

    def kill(worker: Worker) -> None:
        if worker.rank == 1 and worker.state.step in steps and _is_first_time(worker):
            _wait_for_checkpoint(worker)
            os.kill(os.getpid(), signal.SIGKILL)

    return _after_each_step(kill)


def stuck_at(step: int) -> RunWorker:
    """Rank 1 waits after this step until its node is taken away."""

    def wait(worker: Worker) -> None:
        if worker.rank == 1 and worker.state.step == step and _is_first_time(worker):
            _wait_for_checkpoint(worker)
            time.sleep(_MAX_WAIT_S)
            raise TimeoutError("the node was not taken away")

    return _after_each_step(wait)


def disk_full_at(step: int, ballast: Path) -> RunWorker:
    """Rank 0 fills the disk of `ballast` after this step; a restarted worker makes room."""

    def fill(worker: Worker) -> None:
        if worker.rank == 0 and worker.state.step == step and _is_first_time(worker):
            _wait_for_checkpoint(worker)
            # Room for lines of the progress file, not for a checkpoint.
            ballast.write_bytes(bytes(shutil.disk_usage(ballast.parent).free - 200_000))

    def run(plain_job: dict[str, Any]) -> None:
        ballast.unlink(missing_ok=True)
        _after_each_step(fill)(plain_job)

    return run


def _after_each_step(action: Callable[[Worker], None]) -> RunWorker:
    def run(plain_job: dict[str, Any]) -> None:
        advance = Worker._advance

        def advance_and_act(worker: Worker, *arguments: Any) -> None:
            advance(worker, *arguments)
            action(worker)

        Worker._advance = advance_and_act  # type: ignore[method-assign]
        run_worker(plain_job)

    return run


def _is_first_time(worker: Worker) -> bool:
    try:
        (worker.job.run_dir / f"fault-{worker.state.step:03d}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _wait_for_checkpoint(worker: Worker) -> None:
    """Wait until the newest checkpoint that this step follows is whole; it is written in the background."""
    step = worker.state.step // worker.config.checkpoint_every * worker.config.checkpoint_every
    deadline = time.monotonic() + _MAX_WAIT_S
    while True:
        latest = dcp.latest(worker.job.run_dir)
        if latest is not None and int(latest.name.removeprefix("checkpoint-")) >= step:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"no checkpoint of step {step} in {worker.job.run_dir}")
        time.sleep(0.01)
