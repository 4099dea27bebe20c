"""Ingest dumps into a snapshot: the whole pipeline on one page.

    find inputs -> [stage each file] -> stage the parent snapshot -> resolve -> write -> check -> commit

Each step can be killed and run again: staged files are kept in `<registry>/work/<fingerprint>/` (for a registry at
s3://, in a local directory of its own) and are made once, the rest starts over, and the commit is one rename, or at
s3:// one conditional write. The snapshot depends only on the inputs' names and content, the configuration and the
parent; not on workers, order, paths or crashes.
Cost: 4.3 MB of wikitext a second and worker, then 70 s for each million documents; memory of all processes peaks at
580 MB for 107 small dumps on two workers, and at 660 MB where 500,000 documents are resolved.

    ingest(IngestConfig(wikipedia=("enwiki.xml.bz2",)), registry_uri="./nulls-registry", workers=4)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines import continuation
from pipelines.conservation import Accounts
from pipelines.dedup import minhash
from pipelines.dedup.minhash import DedupConfig
from pipelines.filters.rules import FilterConfig
from pipelines.inputs import Input, InputKind, Inputs, find_inputs
from pipelines.parent_snapshot import stage_parent
from pipelines.report import Failure, IngestReport, Wipeout
from pipelines.resolve.engines import Engine, resolve
from pipelines.resolve.resolution import write_resolution
from pipelines.stage import fork_server, staging
from pipelines.stage import steps as stage
from pipelines.stage.executors import Execution, ExecutorKind, make_executor
from pipelines.text.extract import HtmlExtractor
from pipelines.write.shards import DEFAULT_SHARD_BYTES
from registry import identity
from registry.errors import InputError, RefusedError, UsageError
from registry.identity import WebSource
from registry.ids import SourceId
from registry.schema import Status
from registry.snapshot import Registry, Snapshot, SnapshotWriter
from registry.storage import check_writable, file_lock, is_remote, translate_os_errors
from registry.storage.parquet import read_batches, read_table

EXTRACTOR = "wikitext-v1"  # raise it when a reader or the extractor gives other text for the same input
ARTICLES = "articles-v1"  # likewise for articles whose input is text
BOOKS = "books-v1"  # likewise for books; EPUBs are extracted by resiliparse, whichever extractor web pages have
KEY_SCHEME = "keys-v1"  # likewise for registry.identity
_WIKI_KEYS = "wiki:<wiki>:<page id>"
_WEB_KEYS = {
    WebSource.DOMAIN: "web:<registrable domain>",
    WebSource.HOST: "web:<host>",
    WebSource.PAGE: "web:<canonical URL>",
}
_BOOK_KEYS = "book:gutenberg:<n>, else book:isbn:<13 digits>, else book:sha256:<16 hex>"

_MAX_PROBLEMS = 10  # files named in the message that none can be used

Progress = Callable[[str, float | None], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """The inputs of an ingest, and the settings that shape its snapshot.

    Attributes:
        wikipedia: MediaWiki dumps, and articles of WikiExtractor or Hugging Face: files, directories, globs.
        web: web archives, likewise.
        books: EPUBs and plain texts, likewise.
        web_source: what counts as a web source: a registrable domain, a host or a page.
        html: the extractor for HTML.
        filters: which documents are dropped.
        dedup: what counts as a near-duplicate.
        shard_bytes: target size of a shard, in bytes of text.
    """

    wikipedia: tuple[str, ...] = ()
    web: tuple[str, ...] = ()
    books: tuple[str, ...] = ()
    web_source: WebSource = WebSource.DOMAIN
    html: HtmlExtractor = HtmlExtractor.RESILIPARSE
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    dedup: DedupConfig = dataclasses.field(default_factory=DedupConfig)
    shard_bytes: int = DEFAULT_SHARD_BYTES

    def __post_init__(self) -> None:
        if not any(self.patterns.values()):
            raise UsageError("nothing to ingest; name inputs with --wikipedia P, --web P or --books P")
        if self.shard_bytes < 1:
            raise UsageError(f"shard_bytes: got {self.shard_bytes}, expected at least 1")

    @property
    def patterns(self) -> dict[InputKind, tuple[str, ...]]:
        """The inputs, by the reader that they are for."""
        return {InputKind.WIKIPEDIA: self.wikipedia, InputKind.WEB: self.web, InputKind.BOOKS: self.books}

    @property
    def stage(self) -> stage.StageConfig:
        """The settings of the per-file stage."""
        return stage.StageConfig(filters=self.filters, dedup=self.dedup, web_source=self.web_source, html=self.html)

    def shaping(self) -> dict[str, Any]:
        """Return all that the content of a snapshot depends on, besides its inputs; part of its id."""
        return {
            "granularity": {"wiki": "article", "web": self.web_source.value, "book": "book"},
            "key_schemes": {"wiki": _WIKI_KEYS, "web": _WEB_KEYS[self.web_source], "book": _BOOK_KEYS},
            "filters": self.filters.shaping(),
            "dedup": dataclasses.asdict(self.dedup),
            "shard_bytes": self.shard_bytes,
            "extractors": {
                "wikitext": EXTRACTOR,
                "articles": ARTICLES,
                "html": self.html.version(),
                "books": f"{BOOKS}, {HtmlExtractor.RESILIPARSE.version()}",
            },
            "words": minhash.WORDS_SCHEME,
            "signatures": minhash.SIGNATURE_SCHEME,
            "keys": KEY_SCHEME,
            "suffix_list": identity.suffix_list_digest(),
        }


def ingest(
    config: IngestConfig,
    *,
    registry_uri: str | Path,
    workers: int = 1,
    engine: Engine = Engine(),  # noqa: B008 - immutable
    on_progress: Progress = lambda message, share: None,
    dry_run: bool = False,
    execution: Execution = Execution(),  # noqa: B008 - immutable
) -> IngestReport:
    """Ingest into a registry; if it has snapshots, the new one is a child of the newest.

    Args:
        config: the inputs and the settings that shape the snapshot.
        registry_uri: a directory, made if it is missing, or an s3:// prefix.
        workers: processes for the per-file stage, threads for the rest.
        engine: of the keyed stage; the snapshot is the same with any.
        on_progress: called with a message and the share that is done (0 to 1; None if not known).
        dry_run: only report what would be read.
        execution: where the per-file stage runs.

    Raises:
        InputError: a path does not exist, or no input can be used.
        UsageError: the registry was made with another configuration.
        RefusedError: the same ingest is running already, or another one committed meanwhile.
        ServiceError: the registry cannot be written, or a worker was killed.
        DamagedError: the counts of what was read and written do not agree; nothing is committed.
    """
    if workers < 1:
        raise UsageError(f"--workers: got {workers}, expected at least 1")
    started = time.monotonic()
    if workers > 1 and execution.kind is ExecutorKind.LOCAL and not dry_run:
        fork_server.warm_up()
    inputs = find_inputs(config.patterns, on_file=lambda path: on_progress("hashing the files", None))
    registry = _existing_or_new(registry_uri) if dry_run else Registry.open(registry_uri, create=True)
    if not dry_run:
        check_writable(registry.work)
    newest = registry.newest_id()
    parent = continuation.parent_of(registry, inputs.files)
    if parent:
        continuation.check_configuration(parent, config.shaping())
        if continuation.is_covered(inputs.files, parent) and not dry_run:
            return _finished(_report_of_parent(registry, parent), inputs, started)
    run = _Run(
        registry=registry,
        config=config,
        inputs=tuple(continuation.new_inputs(inputs.files, parent)),
        parent=parent,
        follows=newest,
        workers=workers,
        execution=execution,
        engine=engine,
    )
    report = IngestReport(snapshot=None, script=run.script()) if dry_run else run.execute(on_progress)
    return _finished(report, inputs, started)


def _existing_or_new(uri: str | Path) -> Registry:
    """Return the registry at `uri`, which need not exist, and is not made."""
    try:
        return Registry.open(uri)
    except UsageError:
        if is_remote(str(uri)) or Path(str(uri).removeprefix("file://")).exists():
            raise
        return Registry(Path(str(uri).removeprefix("file://")).expanduser().absolute())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """One ingest into one registry.

    Attributes:
        inputs: those that the parent does not hold.
        parent: the snapshot to continue.
        follows: the id of the newest snapshot: the parent, or a damaged child of it that this run repairs.
    """

    registry: Registry
    config: IngestConfig
    inputs: tuple[Input, ...]
    parent: Snapshot | None
    follows: str | None
    workers: int
    execution: Execution
    engine: Engine

    @property
    def fingerprint(self) -> str:
        """A hash of all that the snapshot depends on; names the work directory, so that the same run is resumed."""
        parts = [
            self.config.shaping(),
            [(file.name, file.sha256) for file in self.inputs],
            self.parent and self.parent.id,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def _removed(self) -> frozenset[SourceId]:
        removed = self.parent.removed if self.parent else ()
        return frozenset(SourceId(int(entry["source_id"], 16)) for entry in removed)

    @property
    def work(self) -> Path:
        """The directory that the run can be resumed from."""
        return self.registry.work / self.fingerprint

    def script(self) -> str:
        """Return the script that would be submitted if the per-file stage is a batch job, else ""."""
        executor = make_executor(
            self.execution, [], tasks=len(self.inputs), workers=self.workers, logging_dir=self._logs
        )
        return executor.script() if self.inputs else ""

    @property
    def _logs(self) -> Path:
        return self.work / "logs"

    def execute(self, on_progress: Progress) -> IngestReport:
        """Run all steps; the work directory is removed when they succeed.

        Raises:
            RefusedError: the same ingest is running already, or another one committed meanwhile.
        """
        busy = "the same ingest is running already; wait for it, or end it and run this again"
        with file_lock(self.work.with_suffix(".lock"), timeout_s=0, busy=busy):
            return self._execute(on_progress)

    def _execute(self, on_progress: Progress) -> IngestReport:
        folders = self._stage(on_progress)
        scratch = self.work / "scratch"
        with translate_os_errors(scratch):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
        writer = SnapshotWriter(self.registry, self.work / "snapshot")
        on_progress("finding duplicates and sources", None)
        resolution = resolve(self.engine, folders, self.config.dedup, work=scratch, workers=self.workers)
        with contextlib.closing(resolution):
            on_progress("writing the snapshot", None)
            write_resolution(resolution, writer, scratch, shard_bytes=self.config.shard_bytes)
        on_progress("checking that nothing was lost", None)
        with Accounts(writer.staging, scratch) as accounts:
            accounts.check([folder / "documents.parquet" for folder in folders])
            failures = accounts.failures(folders)
            on_progress("committing the snapshot", None)
            try:
                snapshot = self._commit(writer, folders, accounts)
            except RefusedError:  # a retry has another parent, so nothing here can be used again
                shutil.rmtree(self.work, ignore_errors=True)
                raise
        report = _report(snapshot, failures=failures, is_new=True)
        shutil.rmtree(self.work, ignore_errors=True)
        return report

    def _stage(self, on_progress: Progress) -> list[Path]:
        """Stage every input and the parent; return the staged directories.

        Raises:
            InputError: no input can be used.
        """
        tasks = stage.tasks_for(self.inputs, self.work / "stage")
        total, done = sum(task.input.num_bytes for task in tasks), 0
        finished = stage.run_tasks(
            tasks,
            config=dataclasses.replace(self.config.stage, removed=self._removed),
            workers=self.workers,
            logging_dir=self._logs,
            execution=self.execution,
        )
        on_progress(f"reading {len(tasks)} files", 0.0)
        for num_done, task in enumerate(finished, start=1):
            done += task.input.num_bytes
            on_progress(f"reading {len(tasks)} files ({num_done} done)", done / total if total else 1.0)
        folders = [task.folder for task in tasks]
        if not any(_has_content(folder) for folder in folders):
            problems = _problems(folders)
            shutil.rmtree(self.work, ignore_errors=True)
            more = f"; and {len(problems) - _MAX_PROBLEMS} more files" if len(problems) > _MAX_PROBLEMS else ""
            raise InputError(f"nothing here can be ingested: {'; '.join(problems[:_MAX_PROBLEMS])}{more}")
        if self.parent:
            on_progress("reading the parent snapshot", None)
            folder = self.work / "stage" / staging.folder_name(len(tasks), self.parent.id)
            stage_parent(self.parent, folder, index=len(tasks), work=self.work)
            folders.append(folder)
        return folders

    def _commit(self, writer: SnapshotWriter, folders: Sequence[Path], accounts: Accounts) -> Snapshot:
        new = [
            {"name": file.name, "sha256": file.sha256, "bytes": file.num_bytes, "kind": file.kind}
            for file in self.inputs
        ]
        return writer.commit(
            configuration=self.config.shaping(),
            inputs=new + (list(self.parent.manifest["inputs"]) if self.parent else []),
            parent=self.parent.id if self.parent else None,
            follows=self.follows,
            counts=dataclasses.asdict(accounts.counts()),
            conservation=accounts.by_kind(),
            wikis=_wikis(folders),
            removed=self.parent.removed if self.parent else [],
            wipeouts=[dataclasses.asdict(wipeout) for wipeout in accounts.wipeouts()],
            ingest=self.fingerprint,
        )


def _report(snapshot: Snapshot, *, failures: tuple[Failure, ...], is_new: bool) -> IngestReport:
    wipeouts = tuple(
        Wipeout(**{**entry, "survivors": tuple(entry["survivors"])}) for entry in snapshot.manifest["wipeouts"]
    )
    counts = snapshot.manifest["counts"]
    return IngestReport(snapshot=snapshot.id, failures=failures, wipeouts=wipeouts, is_new=is_new, **counts)


def _report_of_parent(registry: Registry, snapshot: Snapshot) -> IngestReport:
    """Return the report of a snapshot that holds all inputs; also remove what a crash after its commit left."""
    shutil.rmtree(registry.work / snapshot.manifest["ingest"], ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=registry.work) as folder:
        local = snapshot.local(Path(folder), ["documents", "sources"])
        with Accounts(local, registry.work) as accounts:
            return _report(snapshot, failures=accounts.failures(), is_new=False)


def _finished(report: IngestReport, inputs: Inputs, started: float) -> IngestReport:
    return dataclasses.replace(
        report,
        seconds=time.monotonic() - started,
        inputs=tuple(file.name for file in inputs.files),
        num_input_bytes=inputs.num_bytes,
        left_out=inputs.left_out,
    )


def _has_content(folder: Path) -> bool:
    """Return whether an input was of its kind: it names its wiki, or holds a document that did not fail."""
    if pq.read_metadata(folder / "sites.parquet").num_rows:
        return True
    batches = read_batches(folder / "documents.parquet", columns=["status"])
    return any(status != Status.FAILED for batch in batches for status in batch["status"].to_pylist())


def _problems(folders: Sequence[Path]) -> list[str]:
    found = []
    for folder in folders:
        first = read_table(folder / "documents.parquet").slice(0, 1).to_pylist()
        found += [f"{row['input_file']}: {row['detail'] or row['reason']}" for row in first]
    return found


def _wikis(folders: Sequence[Path]) -> list[dict[str, str]]:
    sites = {
        (row["scope"], row["host"]) for folder in folders for row in read_table(folder / "sites.parquet").to_pylist()
    }
    return [{"scope": scope, "host": host} for scope, host in sorted(sites)]
