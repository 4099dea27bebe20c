"""Options and arguments that several commands share, so that each has the same meaning and help everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestration.settings import DEFAULT_REGISTRY

RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry",
        help=f"Directory or s3:// prefix of snapshots; NULLS_REGISTRY, else {DEFAULT_REGISTRY}.",
        metavar="DIR",
    ),
]
SnapshotOption = Annotated[
    str | None, typer.Option("--snapshot", help="Id, or its beginning; by default the newest.", metavar="ID")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Processes that work at once.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL_URI", help="models:/NAME/VERSION or models:/NAME@ALIAS.")]

OfflineOption = Annotated[
    bool,
    typer.Option("--offline", help="Accept what the version itself revokes where the catalogue cannot be asked."),
]

MODEL_PANEL = "Model"
ModelNameOption = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Name to register the model under.", rich_help_panel=MODEL_PANEL)
]
NewVersionOption = Annotated[
    bool,
    typer.Option("--new-version", help="Add a version to a model that exists.", rich_help_panel=MODEL_PANEL),
]
RunsOption = Annotated[
    Path,
    typer.Option("--runs", metavar="DIR", help="Where runs keep checkpoints and weights.", rich_help_panel=MODEL_PANEL),
]
DEFAULT_RUNS = Path("nulls-runs")
