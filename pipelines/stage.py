"""The per-file stage: read, clean, fingerprint and store every document of one input file, as datatrove steps.

    Read -> Clean -> Fingerprinting -> Store        one task per input file, one document in memory at a time

A task's output depends on its file and the configuration alone (`pipelines.staged`), so tasks can run in any order, on
any number of workers, twice, or again after a crash; what is complete is not done again.
Cost: 4.3 MB of wikitext a second and core: half of it extraction, a quarter fingerprints, the rest reading and storing.

    tasks = tasks_for(find_inputs({InputKind.WIKIPEDIA: ["dumps/"]}).files, Path("work/stage"))
    for task in run_tasks(tasks, config=StageConfig(), workers=4, logging_dir=logs): ...
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger

from pipelines import extract, filters, minhash, staged
from pipelines.document import Document, Redirect, WikiSite
from pipelines.inputs import Input, InputKind
from registry.errors import InputError, RecordError, ServiceError
from registry.identity import WebSource
from registry.schema import Kind, Status

Item: TypeAlias = Document | Redirect | WikiSite
Items: TypeAlias = Generator[Item, None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One input file and where its output goes."""

    number: int
    input: Input
    folder: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What the stage's output depends on beside the file.

    Attributes:
        filters: which documents are dropped.
        dedup: what is fingerprinted.
        web_source: what a web source is.
        html: what makes text of HTML.
    """

    filters: filters.FilterConfig = dataclasses.field(default_factory=filters.FilterConfig)
    dedup: minhash.DedupConfig = dataclasses.field(default_factory=minhash.DedupConfig)
    web_source: WebSource = WebSource.DOMAIN
    html: extract.HtmlExtractor = extract.HtmlExtractor.RESILIPARSE


def tasks_for(inputs: Sequence[Input], stage: Path) -> list[Task]:
    """A task per input, with its directory in `stage`."""
    return [
        Task(number=number, input=file, folder=stage / staged.folder_name(number, file.sha256))
        for number, file in enumerate(inputs)
    ]


def run_tasks(
    tasks: Sequence[Task],
    *,
    config: StageConfig,
    workers: int,
    logging_dir: Path,
    verbose: bool = False,
) -> Iterator[Task]:
    """Does the tasks that are not yet complete; yields each task when it is done, in any order.

    Raises:
        ServiceError: the output cannot be written, or a worker was killed.
    """
    pending = []
    for task in tasks:
        if staged.is_complete(task.folder):
            yield task
        else:
            pending.append(task)
    if pending:
        steps = [Read(pending, config.web_source), Clean(config), Fingerprinting(config.dedup), Store(pending)]
        executor = LocalExecutor(steps, tasks=len(pending), workers=workers, logging_dir=logging_dir, verbose=verbose)
        for rank in executor.run():
            yield pending[rank]


class Read(PipelineStep):  # type: ignore[misc]
    """Input file -> documents, redirects, sites. A file that is not what it should be is one failed document."""

    type = "Reader"
    name = "input files"

    def __init__(self, tasks: Sequence[Task], web_source: WebSource) -> None:
        super().__init__()
        self.tasks, self.web_source = tasks, web_source

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Items:
        """Yields everything in the file of task `rank`."""
        file = self.tasks[rank].input
        try:
            yield from _reader(file.kind, self.web_source)(file.path, file.name)
        except InputError as error:
            yield _failed_file(file, str(error))
        except OSError as error:
            raise ServiceError(f"cannot read {file.path}: {error.strerror}; run the same command again") from error


class Clean(PipelineStep):  # type: ignore[misc]
    """Markup -> text, then kept or filtered. What cannot be extracted is a failed document."""

    type = "Filter"
    name = "extract and filter"

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: Items, rank: int = 0, world_size: int = 1) -> Items:
        """Passes everything on; documents have text, and a status other than KEPT if they are not to be trained on."""
        for item in data:
            if isinstance(item, Document) and item.status is Status.KEPT:
                _clean(item, self.config)
            yield item


class Fingerprinting(PipelineStep):  # type: ignore[misc]
    """Pairs each kept document with its fingerprint."""

    type = "Dedup"
    name = "normal hash and MinHash bands"

    def __init__(self, config: minhash.DedupConfig) -> None:
        super().__init__()
        self.config = config

    def run(
        self, data: Items, rank: int = 0, world_size: int = 1
    ) -> Generator[tuple[Item, minhash.Fingerprint | None], None, None]:
        """Yields (item, fingerprint), with None for what is not kept."""
        for item in data:
            if isinstance(item, Document) and item.status is Status.KEPT:
                yield item, minhash.fingerprint(item.text, self.config)
            else:
                yield item, None


class Store(PipelineStep):  # type: ignore[misc]
    """Writes a task's directory; it is there only when the file was read to its end."""

    type = "Writer"
    name = "staged Parquet"

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = tasks

    def run(
        self,
        data: Iterable[tuple[Item, minhash.Fingerprint | None]],
        rank: int = 0,
        world_size: int = 1,
    ) -> Iterator[None]:
        """Consumes everything."""
        task = self.tasks[rank]
        with staged.StageWriter(task.folder, task.number) as writer:
            for item, fingerprint in data:
                if isinstance(item, Document):
                    row = staged.document_row(item)
                    writer.document(row, item.text, fingerprint)
                    for kind, alias in item.aliases if item.key else ():
                        writer.name(row["origin_id"], kind, alias)
                    self.stat_update(item.status.value)
                elif isinstance(item, Redirect):
                    writer.redirect(item)
                else:
                    writer.site(item)
        yield from ()


