"""Make a command of a function that takes one request, so that each parameter is written once: as a field.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class LookupRequest:
        queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="URL, title, ISBN, key or id.")]
        registry: RegistryOption = None
        as_json: JsonOption = False

    def run(request: LookupRequest, settings: Settings, output: Output) -> None:
        '''Find the source that each query names.'''

    app.command("lookup", cls=GroupedCommand)(command(run))

Typer reads a command's parameters from the signature of a function. `command` builds that signature from the fields of
the request, and fills `Settings` and `Output` from the fields `registry`, `snapshot` and `as_json`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, get_type_hints

import typer
import typer.core

from orchestration.output import Output
from orchestration.settings import Settings


class Request(Protocol):
    """The parameters of one command: a frozen dataclass whose fields are Typer options and arguments."""

    @property
    def as_json(self) -> bool:
        """Whether `--json` was given; every command has it."""


AnyRequest = TypeVar("AnyRequest", bound=Request)


def command(run: Callable[[AnyRequest, Settings, Output], None]) -> Callable[..., None]:
    """Return a function for Typer: its parameters are the fields of the request, its help is the docstring of `run`.

    An option that is given before a subcommand (`nulls snapshots --json verify`) counts for the subcommand. The
    function of a group does nothing if a subcommand follows.
    """
    request_type: Callable[..., AnyRequest] = get_type_hints(run)["request"]

    def call(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is not None:
            return
        outer = context.parent.params if context.parent else {}
        values = {name: value or outer.get(name, value) for name, value in values.items()}
        settings = Settings(**{name: values[name] for name in ("registry", "snapshot") if name in values})
        request = request_type(**values)
        run(request, settings, Output(as_json=request.as_json))

    parameters = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    parameters += _parameters(request_type)
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__name__, call.__doc__ = run.__name__, run.__doc__
    return call


def _parameters(request_type: Any) -> list[inspect.Parameter]:
    types = get_type_hints(request_type, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=types[field.name],
        )
        for field in dataclasses.fields(request_type)
    ]


class GroupedCommand(typer.core.TyperCommand):
    """A command whose help lists options under the headings that `rich_help_panel` gives them, as plain text.

    Typer shows these headings only through Rich, whose boxes leave half of 80 columns for the text, and which takes the
    `[train]` of `nulls[train]` for markup and drops it.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, each group of options, and last the options of no group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or heading, []).append(record)
        groups["Options"] = groups.pop("Options", [])
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
