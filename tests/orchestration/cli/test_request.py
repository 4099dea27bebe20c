"""`command`: a request's fields are the parameters of its command."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer
from typer.testing import CliRunner

from orchestration.cli.main import app as nulls_app
from orchestration.cli.parameters.options import JsonOption, RegistryOption
from orchestration.cli.parameters.request import GroupedCommand, command
from orchestration.output import Output
from orchestration.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class GreetRequest:
    """A request."""

    name: Annotated[str, typer.Argument(metavar="NAME", help="A name.")]
    times: Annotated[int, typer.Option("--times", min=1, help="How often.", rich_help_panel="Style")] = 1
    registry: RegistryOption = None
    as_json: JsonOption = False


def greet(request: GreetRequest, settings: Settings, output: Output) -> None:
    """Greet somebody."""
    data = {**dataclasses.asdict(request), "registry_uri": settings.registry_uri, "output": output.as_json}
    output.result(data, lambda: [str(data)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupRequest:
    """The request of a group."""

    registry: RegistryOption = None
    as_json: JsonOption = False


def group(request: GroupRequest, settings: Settings, output: Output) -> None:
    """Run without a subcommand."""
    output.result("group", lambda: ["group"])


def app() -> typer.Typer:
    made = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
    made.callback()(command(group))
    made.command("greet", cls=GroupedCommand)(command(greet))
    return made


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app(), list(arguments))


def test_fields_are_parameters_and_fill_settings_and_output() -> None:
    assert "'name': 'Ann', 'times': 1" in run("greet", "Ann").stdout
    done = run("greet", "Ann", "--times", "2", "--registry", "r", "--json")
    assert done.exit_code == 0
    for part in ('"times": 2', '"registry_uri": "r"', '"output": true'):
        assert part in done.stdout
    assert run("greet").exit_code == run("greet", "Ann", "--times", "0").exit_code == 2


def test_options_before_a_subcommand_count_for_it() -> None:
    done = run("--registry", "outer", "--json", "greet", "Ann")
    assert '"registry_uri": "outer"' in done.stdout
    assert "group" not in done.stdout, "a group's own function runs only without a subcommand"
    assert (
        '"registry_uri": "inner"' in run("--registry", "outer", "--json", "greet", "Ann", "--registry", "inner").stdout
    )
    assert run("--json").stdout == '"group"\n'


def test_help_has_the_docstring_and_the_groups() -> None:
    text = run("greet", "--help").stdout
    assert "Greet somebody." in text
    assert text.index("Arguments:") < text.index("Style:\n  --times") < text.index("Options:\n  --registry")


def test_every_command_of_nulls_is_made_of_a_request() -> None:
    commands = [info.callback for info in nulls_app.registered_commands]
    assert len(commands) >= 12
    assert all(callback and "orchestration.cli.parameters.request" in callback.__module__ for callback in commands)
