"""The interruptions of a run, each with its cause and the step from which training went on.

Ray's controller sees workers die, and rank 0 knows from which step it goes on. Both append to the run's progress file,
and the driver reads it (`training.tracking.runs.Follower`), shows a message, and logs the restarts to MLflow. The lines
are `{"stopped": {rank: cause}}` and `{"begun_at": step, "world_size": n, "attempt": the driver's folder, "cut_short":
[checkpoints that were incomplete, and deleted]}`. A driver that dies leaves no line. So a `begun_at` line without a
`stopped` line before it means: in another folder, that the driver was resumed; in the same folder, that Ray changed the
number of workers, because nodes came.

The MLflow tag `nulls.restarts` holds, as JSON, one object for each restart: step, workers, cause.

Run: ``message = restarts.take(fields)`` for each line, then ``restarts.tag()``. Cost: microseconds a line.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from registry.messages.masking import masked

TAG = "nulls.restarts"
DRIVER_ENDED, RESIZED = "the driver ended, and was resumed", "the number of workers was changed"
_MAX_TAG_CHARS = 4900  # MLflow takes 5000
_MAX_CAUSE_CHARS = 500
# Errors of the ranks that survive when another dies: an effect, not the cause.
_ECHOES = ("Connection closed by peer", "Connection reset by peer", "connectFullMesh failed", "NCCL")


class Restarts:
    """The restarts of a run, collected from its progress file line by line."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        """One for each restart: the `step` it went on from, the number of `workers`, the `cause`."""
        self._cause: str | None = None
        self._attempt: str | None = None

    def take(self, fields: Mapping[str, Any]) -> str | None:
        """Take a line; return a message for a person if it is about an interruption, else None."""
        if "stopped" in fields:
            self._cause = masked(likely_cause(fields["stopped"]))
            return f"training was interrupted: {self._cause}"
        if "begun_at" not in fields:
            return None
        return self._begin(fields["begun_at"], fields["world_size"], fields["attempt"], fields["cut_short"])

    def _begin(self, step: int, world_size: int, attempt: str, cut_short: list[str]) -> str | None:
        cause, self._cause = self._cause, None
        before, self._attempt = self._attempt, attempt
        if before is None:
            return None
        damaged = f"; passed over, being cut short: {', '.join(cut_short)}" if cut_short else ""
        cause = cause or (RESIZED if before == attempt else DRIVER_ENDED)
        self.entries.append({"step": step, "workers": world_size, "cause": cause + damaged})
        return f"training goes on from step {step}, workers: {world_size}{damaged}"

    def tag(self) -> str:
        """Return the restarts as JSON, without the oldest ones where all of them exceed MLflow's limit."""
        for first in range(len(self.entries)):
            text = json.dumps(self.entries[first:], ensure_ascii=False)
            if len(text) <= _MAX_TAG_CHARS:
                return text
        return "[]"


def likely_cause(stopped: Mapping[str, str]) -> str:
    """Return the error of the first rank whose error is not only an effect of another rank's death."""
    causes = [f"rank {rank}: {cause}" for rank, cause in sorted(stopped.items(), key=lambda item: int(item[0]))]
    return next((cause for cause in causes if not any(echo in cause for echo in _ECHOES)), causes[0])


def recorder(progress: Path) -> Any:
    """Return a callback for Ray Train's controller that appends the errors of workers to a progress file.

    The class is defined inside this function, so that it is pickled by value: the controller cannot always import this
    project.
    """
    from ray.train import UserCallback

    max_chars, path = _MAX_CAUSE_CHARS, str(progress)

    class Recorder(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            causes = {}
            for rank, error in worker_exceptions.items():
                # Ray wraps the error of a worker, and adds three lines of ids to that of a process that died.
                inner = getattr(error, "_base_exc", None) or getattr(error, "health_check_failure", None) or error
                message = " ".join(str(inner).split()).rpartition("The actor is dead because ")[2]
                causes[str(rank)] = f"{type(inner).__name__}: {message}"[:max_chars]
            # The disk may be full, which may be the cause; the controller must go on all the same.
            with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": time.time(), "stopped": causes}) + "\n")

    return Recorder()
