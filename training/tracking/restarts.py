"""What interrupted a run, and where it went on: told to whoever watches, and kept with the run in MLflow.

Ray's controller sees workers die, rank 0 knows from where it goes on; both append to the run's progress file, and the
driver reads it (`training.tracking.runs.Follower`). The lines are `{"stopped": {rank: cause}}` and `{"begun_at": step,
"world_size": n, "attempt": folder of the driver, "cut_short": [checkpoints passed over and deleted]}`. A driver that
died has left no line: a beginning in another folder, without a cause before it, is its resume; one in the same folder
is Ray's, which changed the number of workers because nodes came.

The tag `nulls.restarts` holds, as JSON, one object a restart: step, workers, cause.

Run: ``words = restarts.take(fields)`` for each line; ``restarts.tag()``. Cost: nothing while nothing happens.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TAG = "nulls.restarts"
DRIVER_ENDED, RESIZED = "the driver ended, and was resumed", "the number of workers was changed"
_MAX_TAG_CHARS = 4900  # MLflow takes 5000
_MAX_CAUSE_CHARS = 500
# Said by the ranks that were left, of the one that went: not the cause.
_ECHOES = ("Connection closed by peer", "Connection reset by peer", "connectFullMesh failed", "NCCL")


class Restarts:
    """What a run's progress file says of interruptions, line by line."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        """One a restart: `step` it went on from, `workers` it went on with, `cause`."""
        self._cause: str | None = None
        self._attempt: str | None = None

    def take(self, fields: Mapping[str, Any]) -> str | None:
        """Takes a line; returns words for a person where it says something of an interruption, else None."""
        if "stopped" in fields:
            self._cause = likely_cause(fields["stopped"])
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
        """The restarts as JSON; the oldest are left out where MLflow would not take them all."""
        for first in range(len(self.entries)):
            text = json.dumps(self.entries[first:], ensure_ascii=False)
            if len(text) <= _MAX_TAG_CHARS:
                return text
        return "[]"


def likely_cause(stopped: Mapping[str, str]) -> str:
    """Of what each rank ended with, the one that is not only an echo of another's end."""
    causes = [f"rank {rank}: {cause}" for rank, cause in sorted(stopped.items(), key=lambda item: int(item[0]))]
    return next((cause for cause in causes if not any(echo in cause for echo in _ECHOES)), causes[0])


def recorder(progress: Path) -> Any:
    """A callback for Ray Train's controller that appends to a progress file what workers ended with.

    The class is made here, so that it travels by value: the controller cannot always import this project.
    """
    from ray.train import UserCallback

    max_chars, path = _MAX_CAUSE_CHARS, str(progress)

    class Recorder(UserCallback):  # type: ignore[misc]
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            causes = {}
            for rank, error in worker_exceptions.items():
                # Ray wraps what a worker raised, and says at length what it knows of a process that died.
                inner = getattr(error, "_base_exc", None) or getattr(error, "health_check_failure", None) or error
                words = " ".join(str(inner).split())
                words = words.rpartition("The actor is dead because ")[2]  # after three lines of ids
                causes[str(rank)] = f"{type(inner).__name__}: {words}"[:max_chars]
            # A full disk may be the cause; the controller has to live on.
            with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"time": time.time(), "stopped": causes}) + "\n")

    return Recorder()
