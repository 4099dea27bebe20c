"""What a driver and its workers tell each other: the job, and the files of a run in which its progress and end stand.

Rank 0 alone writes `PROGRESS`, a JSON object a line, and holds a lock on it while it does: of two drivers that train in
one run, the second waits, and is told.
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
    """What the driver hands to each worker: plain values and paths on a disk that all share."""

    config: TrainConfig
    run_dir: Path
    """Of the run; `tokenizer/` is in it."""
    attempt: str
    """Name of the folder in it for this driver's checkpoints."""
    cache: Path
    """The token cache."""
    heldout: tuple[int, ...]
    """Source ids."""
    facts: dict[str, Any]
    """More for `nulls.json`: registry, run_id."""
    mirror: str | None = None
    """Where checkpoints are kept too: an s3:// prefix of this run's own."""

    def to_plain(self) -> dict[str, Any]:
        """As plain values: Ray's controller unpickles them too, and cannot always import this project."""
        return {
            "config": self.config.to_dict(),
            "run_dir": str(self.run_dir),
            "attempt": self.attempt,
            "cache": str(self.cache),
            "heldout": list(self.heldout),
            "facts": self.facts,
            "mirror": self.mirror,
        }

    @classmethod
    def from_plain(cls, fields: dict[str, Any]) -> Job:
        """The inverse of `to_plain`."""
        return cls(
            config=TrainConfig.from_dict(fields["config"]),
            run_dir=Path(fields["run_dir"]),
            attempt=fields["attempt"],
            cache=Path(fields["cache"]),
            heldout=tuple(fields["heldout"]),
            facts=fields["facts"],
            mirror=fields["mirror"],
        )


class ProgressLog:
    """Appends one JSON object a line; a line is written in one call, so a reader sees whole ones."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._lock = threading.Lock()  # checkpoints are told of by the thread that writes them

    def write(self, **fields: Any) -> None:
        """Appends a line; on ranks other than 0, nothing."""
        if self._file is not None:
            with self._lock:
                self._file.write(json.dumps({"time": time.time(), **fields}) + "\n")
                self._file.flush()


@contextlib.contextmanager
def writing(run_dir: Path, rank: int) -> Iterator[ProgressLog]:
    """Rank 0's right to write to a run: a lock that the system frees when its holder dies, however it dies."""
    if rank:
        yield ProgressLog(None)
        return
    busy = f"run {run_dir}: another process is still training in it; wait for it or stop it"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(run_dir / _LOCK, timeout_s=_LOCK_WAIT_S, busy=busy))
        except RefusedError as error:
            raise ServiceError(str(error)) from None  # Ray tries again: the other may have died meanwhile
        yield ProgressLog(stack.enter_context((run_dir / PROGRESS).open("a", encoding="utf-8")))
