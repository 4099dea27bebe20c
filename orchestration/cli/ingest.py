"""`nulls ingest` and `nulls remove`: the commands that write a new snapshot."""

from __future__ import annotations

import dataclasses
import enum
import os
from typing import Annotated, TypeVar

import typer

from orchestration.cli.parameters.options import DryRunOption, JsonOption, RegistryOption, WorkersOption
from orchestration.output import Output
from orchestration.settings import Settings
from registry.errors import UsageError
from registry.identity import WebSource

_NUM_CORES = os.cpu_count() or 1
_INPUTS, _TEXT, _EXECUTION, _DUPLICATES = "Inputs", "Text and filters", "Execution", "Duplicates"

Choice = TypeVar("Choice", bound=enum.StrEnum)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestRequest:
    """The parameters of `nulls ingest`."""

    wikipedia: Annotated[
        list[str] | None,
        typer.Option(
            "--wikipedia",
            metavar="P",
            help="pages-articles dumps, WikiExtractor's output or Hugging Face's Parquet: a file, directory or glob; "
            "repeatable, as are --web and --books.",
            rich_help_panel=_INPUTS,
        ),
    ] = None
    web: Annotated[
        list[str] | None,
        typer.Option("--web", metavar="P", help="WARC, WET and ARC files.", rich_help_panel=_INPUTS),
    ] = None
    books: Annotated[
        list[str] | None,
        typer.Option("--books", metavar="P", help="Gutenberg and other plain texts, EPUB.", rich_help_panel=_INPUTS),
    ] = None
    web_source: Annotated[
        WebSource, typer.Option("--web-source", help="What one web source is.", rich_help_panel=_INPUTS)
    ] = WebSource.DOMAIN
    filters: Annotated[
        str,
        typer.Option(
            "--filters",
            metavar="none|light|fineweb",
            help="How much is dropped; each dropped document stays on record.",
            rich_help_panel=_TEXT,
        ),
    ] = "light"
    languages: Annotated[
        list[str] | None,
        typer.Option(
            "--language",
            metavar="CODE",
            help="Keep only this language (ISO 639-1); repeatable.",
            rich_help_panel=_TEXT,
        ),
    ] = None
    html: Annotated[
        str,
        typer.Option(
            "--html",
            metavar="resiliparse|trafilatura",
            help="The library that extracts text from HTML.",
            rich_help_panel=_TEXT,
        ),
    ] = "resiliparse"
    registry: RegistryOption = None
    workers: WorkersOption = _NUM_CORES
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="local|ray|slurm",
            help="What runs the processes that read the files; the snapshot is the same.",
            rich_help_panel=_EXECUTION,
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="A",
            help="With --executor ray: a running cluster; by default a local one is started.",
            rich_help_panel=_EXECUTION,
        ),
    ] = None
    slurm_options: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm-option",
            metavar="NAME=VALUE",
            help="With --executor slurm: an option of sbatch, e.g. partition=cpu; repeatable.",
            rich_help_panel=_EXECUTION,
        ),
    ] = None
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="duckdb|beam",
            help="What finds duplicates; the snapshot is the same.",
            rich_help_panel=_DUPLICATES,
        ),
    ] = "duckdb"
    runner: Annotated[
        str,
        typer.Option(
            "--runner",
            metavar="R",
            help="With --engine beam: local, flink, spark or dataflow.",
            rich_help_panel=_DUPLICATES,
        ),
    ] = "local"
    runner_options: Annotated[
        list[str] | None,
        typer.Option(
            "--runner-option",
            metavar="OPT",
            help="Passed to the Beam runner unchanged, e.g. --flink_master=...; repeatable.",
            rich_help_panel=_DUPLICATES,
        ),
    ] = None
    dry_run: DryRunOption = False
    as_json: JsonOption = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoveRequest:
    """The parameters of `nulls remove`."""

    queries: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="URL, title, ISBN, key or id.")]
    registry: RegistryOption = None
    workers: WorkersOption = _NUM_CORES
    dry_run: DryRunOption = False
    as_json: JsonOption = False


def ingest(request: IngestRequest, settings: Settings, output: Output) -> None:
    """Read dumps, archives and books into a new snapshot; after a crash, the same command continues."""
    if not (request.wikipedia or request.web or request.books):
        raise UsageError("nothing to ingest; name inputs with --wikipedia P, --web P or --books P")
    if request.workers > 1 and request.executor == "local" and not request.dry_run:
        from pipelines.stage import fork_server

        fork_server.warm_up()  # before this process has imported as much
    from pipelines.filters.rules import FilterConfig, FilterLevel
    from pipelines.ingest import IngestConfig
    from pipelines.ingest import ingest as run
    from pipelines.resolve.engines import Engine
    from pipelines.stage.executors import Execution, ExecutorKind
    from pipelines.text.extract import HtmlExtractor

    config = IngestConfig(
        wikipedia=tuple(request.wikipedia or ()),
        web=tuple(request.web or ()),
        books=tuple(request.books or ()),
        web_source=request.web_source,
        html=_one_of(HtmlExtractor, request.html, "--html"),
        filters=FilterConfig(
            level=_one_of(FilterLevel, request.filters, "--filters"), languages=tuple(request.languages or ())
        ),
    )
    execution = Execution(
        kind=_one_of(ExecutorKind, request.executor, "--executor"),
        ray_address=request.ray_address,
        slurm_options=tuple(request.slurm_options or ()),
    )
    engine = Engine(name=request.engine, runner=request.runner, runner_options=tuple(request.runner_options or ()))
    with output.progress("ingest") as update:
        ingested = run(
            config,
            registry_uri=settings.registry_uri,
            workers=request.workers,
            execution=execution,
            engine=engine,
            on_progress=update,
            dry_run=request.dry_run,
        )
    if ingested.snapshot:
        _record(settings, ingested.snapshot)
    output.result(ingested.to_dict(), ingested.lines)


def remove(request: RemoveRequest, settings: Settings, output: Output) -> None:
    """Make a child of the newest snapshot without these sources; text that they displaced or shared is kept."""
    from pipelines.removal.remove import remove as run

    with output.progress("remove") as update:
        removed = run(
            request.queries,
            registry_uri=settings.registry_uri,
            workers=request.workers,
            on_progress=update,
            dry_run=request.dry_run,
        )
    if removed.snapshot:
        _record(settings, removed.snapshot)
    output.result(removed.to_dict(), removed.lines)


def _record(settings: Settings, snapshot_id: str) -> None:
    """Record a snapshot in the catalogue; a registry at s3:// can do without one."""
    registry = settings.open_registry()
    snapshot, catalog = registry.snapshot(snapshot_id), settings.find_catalog(registry)
    if catalog is not None:
        catalog.record_snapshot(snapshot.id, registry=str(registry.root), parent=snapshot.parent)


def _one_of(choices: type[Choice], text: str, flag: str) -> Choice:
    """Parse a choice here, not in Typer: the enums' modules take seconds to import."""
    try:
        return choices(text)
    except ValueError:
        raise UsageError(f"{flag} {text!r}: expected one of {', '.join(choices)}") from None
