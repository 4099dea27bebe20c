"""Choose what runs the tasks of the per-file stage: processes of this machine, a Ray cluster, or Slurm's job arrays.

On a cluster the work directory must be one that all nodes see.
"""

from __future__ import annotations

from pathlib import Path

from datatrove.pipeline.base import PipelineStep

from pipelines.stage.execution import Execution, ExecutorKind, StageExecutor
from pipelines.stage.local_executor import LocalExecutor
from pipelines.stage.ray_executor import RayExecutor
from pipelines.stage.slurm_executor import SlurmExecutor

__all__ = ["Execution", "ExecutorKind", "make_executor"]

_CLASSES: dict[ExecutorKind, type[StageExecutor]] = {
    ExecutorKind.LOCAL: LocalExecutor,
    ExecutorKind.RAY: RayExecutor,
    ExecutorKind.SLURM: SlurmExecutor,
}


def make_executor(
    execution: Execution, steps: list[PipelineStep], *, tasks: int, workers: int, logging_dir: Path
) -> StageExecutor:
    """Return what runs `tasks` ranks of `steps`, `workers` of them at once.

    Args:
        execution: where they run.
        steps: pickled for each worker.
        tasks: number of ranks.
        workers: ranks that run at once.
        logging_dir: for datatrove's logs and statistics.
    """
    return _CLASSES[execution.kind](steps, tasks=tasks, workers=workers, logging_dir=logging_dir, execution=execution)
