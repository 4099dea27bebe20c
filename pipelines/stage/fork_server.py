"""The process that local workers are forked from: it imports once, early, what each of them would import anew.

Its imports take a second of one core. Begun before this process has its own modules, that second costs no time.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
from multiprocessing.context import ForkServerContext

_PRELOADED = "pipelines.stage.worker_imports"


def warm_up() -> None:
    """Starts that process, if it is not there, and returns at once."""
    context()
    multiprocessing.forkserver.ensure_running()


def context() -> ForkServerContext:
    """The start method of workers: a fork of this process would copy the locks of its running threads."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([_PRELOADED])
    return found
