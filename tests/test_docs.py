"""Everything that the documents name exists: paths, commands and what these need, options in every help text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import typer.main
import yaml

from orchestration.cli.main import app
from registry.catalog.tables import HEAD_REVISION
from tests.docs.console_blocks import NEEDS, all_blocks

ROOT = Path(__file__).parents[1]
# Pages of the site with parts that are generated from code, and a text that must be in each.
GENERATED_PAGES = {
    "reference/cli": "--web-source",
    "reference/configuration": "sink_dropout",
    "reference/schemas": "alias_hash",
    "reference/api/registry": "registry.snapshot.Registry",
    "reference/api/training": "training.config.TrainConfig",
}


def commands() -> dict[str, typer.main.TyperCommand]:
    """Every command of `nulls`."""
    group = typer.main.get_command(app)
    return dict(group.commands)  # type: ignore[attr-defined]


def test_the_journey_is_at_most_fifteen_files_that_exist() -> None:
    text = (ROOT / "docs/JOURNEY.md").read_text()
    named = set(re.findall(r"`((?:registry|pipelines|training|orchestration)/[\w/]+\.py)`", text))
    assert 10 <= len(named) <= 15
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_commands_of_the_documentation_parse() -> None:
    calls = [(block.page, arguments) for block in all_blocks() for arguments in block.nulls_arguments]
    assert len(calls) >= 30
    known = commands()
    for page, (name, *arguments) in calls:
        assert name in known, f"{page}: nulls {name}"
        context = known[name].make_context(name, list(arguments))
        subcommands = getattr(known[name], "commands", {})
        if subcommands and arguments and arguments[0] in subcommands:
            subcommands[arguments[0]].make_context(arguments[0], list(arguments[1:]), parent=context)


def test_what_commands_need_is_one_of_the_known_things() -> None:
    needed = {need for block in all_blocks() for need in block.needs}
    assert needed == NEEDS


def test_blocks_hold_commands_of_nulls_and_targets_of_make() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set()
    for block in all_blocks():
        for line in block.lines:
            program, *rest = line.split()
            assert program in ("nulls", "make") or (program == "export" and block.needs), f"{block.page}: {line}"
            targets |= {rest[0]} if program == "make" else set()
    assert {"demo", "test", "lint", "docs"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_links_lead_to_files_of_the_repository() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/RESULTS.md"]
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) >= 30
    assert [(page.name, target) for page, target in links if not (page.parent / target).exists()] == []


def test_packages_are_marked_as_typed_and_the_marker_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = project["tool"]["setuptools"]["package-data"]
    for package in ("registry", "pipelines", "training", "orchestration"):
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in data[package]


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == project["version"]


def test_pre_commit_runs_the_ruff_of_the_constraints() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (rev,) = [repo["rev"] for repo in hooks if repo["repo"].endswith("/ruff-pre-commit")]
    assert f"ruff=={rev.removeprefix('v')}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_ci_tests_the_supported_versions_of_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    stated = {c.rpartition(" ")[2] for c in project["classifiers"] if re.fullmatch(r".*Python :: 3\.\d+", c)}
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert set(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == stated


def test_forms_on_github_are_yaml_with_fields() -> None:
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    names = {path.stem for path in forms} - {"config"}
    assert names == {"bug", "feature", "unlearning-request"}
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert path.stem == "config" or all({"type", "attributes"} <= set(field) for field in form["body"])


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    built = {name: (tmp_path / "site" / name / "index.html").read_text() for name in GENERATED_PAGES}
    for name, text in GENERATED_PAGES.items():
        assert text in built[name], name
        assert "<!-- generated" not in built[name]
    fetched = r'<(?:script|link|img)[^>]+(?:src|href)="?https?://'
    assert [page for page in (tmp_path / "site").rglob("*.html") if re.search(fetched, page.read_text())] == []


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
    assert list((ROOT / "registry/catalog/migrations/versions").glob(f"{HEAD_REVISION}_*.py"))
