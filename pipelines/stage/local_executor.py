"""Run the per-file stage in processes of this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from pipelines.stage import fork_server
from pipelines.stage.execution import StageExecutor
from registry.errors import ServiceError


class LocalExecutor(StageExecutor):
    """Processes of this machine; with one worker, this process.

    Unlike datatrove's, it fails when a worker is lost, ends its workers with their parent, and runs all tasks given.
    """

    def run(self) -> Iterator[int]:
        """Run all tasks; yield each rank when it is done.

        Raises:
            ServiceError: a worker process was killed.
        """
        if min(self.workers, self.tasks) <= 1:
            for rank in range(self.tasks):
                yield self.run_rank(rank)
        else:
            yield from self._run_pool()

    def _run_pool(self) -> Iterator[int]:
        context = fork_server.context()
        theirs, ours = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(
            min(self.workers, self.tasks), context, initializer=_begin, initargs=(theirs, dict(os.environ))
        )
        try:
            futures = [pool.submit(self.run_rank, rank) for rank in range(self.tasks)]
            for future in as_completed(futures):
                yield future.result()
        except BaseException as error:
            ours.close()  # ends the workers that are still running
            if not isinstance(error, BrokenProcessPool):
                raise
            raise ServiceError(
                "a worker process was killed, perhaps because memory ran out; "
                "run the same command again with fewer --workers: finished files are kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            ours.close()
            theirs.close()


def _begin(parent: Connection, environment: Mapping[str, str]) -> None:
    """Give this worker its parent's present environment, and end it when the parent is killed or gives up.

    The process that workers are forked from may be older than a setting, such as credentials.
    """
    os.environ.update(environment)

    def watch() -> None:
        try:
            parent.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
