"""The per-file stage: read, clean, fingerprint and store every document of one input file, as datatrove steps.

    Read -> Clean -> Fingerprinting -> Store        one task per input file, one document in memory at a time

A task's output depends only on its file and the configuration (`pipelines.stage.staging`), so tasks can run in any
order, on any workers (`pipelines.stage.executors`), twice, or again after a crash; a complete task is not run again.
Cost: 4.3 MB of wikitext a second and core: half of it extraction, a quarter fingerprints, the rest reading and storing.

    tasks = tasks_for(find_inputs({InputKind.WIKIPEDIA: ["dumps/"]}).files, Path("work/stage"))
    for task in run_tasks(tasks, config=StageConfig(), workers=4, logging_dir=logs): ...
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from datatrove.pipeline.base import PipelineStep

from pipelines.dedup import minhash
from pipelines.document import Document, Redirect, WikiSite
from pipelines.filters import rules as filters
from pipelines.inputs import Input, InputKind
from pipelines.stage import staging
from pipelines.stage.executors import Execution, make_executor
from pipelines.text import extract
from registry import ids
from registry.errors import InputError, RecordError, ServiceError
from registry.identity import WebSource
from registry.schema import Kind, Status

Item: TypeAlias = Document | Redirect | WikiSite
Items: TypeAlias = Generator[Item, None, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One input file and the directory of its output; `index` is its position among the inputs."""

    index: int
    input: Input
    folder: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """The settings that a task's output depends on, besides the file.

    Attributes:
        filters: which documents are dropped.
        dedup: how documents are fingerprinted.
        web_source: what counts as a web source.
        html: the extractor for HTML.
        removed: ids of sources that were removed from the registry, and must not come back.
    """

    filters: filters.FilterConfig = dataclasses.field(default_factory=filters.FilterConfig)
    dedup: minhash.DedupConfig = dataclasses.field(default_factory=minhash.DedupConfig)
    web_source: WebSource = WebSource.DOMAIN
    html: extract.HtmlExtractor = extract.HtmlExtractor.RESILIPARSE
    removed: frozenset[ids.SourceId] = frozenset()


def tasks_for(inputs: Sequence[Input], stage: Path) -> list[Task]:
    """Return a task for each input, with its directory in `stage`."""
    return [
        Task(index=index, input=file, folder=stage / staging.folder_name(index, file.sha256))
        for index, file in enumerate(inputs)
    ]


def run_tasks(
    tasks: Sequence[Task],
    *,
    config: StageConfig,
    workers: int,
    logging_dir: Path,
    execution: Execution = Execution(),  # noqa: B008 - immutable
) -> Iterator[Task]:
    """Run the tasks that are not complete; yield each task when it is complete, in any order.

    Args:
        tasks: all of them, complete ones too.
        config: settings that shape their output.
        workers: tasks that run at once.
        logging_dir: for datatrove's logs.
        execution: where the tasks run.

    Raises:
        ServiceError: the output cannot be written, or a worker was killed.
    """
    pending = []
    for task in tasks:
        if staging.is_complete(task.folder):
            yield task
        else:
            pending.append(task)
    if pending:
        pending.sort(key=lambda task: -task.input.num_bytes)  # the largest first, so that workers end together
        steps = [Read(pending, config.web_source), Clean(config), Fingerprinting(config.dedup), Store(pending)]
        executor = make_executor(execution, steps, tasks=len(pending), workers=workers, logging_dir=logging_dir)
        for rank in executor.run():
            if not (pending[rank].folder / staging.DONE).is_file():
                name = pending[rank].input.name
                raise ServiceError(
                    f"{name}: its task left no output in {pending[rank].folder.parent}; see {logging_dir}, run the "
                    "same command again, and on a cluster let all nodes see that directory (NULLS_WORK, for s3://)"
                )
            yield pending[rank]


