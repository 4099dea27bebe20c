"""Settings of the per-file stage's executors, and what the executors share.

All are datatrove's executors at heart (`PipelineExecutor._run_for_rank` runs the steps), for tasks that resume by
themselves: the tasks given are those whose output is not there, and a task that is done twice changes nothing. A lost
worker is repeated (Ray, Slurm's `--requeue`) or an error that says to run the command again (local); it is never waited
for without end, as datatrove's local and Ray executors do when the system kills one of their workers.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from collections.abc import Iterator
from pathlib import Path

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from registry.errors import UsageError


class ExecutorKind(enum.StrEnum):
    """The kinds of executors: processes of this machine, a Ray cluster, or Slurm's job arrays."""

    LOCAL = "local"
    RAY = "ray"
    SLURM = "slurm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """The executor and its settings; none of them shapes the output.

    Attributes:
        kind: of the executor.
        ray_address: of a running cluster; None for the one that RAY_ADDRESS names, else a new one on this machine.
        slurm_options: of `sbatch`, "partition=cpu"; they override the defaults.
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


_LOCAL = Execution()


class StageExecutor(PipelineExecutor):  # type: ignore[misc]
    """Base class of the executors; picklable, since workers get it whole.

    Args:
        pipeline: steps; pickled for each worker.
        tasks: number of ranks.
        workers: ranks that run at once.
        logging_dir: for datatrove's logs and statistics.
        execution: where the ranks run.
    """

    kind = ExecutorKind.LOCAL

    def __init__(
        self,
        pipeline: list[PipelineStep],
        *,
        tasks: int,
        workers: int,
        logging_dir: Path,
        execution: Execution = _LOCAL,
    ) -> None:
        super().__init__(pipeline, str(logging_dir), skip_completed=False)
        self.tasks, self.workers, self.execution = tasks, workers, execution

    @property
    def world_size(self) -> int:
        """The number of tasks."""
        return self.tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """Return what datatrove tells its steps about the machine."""
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor=self.kind.name,
        )

    @abc.abstractmethod
    def run(self) -> Iterator[int]:
        """Run all tasks; yield each rank when it is done.

        Raises:
            ServiceError: a worker was lost, or the cluster cannot be reached.
        """

    def script(self) -> str:
        """Return what is submitted to a batch system; "" where there is none."""
        return ""

    def run_rank(self, rank: int) -> int:
        """Run one task; return its rank."""
        (logger.enable if self.execution.verbose else logger.disable)("datatrove")
        self._run_for_rank(rank, local_rank=rank % self.workers)
        return rank
