"""Run the per-file stage as tasks of a Ray cluster. Ray is imported only when it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from pipelines.stage.execution import ExecutorKind, StageExecutor
from registry.connectivity import ray_session
from registry.errors import NullsError, ServiceError, UsageError

_ADVICE = "start one with `ray start --head`"
_MAX_RETRIES = 3  # of a task whose worker was lost; nodes are lost now and then, a task that kills three is at fault


class RayExecutor(StageExecutor):
    """Tasks of a Ray cluster, one core each. Ray repeats a task whose worker or node was lost."""

    kind = ExecutorKind.RAY

    def run(self) -> Iterator[int]:
        """See `StageExecutor.run`."""
        try:
            import ray
        except ImportError:
            raise UsageError("Ray is not installed; `pip install 'nulls[ray]'` brings it") from None
        # Ray would have its workers install what this process was started with (uv run); they have it.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        with ray_session(self.execution.ray_address, num_cpus=self.workers, advice=_ADVICE):
            task = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES)(_run_rank)
            shared = ray.put(self)
            waiting, running = list(range(self.tasks)), dict[Any, int]()
            while waiting or running:
                while waiting and len(running) < self.workers:
                    rank = waiting.pop(0)
                    running[task.remote(shared, rank)] = rank
                (done, *_), _ = ray.wait(list(running))
                del running[done]
                yield _result(done)


def _run_rank(executor: RayExecutor, rank: int) -> int:
    return executor.run_rank(rank)


def _result(reference: Any) -> int:
    """Return the rank of a finished task, or raise what ended it."""
    import ray

    try:
        rank: int = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, NullsError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise ServiceError(
            f"Ray lost a worker {_MAX_RETRIES + 1} times over one task ({type(error).__name__}), perhaps because "
            "memory ran out; run the same command again: finished files are kept"
        ) from error
    return rank
