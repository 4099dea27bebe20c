"""Run the per-file stage as job arrays of Slurm.

A task of an array runs `python -m pipelines.stage.slurm_executor PICKLE`: it unpickles the executor from the logging
directory and runs the rank that Slurm gives it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.stage.execution import ExecutorKind, StageExecutor
from registry.errors import ServiceError, UsageError

_MODULE = "pipelines.stage.slurm_executor"  # this one; run as a script, `__name__` is another
_POLL_S = 5.0
_ARRAY_TASKS = 1000  # tasks in an array: Slurm's default limit (MaxArraySize 1001)


class SlurmExecutor(StageExecutor):
    """Job arrays of Slurm: writes the script, submits it, and waits until the arrays have ended."""

    kind = ExecutorKind.SLURM

    def script(self) -> str:
        """Return the batch script; in it `RUN_OFFSET` is the number of tasks in the arrays before."""
        options = self.options(min(self.tasks, _ARRAY_TASKS))
        lines = [f"#SBATCH --{name}={value}" if value else f"#SBATCH --{name}" for name, value in options.items()]
        command = shlex.join([sys.executable, "-m", _MODULE, str(self._pickle)])
        return "\n".join(["#!/bin/bash", *lines, "set -e", f"srun --ntasks=1 {command}", ""])

    def options(self, tasks: int) -> Mapping[str, str]:
        """Return the options of `sbatch` for an array of `tasks`."""
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
        """See `StageExecutor.run`; all ranks are yielded at the end."""
        if not shutil.which("sbatch"):
            raise UsageError(
                "sbatch is not on this machine; run this where jobs are submitted, or use another executor"
            )
        import dill

        self._folder.mkdir(parents=True, exist_ok=True)
        self._pickle.write_bytes(dill.dumps(self, recurse=True))
        script = self._folder / "ingest.slurm"
        script.write_text(self.script())
        for offset in range(0, self.tasks, _ARRAY_TASKS):
            size = min(_ARRAY_TASKS, self.tasks - offset)
            array = f"0-{size - 1}%{self.workers}"
            job = _output_of(
                "sbatch", "--parsable", f"--array={array}", f"--export=ALL,RUN_OFFSET={offset}", str(script)
            )
            _wait_for_job(job.split(";")[0].strip())
        yield from range(self.tasks)

    @property
    def _folder(self) -> Path:
        return Path(self.logging_dir.resolve_paths("slurm"))

    @property
    def _pickle(self) -> Path:
        return self._folder / "executor.pickle"


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", "") or str(error)
        raise ServiceError(
            f"{command[0]} refused: {message.strip()}; see --slurm-option, and --dry-run for the script"
        ) from None
    return done.stdout


def _wait_for_job(job: str) -> None:
    """Wait until Slurm's queue holds no task of `job`."""
    while subprocess.run(["squeue", "--noheader", "--jobs", job], capture_output=True, text=True).stdout.strip():
        time.sleep(_POLL_S)


def run_slurm_task(pickle: Path, environment: Mapping[str, str] = os.environ) -> int:
    """Run one task of an array, as a job of Slurm does; return its rank.

    Args:
        pickle: of the `SlurmExecutor`.
        environment: with Slurm's SLURM_ARRAY_TASK_ID, and RUN_OFFSET from `SlurmExecutor.run`.
    """
    import dill

    executor: SlurmExecutor = dill.loads(pickle.read_bytes())
    return executor.run_rank(int(environment["SLURM_ARRAY_TASK_ID"]) + int(environment.get("RUN_OFFSET", "0")))


if __name__ == "__main__":
    run_slurm_task(Path(sys.argv[1]))
