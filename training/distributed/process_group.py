"""The process group of a run: this process's rank, and an action that one rank does for all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from registry.errors import ServiceError
from registry.storage import translate_os_errors


def is_alone() -> bool:
    """Whether there is no process group: one process, not distributed."""
    return not dist.is_initialized()


def rank() -> int:
    """This process's rank; 0 where there is no process group."""
    return 0 if is_alone() else dist.get_rank()


def on_rank_0(place: Path, action: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Runs `action` on rank 0; if it cannot write, all ranks raise the same `ServiceError`."""
    failure: list[str | None] = [None]
    if rank() == 0:
        try:
            with translate_os_errors(place):
                action()
        except ServiceError as error:
            failure = [str(error)]
    if not is_alone():
        dist.broadcast_object_list(failure, src=0, group=group)
    if failure[0] is not None:
        raise ServiceError(failure[0])