class Read(PipelineStep):  # type: ignore[misc]
    """Read an input file into documents, redirects and sites; a file of the wrong kind is one failed document."""

    type = "Reader"
    name = "input files"

    def __init__(self, tasks: Sequence[Task], web_source: WebSource) -> None:
        super().__init__()
        self.tasks, self.web_source = tasks, web_source

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Items:
        """Yield everything in the file of task `rank`."""
        file = self.tasks[rank].input
        try:
            with file.open() as opened:
                yield from _reader(file.kind, self.web_source)(opened, file.name)
        except InputError as error:
            yield _failed_file(file, str(error))
        except OSError as error:
            raise ServiceError(f"cannot read {file.path}: {error.strerror}; run the same command again") from error


class Clean(PipelineStep):  # type: ignore[misc]
    """Extract text from markup, then keep or filter the document; one that cannot be extracted has failed."""

    type = "Filter"
    name = "extract and filter"

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        self.config = config

    def run(self, data: Items, rank: int = 0, world_size: int = 1) -> Items:
        """Yield everything; documents have text, and a status other than KEPT if they are not for training."""
        for item in data:
            if isinstance(item, Document) and item.status is Status.KEPT:
                _clean(item, self.config)
            yield item


class Fingerprinting(PipelineStep):  # type: ignore[misc]
    """Pair each kept document with its fingerprint."""

    type = "Dedup"
    name = "normal hash and MinHash bands"

    def __init__(self, config: minhash.DedupConfig) -> None:
        super().__init__()
        self.config = config

    def run(
        self, data: Items, rank: int = 0, world_size: int = 1
    ) -> Generator[tuple[Item, minhash.Fingerprint | None], None, None]:
        """Yield (item, fingerprint); the fingerprint is None for everything but kept documents."""
        for item in data:
            if isinstance(item, Document) and item.status is Status.KEPT:
                yield item, minhash.fingerprint(item.text, self.config)
            else:
                yield item, None


class Store(PipelineStep):  # type: ignore[misc]
    """Write a task's directory; it exists only when the file was read to its end."""

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
        """Consume everything."""
        task = self.tasks[rank]
        with staging.StageWriter(task.folder, task.index) as writer:
            for item, fingerprint in data:
                if isinstance(item, Document):
                    row = staging.document_row(item)
                    writer.document(row, item.text, fingerprint)
                    for kind, alias in item.aliases if item.key else ():
                        writer.name(row["origin_id"], kind, alias)
                    self.stat_update(item.status.value)
                elif isinstance(item, Redirect):
                    writer.redirect(item)
                else:
                    writer.site(item)
        yield from ()


def _reader(kind: InputKind, web_source: WebSource) -> Callable[[BinaryIO, str], Iterator[Item]]:
    """Return the reader of `kind`: it yields items from a file and its name, or raises InputError on another kind."""
    if kind is InputKind.WEB:
        from pipelines.readers.web.archive import read_archive

        return functools.partial(read_archive, web_source=web_source)
    if kind is InputKind.BOOKS:
        from pipelines.readers.books.book import read_book

        return read_book
    from pipelines.readers.wikipedia.articles import read_articles

    return read_articles


_SOURCE_KINDS = {InputKind.WIKIPEDIA: Kind.WIKI, InputKind.WEB: Kind.WEB, InputKind.BOOKS: Kind.BOOK}
_WRONG_KIND_REASONS = {
    InputKind.WIKIPEDIA: "not-a-dump",
    InputKind.WEB: "not-an-archive",
    InputKind.BOOKS: "not-a-book",
}


def _failed_file(file: Input, detail: str) -> Document:
    document = Document(kind=_SOURCE_KINDS[file.kind], key=None, locator="0", input_file=file.name)
    document.end(Status.FAILED, _WRONG_KIND_REASONS[file.kind], detail)
    return document


def _clean(document: Document, config: StageConfig) -> None:
    if document.key and config.removed and ids.source_id(document.key) in config.removed:
        document.end(Status.FILTERED, "removed", "its source was removed from this registry")
        document.markup, document.text = "", ""
        return
    try:
        extract.extract(document, config.html)
    except RecordError as error:
        document.end(Status.FAILED, error.reason, error.detail)
    except Exception as error:  # one page must not end the run; it is counted, named and can be looked up
        document.end(Status.FAILED, "extract-error", f"{type(error).__name__}: {error}")
    else:
        filters.apply(document, config.filters)
    document.markup = ""
