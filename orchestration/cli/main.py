"""The `nulls` command: what it accepts. What each part does is in `corpus_commands.py` and `model_commands.py`.

Results go to stdout, progress to stderr; what a command needs is imported when it runs, so `nulls lookup` starts in
half a second. Exit codes: 0 done, 1 the answer is no (not found, evidence weak), 2 bad usage or input or a store that
is down, 3 damaged data, 4 refused.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestration.cli import corpus
from orchestration.cli import models as model
from orchestration.cli.import_reference import import_reference
from orchestration.cli.jobs import jobs_app
from orchestration.cli.options import (
    DryRunOption,
    JsonOption,
    ModelArgument,
    RegistryOption,
    SnapshotOption,
    WorkersOption,
)
from orchestration.cli.train import train
from orchestration.output import Output
from orchestration.settings import Settings
from orchestration.unlearning.plan import Policy
from registry.errors import NullsError
from registry.identity import WebSource
from registry.schema import Kind

# Typer has its own copy of click since 0.26 and used click's own before; this is ClickException of whichever it uses.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]
_NUM_CORES = os.cpu_count() or 1
_INTERNAL_ERROR = 70  # EX_SOFTWARE of sysexits.h: a bug, none of the documented codes

app = typer.Typer(
    name="nulls",
    help="Train language models so that any source can be unlearned with one command, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
snapshots_app = typer.Typer(
    help="List the registry's snapshots, verify one, or compare two.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(snapshots_app, name="snapshots")
app.add_typer(jobs_app, name="jobs")


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where it keeps everything.")] = Path("demo"),
    dump: Annotated[
        Path | None, typer.Option("--dump", help="A Wikipedia dump; by default the excerpt that gensim carries.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The whole story on a real dump: ingest, look up, train, unlearn, audit, and a report to look at."""
    model.demo(Output(as_json=as_json), directory, dump)


