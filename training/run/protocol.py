"""The contract between a driver and its workers: the job, and the files that report a run's progress and its end.

Only rank 0 writes `PROGRESS`, one JSON object a line, and it holds a lock while it does. If two drivers train in one
run, the second waits up to a minute and then fails with a message.

Run: ``with writing(run_dir, rank) as log: log.write(step=1, loss=5.2)``. Cost: microseconds a line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from registry.errors import RefusedError, ServiceError
from registry.storage import file_lock
from training.config import TrainConfig

PROGRESS, RESULT, FAILURE = "progress.jsonl", "result.json", "failure.json"
_LOCK = "progress.lock"
_LOCK_WAIT_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The driver's instructions to each worker: values, and paths on a disk that all of them share."""

    config: TrainConfig
    run_dir: Path
    """The run's directory; `tokenizer/` is in it."""
    attempt: str
    """Name of the folder in `run_dir` for this driver's checkpoints."""
    cache: Path
    """Path of the token cache."""
    heldout: tuple[int, ...]
    """Ids of the sources that are not trained on."""
    facts: dict[str, Any]
    """Further entries of `nulls.json`: registry, run_id."""
    remote_run: str | None = None
    """This run's s3:// prefix for remote copies of its checkpoints; None keeps none."""

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values: Ray's controller unpickles them too, and cannot always import this project."""
        return {
            "config": self.config.to_dict(),
            "run_dir": str(self.run_dir),
            "attempt": self.attempt,
            "cache": str(self.cache),
            "heldout": list(self.heldout),
            "facts": self.facts,
            "remote_run": self.remote_run,
        }

    @classmethod
    def from_plain(cls, fields: dict[str, Any]) -> Job:
        """Build it from what `to_plain` returned."""
        return cls(
            config=TrainConfig.from_dict(fields["config"]),
            run_dir=Path(fields["run_dir"]),
            attempt=fields["attempt"],
            cache=Path(fields["cache"]),
            heldout=tuple(fields["heldout"]),
            facts=fields["facts"],
            remote_run=fields["remote_run"],
        )


class ProgressLog:
    """A file of one JSON object a line; each line is written in one call, so that a reader sees whole lines."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._lock = threading.Lock()  # the thread that writes checkpoints reports them

    def write(self, **fields: Any) -> None:
        """Append a line; on ranks other than 0, do nothing."""
        if self._file is not None:
            with self._lock:
                self._file.write(json.dumps({"time": time.time(), **fields}) + "\n")
                self._file.flush()


@contextlib.contextmanager
def writing(run_dir: Path, rank: int) -> Iterator[ProgressLog]:
    """Open the progress file on rank 0, under a lock that the system frees when its holder dies, however it dies.

    Raises:
        ServiceError: another process has held the lock for `_LOCK_WAIT_S`.
    """
    if rank:
        yield ProgressLog(None)
        return
    busy = f"run {run_dir}: another process is still training in it; wait for it or stop it"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(run_dir / _LOCK, timeout_s=_LOCK_WAIT_S, busy=busy))
        except RefusedError as error:
            raise ServiceError(str(error)) from None  # Ray retries: the other process may end meanwhile
        yield ProgressLog(stack.enter_context((run_dir / PROGRESS).open("a", encoding="utf-8")))
