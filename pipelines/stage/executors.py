"""Who does the tasks of the per-file stage: processes of this machine, a Ray cluster, or Slurm's job arrays.

All three are datatrove's executors at heart (`PipelineExecutor._run_for_rank` runs the steps) and take tasks that
resume by themselves: the tasks given are those whose output is not there, and a task that was done twice changes
nothing. A lost worker is repeated (Ray, Slurm's `--requeue`) or an error that says to run the command again (local);
never a wait without end, which datatrove's local and Ray executors fall into when the system kills a worker of theirs.
On a cluster the work directory must be one that all nodes see.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from pipelines.stage import fork_server
from registry.connectivity import check_listening
from registry.errors import NullsError, ServiceError, UsageError

_RAY_RETRIES = 3  # of a task whose worker was lost; nodes are lost now and then, a task that kills three is at fault
_SLURM_POLL_SECONDS = 5.0
_SLURM_ARRAY = 1000  # tasks in an array: the limit that Slurm comes with (MaxArraySize 1001)


class ExecutorKind(enum.StrEnum):
    """Who does the tasks."""

    LOCAL = "local"
    RAY = "ray"
    SLURM = "slurm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """Where the tasks are done; nothing of it shapes what comes out.

    Attributes:
        kind: by whom.
        ray_address: of a running cluster; None for the one that RAY_ADDRESS names, else one of this machine's own.
        slurm_options: of `sbatch`, "partition=cpu"; they win over the defaults.
        verbose: lets datatrove log, to stderr too.
    """

    kind: ExecutorKind = ExecutorKind.LOCAL
    ray_address: str | None = None
    slurm_options: tuple[str, ...] = ()
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.slurm_options and self.kind is not ExecutorKind.SLURM:
            raise UsageError("--slurm-option is for --executor slurm")
        for option in self.slurm_options:
            name, equals, _ = option.partition("=")
            if not equals or not name.replace("-", "").isalnum():
                raise UsageError(f"--slurm-option {option!r}: expected NAME=VALUE, as sbatch takes it: partition=cpu")

    def executor(self, steps: list[PipelineStep], *, tasks: int, workers: int, logging_dir: Path) -> StageExecutor:
        """What runs `tasks` ranks of `steps`, `workers` at once."""
        kinds = {
            ExecutorKind.LOCAL: LocalExecutor,
            ExecutorKind.RAY: RayExecutor,
            ExecutorKind.SLURM: SlurmExecutor,
        }
        return kinds[self.kind](steps, tasks=tasks, workers=workers, logging_dir=logging_dir, execution=self)


_HERE = Execution()


class StageExecutor(PipelineExecutor):  # type: ignore[misc]
    """What the executors share; picklable, since workers get it whole.

    Args:
        pipeline: steps; pickled for each worker.
        tasks: how many ranks there are.
        workers: how many at once.
        logging_dir: for datatrove's logs and statistics.
        execution: where.
    """

    kind = ExecutorKind.LOCAL

    def __init__(
        self,
        pipeline: list[PipelineStep],
        *,
        tasks: int,
        workers: int,
        logging_dir: Path,
        execution: Execution = _HERE,
    ) -> None:
        super().__init__(pipeline, str(logging_dir), skip_completed=False)
        self.tasks, self.workers, self.execution = tasks, workers, execution

    @property
    def world_size(self) -> int:
        """The number of tasks."""
        return self.tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """What datatrove tells its steps about the machine."""
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor=self.kind.name,
        )

    @abc.abstractmethod
    def run(self) -> Iterator[int]:
        """Runs all tasks; yields each rank when it is done.

        Raises:
            ServiceError: a worker was lost, or the cluster is not to be had.
        """

    def script(self) -> str:
        """What is submitted to a batch system; "" where there is none."""
        return ""

    def run_rank(self, rank: int) -> int:
        """Runs one task; returns its rank."""
        (logger.enable if self.execution.verbose else logger.disable)("datatrove")
        self._run_for_rank(rank, local_rank=rank % self.workers)
        return rank


class LocalExecutor(StageExecutor):
    """Processes of this machine; with one worker, this process.

    Here a lost worker is an error, workers end with their parent, and the tasks given are the tasks run.
    """

    def run(self) -> Iterator[int]:
        """Runs all tasks; yields each rank when it is done.

        Raises:
            ServiceError: a worker process was killed.
        """
        if min(self.workers, self.tasks) <= 1:
            for rank in range(self.tasks):
                yield self.run_rank(rank)
        else:
            yield from self._run_pool()

    def _run_pool(self) -> Iterator[int]:
        context = fork_server.context()
        theirs, ours = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(
            min(self.workers, self.tasks), context, initializer=_begin, initargs=(theirs, dict(os.environ))
        )
        try:
            futures = [pool.submit(self.run_rank, rank) for rank in range(self.tasks)]
            for future in as_completed(futures):
                yield future.result()
        except BaseException as error:
            ours.close()  # whoever still works ends now
            if not isinstance(error, BrokenProcessPool):
                raise
            raise ServiceError(
                "a worker process was killed, perhaps because memory ran out; "
                "run the same command again with fewer --workers: finished files are kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            ours.close()
            theirs.close()


def _begin(parent: Connection, environment: Mapping[str, str]) -> None:
    """Gives this worker the environment that its parent has now, and ends it when the parent is killed or gives up.

    The process that workers are forked from may be older than a setting, such as credentials.
    """
    os.environ.update(environment)

    def watch() -> None:
        try:
            parent.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class RayExecutor(StageExecutor):
    """Tasks of a Ray cluster, a core each. Ray repeats a task whose worker or node was lost."""

    kind = ExecutorKind.RAY

    def run(self) -> Iterator[int]:
        """See `StageExecutor.run`."""
        try:
            import ray
        except ImportError:
            raise UsageError("Ray is not installed; `pip install 'nulls[ray]'` brings it") from None
        started = _connect(self.execution, self.workers)
        try:
            task = ray.remote(num_cpus=1, max_retries=_RAY_RETRIES)(_run_rank)
            shared = ray.put(self)
            waiting, running = list(range(self.tasks)), dict[Any, int]()
            while waiting or running:
                while waiting and len(running) < self.workers:
                    rank = waiting.pop(0)
                    running[task.remote(shared, rank)] = rank
                (done, *_), _ = ray.wait(list(running))
                del running[done]
                yield _result(done)
        finally:
            if started:
                ray.shutdown()


def _run_rank(executor: RayExecutor, rank: int) -> int:
    return executor.run_rank(rank)


def _connect(execution: Execution, workers: int) -> bool:
    """Connects to the cluster, unless this process is; returns whether it has to be left afterwards.

    Raises:
        ServiceError: there is none at the address.
    """
    import ray

    if ray.is_initialized():
        return False
    address = execution.ray_address or os.environ.get("RAY_ADDRESS")
    check_listening(address or "", service="Ray cluster", advice="start one with `ray start --head`")
    own: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
    # Ray would tell its workers to install what this process was started with (uv run); they have it.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ServiceError(
            f"no Ray cluster at {address or 'this machine'}: {error}; start one with `ray start --head`"
        ) from error
    return True


def _result(reference: Any) -> int:
    import ray

    try:
        rank: int = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, NullsError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise ServiceError(
            f"Ray lost a worker {_RAY_RETRIES + 1} times over one task ({type(error).__name__}), perhaps because "
            "memory ran out; run the same command again: finished files are kept"
        ) from error
    return rank


class SlurmExecutor(StageExecutor):
    """Job arrays of Slurm: writes the script, submits it, and waits until the arrays have ended.

    A task of an array unpickles this executor from the logging directory and runs the rank that Slurm gives it.
    """

    kind = ExecutorKind.SLURM

    def script(self) -> str:
        """The batch script; `RUN_OFFSET` is how many tasks the arrays before it have."""
        options = self.options(min(self.tasks, _SLURM_ARRAY))
        lines = [f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in options.items()]
        command = shlex.join([sys.executable, "-m", "pipelines.stage.executors", str(self._pickle)])
        return "\n".join(["#!/bin/bash", *lines, "set -e", f"srun --ntasks=1 {command}", ""])

    def options(self, tasks: int) -> Mapping[str, str]:
        """Of `sbatch`, for an array of `tasks`."""
        chosen = {
            "job-name": "nulls-ingest",
            "array": f"0-{tasks - 1}%{self.workers}",
            "ntasks": "1",
            "cpus-per-task": "1",
            "mem-per-cpu": "2G",
            "time": "24:00:00",
            "output": f"{self._folder}/slurm-%A_%a.out",
            "requeue": "",
        }
        return chosen | {name: value for name, _, value in (o.partition("=") for o in self.execution.slurm_options)}

    def run(self) -> Iterator[int]:
        """See `StageExecutor.run`; all ranks come at the end."""
        if not shutil.which("sbatch"):
            raise UsageError(
                "sbatch is not on this machine; run this where jobs are submitted, or use another executor"
            )
        import dill

        self._folder.mkdir(parents=True, exist_ok=True)
        self._pickle.write_bytes(dill.dumps(self, recurse=True))
        script = self._folder / "ingest.slurm"
        script.write_text(self.script())
        for offset in range(0, self.tasks, _SLURM_ARRAY):
            size = min(_SLURM_ARRAY, self.tasks - offset)
            array = f"0-{size - 1}%{self.workers}"
            job = _called("sbatch", "--parsable", f"--array={array}", f"--export=ALL,RUN_OFFSET={offset}", str(script))
            _wait_for_job(job.split(";")[0].strip())
        yield from range(self.tasks)

    @property
    def _folder(self) -> Path:
        return Path(self.logging_dir.resolve_paths("slurm"))

    @property
    def _pickle(self) -> Path:
        return self._folder / "executor.pickle"


def _called(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", "") or str(error)
        raise ServiceError(
            f"{command[0]} refused: {words.strip()}; see --slurm-option, and --dry-run for the script"
        ) from None
    return done.stdout


def _wait_for_job(job: str) -> None:
    """Waits until Slurm knows of no task of `job` any more."""
    while subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True).stdout.strip():
        time.sleep(_SLURM_POLL_SECONDS)


def run_slurm_task(pickle: Path, environment: Mapping[str, str] = os.environ) -> int:
    """What a task of an array does; returns its rank."""
    import dill

    executor: SlurmExecutor = dill.loads(pickle.read_bytes())
    return executor.run_rank(int(environment["SLURM_ARRAY_TASK_ID"]) + int(environment.get("RUN_OFFSET", "0")))


if __name__ == "__main__":
    run_slurm_task(Path(sys.argv[1]))
