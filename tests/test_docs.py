"""What the documents say is there: paths of the journey, commands of the README, options in every help text."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import typer
import typer.main

from orchestration.cli.main import app
from registry.catalog import HEAD_REVISION

ROOT = Path(__file__).parents[1]


def commands() -> dict[str, typer.main.TyperCommand]:
    """Every command of `nulls`."""
    group = typer.main.get_command(app)
    return dict(group.commands)  # type: ignore[attr-defined]


def test_paths_of_the_journey_exist_and_every_module_is_named() -> None:
    text = (ROOT / "docs/JOURNEY.md").read_text()
    named = set(re.findall(r"`((?:registry|pipelines|training|orchestration)/[\w/]+\.py)`", text))
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("registry", "pipelines", "training", "orchestration")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and "migrations" not in path.parts
    }
    assert named - modules == set()
    assert modules - named == set()


def test_commands_of_the_readme_parse() -> None:
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0] if "://" not in line else line for block in blocks for line in block.splitlines()]
    calls = [shlex.split(line) for line in lines if line.startswith("nulls ")]
    assert len(calls) >= 6
    known = commands()
    for _, name, *arguments in calls:
        known[name].make_context(name, list(arguments))


def test_targets_of_the_readme_exist() -> None:
    targets = re.findall(r"`?make (\w[\w-]*)`?", (ROOT / "README.md").read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= set(targets)
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_command_and_option_has_help() -> None:
    known = commands()
    assert {
        "demo",
        "ingest",
        "lookup",
        "explain",
        "sources",
        "snapshots",
        "train",
        "unlearn",
        "audit",
        "generate",
    } < set(known)
    for name, command in known.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name not in ("max_new_tokens", "seed"):
                assert parameter.help, f"{name} {parameter.name}"  # type: ignore[attr-defined]


def test_changelog_has_this_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"## {version.group(1)}" in (ROOT / "CHANGELOG.md").read_text()


def test_head_revision_has_a_script() -> None:
    assert list((ROOT / "registry/migrations/versions").glob(f"{HEAD_REVISION}_*.py"))
