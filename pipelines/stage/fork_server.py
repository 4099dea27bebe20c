"""The process that local workers are forked from: it imports once, and early, what each of them needs.

Its imports take a second of one core; if it starts before this process imports its own modules, they run at once.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
from multiprocessing.context import ForkServerContext

_PRELOADED = "pipelines.stage.worker_imports"


def warm_up() -> None:
    """Start that process, unless it runs, and return at once."""
    context()
    multiprocessing.forkserver.ensure_running()


def context() -> ForkServerContext:
    """Return the start method of workers: a fork of this process would copy the locks of its running threads."""
    fork_context = multiprocessing.get_context("forkserver")
    fork_context.set_forkserver_preload([_PRELOADED])
    return fork_context