def _reader(kind: InputKind, web_source: WebSource) -> Callable[[Path, str], Iterator[Item]]:
    """What reads inputs of `kind`: yields items from a path and the input's name; InputError if it is none of its."""
    if kind is InputKind.WEB:
        from pipelines.readers.warc import read_archive

        return functools.partial(read_archive, web_source=web_source)
    if kind is InputKind.BOOKS:
        from pipelines.readers.books import read_book

        return read_book
    from pipelines.readers.articles import read_articles

    return read_articles


_KINDS = {InputKind.WIKIPEDIA: Kind.WIKI, InputKind.WEB: Kind.WEB, InputKind.BOOKS: Kind.BOOK}
_REFUSED = {
    InputKind.WIKIPEDIA: "not-a-dump",
    InputKind.WEB: "not-an-archive",
    InputKind.BOOKS: "not-a-book",
}


def _failed_file(file: Input, detail: str) -> Document:
    document = Document(kind=_KINDS[file.kind], key=None, locator="0", input_file=file.name)
    document.end(Status.FAILED, _REFUSED[file.kind], detail)
    return document


def _clean(document: Document, config: StageConfig) -> None:
    try:
        extract.extract(document, config.html)
    except RecordError as error:
        document.end(Status.FAILED, error.reason, error.detail)
    except Exception as error:  # one page must not cost the run; it is counted, named and can be looked up
        document.end(Status.FAILED, "extract-error", f"{type(error).__name__}: {error}")
    else:
        filters.apply(document, config.filters)
    document.markup = ""


class LocalExecutor(PipelineExecutor):  # type: ignore[misc]
    """datatrove's local executor, for tasks that resume by themselves.

    The stock one waits forever for a worker that the system killed (out of memory), leaves processes behind when it is
    killed itself, and trusts markers of finished tasks more than their output. Here a lost worker is an error, workers
    end with their parent, and the tasks given are the tasks run.

    Args:
        pipeline: steps; pickled for each worker.
        tasks: how many ranks there are.
        workers: processes; 1 runs in this one.
        logging_dir: for datatrove's logs and statistics.
        verbose: lets datatrove log, to stderr too.
    """

    def __init__(
        self,
        pipeline: list[PipelineStep],
        *,
        tasks: int,
        workers: int,
        logging_dir: Path,
        verbose: bool = False,
    ) -> None:
        super().__init__(pipeline, str(logging_dir), skip_completed=False)
        self.tasks, self.workers, self.verbose = tasks, workers, verbose

    @property
    def world_size(self) -> int:
        """The number of tasks."""
        return self.tasks

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """What datatrove tells its steps about the machine."""
        return DistributedEnvVars(
            datatrove_node_ips="localhost",
            datatrove_cpus_per_task="-1",
            datatrove_mem_per_cpu="-1",
            datatrove_gpus_on_node="-1",
            datatrove_executor="LOCAL",
        )

    def run(self) -> Iterator[int]:
        """Runs all tasks; yields each rank when it is done.

        Raises:
            ServiceError: a worker process was killed.
        """
        if min(self.workers, self.tasks) <= 1:
            for rank in range(self.tasks):
                yield self.run_rank(rank)
        else:
            yield from self._run_pool()

    def run_rank(self, rank: int) -> int:
        """Runs one task; returns its rank."""
        (logger.enable if self.verbose else logger.disable)("datatrove")
        self._run_for_rank(rank, local_rank=rank % self.workers)
        return rank

    def _run_pool(self) -> Iterator[int]:
        context = multiprocessing.get_context("forkserver")  # fork would copy the locks of running threads
        theirs, ours = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(min(self.workers, self.tasks), context, initializer=_end_with, initargs=(theirs,))
        try:
            futures = [pool.submit(self.run_rank, rank) for rank in range(self.tasks)]
            for future in as_completed(futures):
                yield future.result()
        except BaseException as error:
            ours.close()  # whoever still works ends now
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


def _end_with(parent: Connection) -> None:
    """Ends this worker when the other end of `parent` is closed, be it that the parent was killed or gave up."""

    def watch() -> None:
        try:
            parent.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
