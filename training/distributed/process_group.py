"""Process group of a run: this process's rank, and actions that rank 0 does for all ranks.

Cost: one small broadcast for each action. Run: ``on_rank_0(path, lambda: path.mkdir(), group=None)``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from registry.errors import ServiceError
from registry.storage import translate_os_errors


def is_alone() -> bool:
    """Return whether there is no process group: one process, not distributed."""
    return not dist.is_initialized()


def rank() -> int:
    """Return this process's rank; 0 where there is no process group."""
    return 0 if is_alone() else dist.get_rank()


def on_rank_0(path: Path, action: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Run `action`, which writes to `path`, on rank 0; all ranks of `group` call this.

    Raises:
        ServiceError: it cannot write; on all ranks, with the same message.
    """
    failure: list[str | None] = [None]
    if rank() == 0:
        try:
            with translate_os_errors(path):
                action()
        except ServiceError as error:
            failure = [str(error)]
    if not is_alone():
        dist.broadcast_object_list(failure, src=0, group=group)
    if failure[0] is not None:
        raise ServiceError(failure[0])