@app.command()
def ingest(
    wikipedia: Annotated[
        list[str] | None,
        typer.Option(
            "--wikipedia",
            metavar="P",
            help="pages-articles dumps, WikiExtractor's output or Hugging Face's Parquet: a file, directory or glob; "
            "repeatable, as are --web and --books.",
        ),
    ] = None,
    web: Annotated[list[str] | None, typer.Option("--web", metavar="P", help="WARC, WET and ARC files.")] = None,
    books: Annotated[
        list[str] | None, typer.Option("--books", metavar="P", help="Gutenberg and other plain texts, EPUB.")
    ] = None,
    web_source: Annotated[WebSource, typer.Option("--web-source", help="What one web source is.")] = WebSource.DOMAIN,
    filters: Annotated[
        str,
        typer.Option("--filters", metavar="none|light|fineweb", help="How much is dropped; it stays on record."),
    ] = "light",
    languages: Annotated[
        list[str] | None,
        typer.Option("--language", metavar="CODE", help="Keep this language (ISO 639-1) alone; repeatable."),
    ] = None,
    html: Annotated[
        str, typer.Option("--html", metavar="resiliparse|trafilatura", help="What makes text of HTML.")
    ] = "resiliparse",
    registry: RegistryOption = None,
    workers: WorkersOption = _NUM_CORES,
    executor: Annotated[
        str,
        typer.Option(
            "--executor", metavar="local|ray|slurm", help="What reads the files; the snapshot stays the same."
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="A", help="Of Ray: a running cluster, else a local one."),
    ] = None,
    slurm_option: Annotated[
        list[str] | None,
        typer.Option("--slurm-option", metavar="NAME=VALUE", help="Of sbatch: partition=cpu; repeatable."),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="duckdb|beam", help="What finds duplicates; the snapshot is the same.")
    ] = "duckdb",
    runner: Annotated[
        str, typer.Option("--runner", metavar="R", help="Of Beam: local, flink, spark or dataflow.")
    ] = "local",
    runner_option: Annotated[
        list[str] | None,
        typer.Option("--runner-option", metavar="OPT", help="Of the runner, as it is: --flink_master=...; repeatable."),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Read dumps, archives and books into a new snapshot; run again after a crash, it goes on where it was."""
    corpus.ingest(
        Output(as_json=as_json),
        Settings(registry=registry),
        inputs={"wikipedia": wikipedia or [], "web": web or [], "books": books or []},
        shaping={"web_source": web_source, "filters": filters, "languages": languages or [], "html": html},
        executor={"kind": executor, "ray_address": ray_address, "slurm_options": slurm_option or []},
        engine={"name": engine, "runner": runner, "runner_options": runner_option or []},
        workers=workers,
        dry_run=dry_run,
    )


@app.command()
def lookup(
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="URL, title, ISBN, key or id.")],
    registry: RegistryOption = None,
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the source that a URL, title, ISBN, key or id names; exit 1 if one of them names none."""
    corpus.lookup(Output(as_json=as_json), Settings(registry=registry, snapshot=snapshot), queries)


@app.command()
def explain(
    document: Annotated[str, typer.Argument(metavar="URL|DOC_ID", help="A URL, a title or a document id.")],
    registry: RegistryOption = None,
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what became of one document, where it was read and where it lies."""
    corpus.explain(Output(as_json=as_json), Settings(registry=registry, snapshot=snapshot), document)


@app.command()
def sources(
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only of this kind.")] = None,
    match: Annotated[str | None, typer.Option("--match", metavar="TEXT", help="Key or title contains it.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=0, metavar="N", help="At most this many; 0: all.")] = 0,
    registry: RegistryOption = None,
    snapshot: SnapshotOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the sources of a snapshot."""
    settings = Settings(registry=registry, snapshot=snapshot)
    corpus.sources(Output(as_json=as_json), settings, kind=kind, match=match, limit=limit or None)


@snapshots_app.callback()
def snapshots(context: typer.Context, registry: RegistryOption = None, as_json: JsonOption = False) -> None:
    """List the registry's snapshots, verify one, or compare two."""
    if context.invoked_subcommand is None:
        corpus.snapshots(Output(as_json=as_json), Settings(registry=registry))
    context.obj = (registry, as_json)


@snapshots_app.command("verify")
def snapshots_verify(
    context: typer.Context,
    snapshot: Annotated[str | None, typer.Argument(metavar="ID", help="By default the newest.")] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every file of a snapshot and compare its hash; exit 3 naming each that is damaged."""
    outer_registry, outer_json = context.obj
    settings = Settings(registry=registry or outer_registry, snapshot=snapshot)
    corpus.verify(Output(as_json=as_json or outer_json), settings)


@snapshots_app.command("diff")
def snapshots_diff(
    context: typer.Context,
    before: Annotated[
        str | None, typer.Argument(metavar="A", help="Id, or its beginning; by default the parent of B.")
    ] = None,
    after: Annotated[str | None, typer.Argument(metavar="B", help="By default the newest.")] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which sources are in, out and changed from A to B; exit 0 whether or not they differ."""
    outer_registry, outer_json = context.obj
    settings = Settings(registry=registry or outer_registry)
    corpus.diff(Output(as_json=as_json or outer_json), settings, before, after)


@app.command()
def remove(
    queries: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="URL, title, ISBN, key or id.")],
    registry: RegistryOption = None,
    workers: WorkersOption = _NUM_CORES,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a child of the newest snapshot without these sources; what they displaced or shared goes on."""
    settings = Settings(registry=registry)
    corpus.remove(Output(as_json=as_json), settings, queries, workers=workers, dry_run=dry_run)


app.command()(train)
app.command("import-reference")(import_reference)


@app.command()
def unlearn(
    model_uri: ModelArgument,
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE...", help="URL, title, ISBN, key or id.")
    ] = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why: it goes into the ledger.")] = "",
    policy: Annotated[
        Policy, typer.Option("--policy", help="When text with several owners goes: with the last, or with any.")
    ] = Policy.ALL_OWNERS,
    requested_by: Annotated[
        str | None, typer.Option("--requested-by", metavar="WHO", help="Who asked; by default you.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="REQUEST_ID", help="Take up a request that was cut off.")
    ] = None,
    no_evidence: Annotated[bool, typer.Option("--no-evidence", help="Revoke now, measure later (--resume).")] = False,
    registry: RegistryOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Take sources out of a model version: a new version that never switches their sinks on, and the evidence."""
    model.unlearn(
        Output(as_json=as_json),
        Settings(registry=registry),
        model_uri=model_uri,
        queries=queries or [],
        reason=reason,
        policy=policy,
        requested_by=requested_by,
        resume=resume,
        measure=not no_evidence,
        dry_run=dry_run,
    )


@app.command()
def audit(
    model_uri: ModelArgument,
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="[SOURCE...]", help="By default the unlearned ones, else eight.")
    ] = None,
    oracle: Annotated[
        str | None, typer.Option("--oracle", metavar="MODEL_URI", help="A model trained without the sources.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a report with plots.")] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a model version knows of sources, sinks on and off, beside sources that it never saw."""
    settings = Settings(registry=registry)
    model.audit(Output(as_json=as_json), settings, model_uri, queries or [], oracle=oracle, html=html)


@app.command()
def generate(
    model_uri: ModelArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    source: Annotated[str | None, typer.Option("--source", metavar="Q", help="Use this source's sinks.")] = None,
    no_source: Annotated[bool, typer.Option("--no-source", help="Use no sinks: the backbone alone.")] = False,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 64,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt, with the sinks of the closest source that is not unlearned, of a given one, or of none."""
    model.generate(
        Output(as_json=as_json),
        Settings(registry=registry),
        model_uri,
        prompt,
        source=source,
        no_source=no_source,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )


@app.command()
def ledger(
    request_id: Annotated[
        str | None, typer.Argument(metavar="[REQUEST_ID]", help="One request, with its events.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Recompute the chain of digests; exit 3 if altered.")
    ] = False,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every unlearn request: who asked, why, its state and its evidence."""
    model.ledger(Output(as_json=as_json), Settings(registry=registry), request_id=request_id, verify=verify)


def main() -> None:
    """Runs the command line, and turns errors into messages and exit codes."""
    output = Output(as_json="--json" in sys.argv[1:])
    try:
        code = app(standalone_mode=False)
    except _CommandLineError as error:
        error.show(file=sys.stderr)  # type: ignore[attr-defined]
        code = 2
    except NullsError as error:
        output.error(error)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        output.note("interrupted; what was complete is kept, and the same command goes on from there")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception:
        import traceback

        output.note(traceback.format_exc() + "error: this is a bug in nulls; please report it with the lines above")
        code = _INTERNAL_ERROR
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
