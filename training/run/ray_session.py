"""Ray as a run uses it: a session, and workers that are started again until they come to their end.

Cost: a session of our own starts in about 8 s on two idle cores; workers import torch and transformers in as much.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from registry.connectivity import check_listening
from registry.errors import ServiceError
from training.run import worker as loop
from training.run.protocol import PROGRESS, Job
from training.run.worker_range import Workers
from training.tracking import restarts


@contextlib.contextmanager
def session(address: str | None, num_workers: int) -> Iterator[None]:
    """A Ray session: the one that is connected, that of `address` or RAY_ADDRESS (set in a job of a cluster, whose
    files its workers get), or one of our own that ends with the block."""
    # Both are read when ray is imported or started.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # Ray prints what its processes complain of to stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield
            return
        # `local` is one of our own, even where another runs on this machine.
        address = address or os.environ.get("RAY_ADDRESS") or "local"
        own: dict[str, Any] = {}
        if address == "local":
            # On a machine with fewer cores than workers, these would otherwise wait for cores for ever.
            own = {"include_dashboard": False, "num_cpus": max(num_workers, os.cpu_count() or 1)}
            # Watches for nodes that a cloud takes back: here, 3 s of a core at each start for nothing.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        else:
            check_listening(address, service="Ray cluster", advice="check --ray-address or RAY_ADDRESS")
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ServiceError(f"Ray at {address}: {error}; check --ray-address or RAY_ADDRESS") from error
        try:
            yield
        finally:
            ray.shutdown()


def on_gpus(num_gpus: int, workers: Workers) -> bool:
    """Whether workers get a GPU each; with fewer GPUs than workers they train on CPUs, and stderr says so."""
    if 0 < num_gpus < workers.least:
        sys.stderr.write(
            f"training on CPUs: {workers.least} workers, and GPUs for {num_gpus}; --workers {num_gpus} trains on GPUs\n"
        )
    return num_gpus >= workers.least


def fit(job: Job, attempt: Path, workers: Workers) -> None:
    """Runs the workers to their end, through as many of their deaths as the configuration allows.

    Raises:
        ServiceError: more workers died than that.
    """
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = on_gpus(int(ray.cluster_resources().get("GPU", 0)), workers)
    trainer = TorchTrainer(
        loop.run_worker,
        train_loop_config=job.to_plain(),
        scaling_config=workers.scaling(use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            # A name of its own for each driver: Ray would otherwise take up its own record of the last one's
            # checkpoints, and refuse it where one was deleted or written by another version of Ray.
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
    """Puts back the handler of Ctrl-C that Ray Train replaces, and would leave replaced."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _worker_environment() -> dict[str, str]:
    """What a worker needs to import this project, wherever the driver was started, and to be quiet."""
    root = str(Path(__file__).absolute().parents[2])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != root]
    return {"PYTHONPATH": os.pathsep.join([root, *others]), "TOKENIZERS_PARALLELISM": "false"}
