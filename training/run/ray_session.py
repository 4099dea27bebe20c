"""Connect to Ray, and run a job's workers under Ray Train, which restarts them when one dies.

Cost: a Ray of our own starts in about 8 s on two idle cores; workers take another 8 s to import torch and transformers.

Run: ``with session(None, num_workers=2): fit(job, attempt, workers)``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from registry.connectivity import OWN_RAY, ray_session
from registry.errors import ServiceError
from training.run.protocol import PROGRESS, Job
from training.run.worker import run_worker
from training.run.worker_range import Workers
from training.tracking import restarts

_ADVICE = "check --ray-address or RAY_ADDRESS"

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def session(address: str | None, num_workers: int) -> Iterator[None]:
    """Connect to Ray for the duration of the block; does nothing where this process is connected already.

    Args:
        address: of a cluster; by default RAY_ADDRESS, which Ray sets in its jobs, else `OWN_RAY`.
        num_workers: the workers that a Ray of our own must have cores for.

    Raises:
        ServiceError: there is no Ray at the address.
    """
    # Both are read when ray is imported or started.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if (address or os.environ.get("RAY_ADDRESS") or OWN_RAY) == OWN_RAY:
        # Looks for nodes that a cloud takes back; on one machine, 3 s of a core at each start for nothing.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # On a machine with fewer cores than workers, the workers would otherwise wait for cores for ever.
    num_cpus = max(num_workers, os.cpu_count() or 1)
    # Ray's processes write their complaints to stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr), ray_session(address, num_cpus=num_cpus, advice=_ADVICE):
        yield


def on_gpus(num_gpus: int, workers: Workers) -> bool:
    """Return whether workers get a GPU each; warn if there are some GPUs, but fewer than workers."""
    if 0 < num_gpus < workers.least:
        _log.warning(
            "training on CPUs: %d workers, and GPUs for %d; --workers %d trains on GPUs",
            workers.least,
            num_gpus,
            num_gpus,
        )
    return num_gpus >= workers.least


def fit(job: Job, attempt: Path, workers: Workers) -> None:
    """Run the workers until the job is done or fails; restart them as often as `max_failures` allows.

    Args:
        job: the job, the same for all workers.
        attempt: the directory for this driver's checkpoints, in the run's directory.
        workers: how many there may be.

    Raises:
        ServiceError: workers died more often than `job.config.max_failures`.
    """
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = on_gpus(int(ray.cluster_resources().get("GPU", 0)), workers)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=job.to_plain(),
        scaling_config=workers.scaling(use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            # Each driver has its own name. Otherwise Ray reads its record of the last driver's checkpoints, and refuses
            # it if one of them was deleted, or if another version of Ray wrote it.
            name=attempt.name,
            storage_path=str(attempt.parent),
            failure_config=FailureConfig(max_failures=job.config.max_failures),
            worker_runtime_env={"env_vars": _worker_environment()},
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[restarts.recorder(job.run_dir / PROGRESS)],
        ),
    )
    try:
        with _own_interrupt_handler():
            trainer.fit()
    except TrainingFailedError as error:
        causes = list(getattr(error, "worker_failures", {}).values()) or [error]
        detail = str(causes[0]).strip().splitlines() or [type(causes[0]).__name__]
        raise ServiceError(
            f"training stopped after {job.config.max_failures} restarts; the last cause: {detail[-1]}; "
            f"checkpoints are in {job.run_dir}: go on with --resume"
        ) from error


@contextlib.contextmanager
def _own_interrupt_handler() -> Iterator[None]:
    """Restore the Ctrl-C handler after the block; Ray Train replaces it and does not restore it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _worker_environment() -> dict[str, str]:
    """Return the variables with which a worker imports this project, wherever the driver was started, quietly."""
    root = str(Path(__file__).absolute().parents[2])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    return {"PYTHONPATH": os.pathsep.join([root, *others]), "TOKENIZERS_PARALLELISM": "false"}
