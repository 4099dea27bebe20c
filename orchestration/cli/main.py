"""Assemble the `nulls` command, and turn errors into messages and exit codes.

Each module beside this one holds a family of commands: a request (a dataclass whose fields are the parameters) and a
function that takes it (`parameters/request.py`). Results go to stdout, progress to stderr; what a command needs is
imported when it runs, so `nulls lookup` starts in half a second. Exit codes: 0 done, 1 the answer is no (not found,
evidence weak), 2 bad usage or input or a store that is down, 3 damaged data, 4 refused.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import sys
from typing import Annotated, Any

import typer

from orchestration.cli import (
    audit,
    demo,
    generate,
    import_reference,
    ingest,
    jobs,
    ledger,
    lookup,
    snapshots,
    train,
    unlearn,
)
from orchestration.cli.parameters.request import GroupedCommand, command
from orchestration.cli.unlearning import reinstate, where
from orchestration.output import Output
from orchestration.safe_logs import safe_logs
from registry.errors import NullsError

# Typer has its own copy of click since 0.26 and used click's own before; this is ClickException of whichever it uses.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]
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
jobs_app = typer.Typer(
    help="List, read and stop training jobs of a Ray cluster (nulls train --ray-address).",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for name, function in (
    ("demo", command(demo.run)),
    ("ingest", command(ingest.ingest)),
    ("lookup", command(lookup.lookup)),
    ("explain", command(lookup.explain)),
    ("sources", command(lookup.sources)),
    ("remove", command(ingest.remove)),
    ("train", command(train.run)),
    ("import-reference", command(import_reference.run)),
    ("unlearn", command(unlearn.run)),
    ("reinstate", command(reinstate.run)),
    ("where", command(where.run)),
    ("audit", command(audit.run)),
    ("generate", command(generate.run)),
    ("ledger", command(ledger.run)),
    ("report", command(ledger.report)),
):
    app.command(name, cls=GroupedCommand)(function)

snapshots_app.callback()(command(snapshots.list_snapshots))
snapshots_app.command("verify", cls=GroupedCommand)(command(snapshots.verify))
snapshots_app.command("diff", cls=GroupedCommand)(command(snapshots.diff))
app.add_typer(snapshots_app, name="snapshots")

jobs_app.command("list", cls=GroupedCommand)(command(jobs.list_jobs))
jobs_app.command("logs", cls=GroupedCommand)(command(jobs.logs))
jobs_app.command("stop", cls=GroupedCommand)(command(jobs.stop))
app.add_typer(jobs_app, name="jobs")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nulls {importlib.metadata.version('nulls')}")
        raise typer.Exit


@app.callback()
def options_of_nulls(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Accept the options that come before a command."""


def main() -> None:
    """Run the command line, and turn errors into messages and exit codes."""
    output = Output(as_json="--json" in sys.argv[1:])
    with safe_logs(output):
        code = _run(output)
    sys.exit(code if isinstance(code, int) else 0)


def _run(output: Output) -> object:
    """Run the command that `sys.argv` names, and return its exit code."""
    code: object
    try:
        code = app(standalone_mode=False)
    except _CommandLineError as error:
        _print_usage(output, error)
        code = 2
    except NullsError as error:
        output.error(error)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        output.note("interrupted; what was complete is kept, and the same command continues from there")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        output.bug(error)
        code = _INTERNAL_ERROR
    return code


def _print_usage(output: Output, error: Any) -> None:
    """Print what click prints about a wrong command line: the usage, and the message, which quotes the arguments."""
    printed = io.StringIO()
    error.show(file=printed)
    message = f"Error: {error.format_message()}"
    for line in printed.getvalue().rstrip("\n").removesuffix(message).splitlines():
        output.note(line)
    output.note(message)


if __name__ == "__main__":
    main()
