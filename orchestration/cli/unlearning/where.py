"""`nulls where`: list every model version, alias, copy and derived model that was trained on a source."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import JsonOption, RegistryOption
from orchestration.output import Output, table
from orchestration.settings import Settings

_HEADER = ("model", "aliases", "weights", "state", "since", "relation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WhereRequest:
    """The parameters of `nulls where`."""

    queries: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="URL, title, ISBN, key or id.")]
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Only versions of this registered model.")
    ] = None
    registry: RegistryOption = None
    as_json: JsonOption = False


def run(request: WhereRequest, settings: Settings, output: Output) -> None:
    """List the model versions that were trained on a source, and whether it still answers; exit 3 if one is damaged."""
    from orchestration.unlearning.where import where

    answers = where(settings, request.queries, name=request.model)
    output.result(answers, lambda: [line for answer in answers for line in where_lines(answer)])
    if any(model["state"] == "damaged" for answer in answers for model in answer["models"]):
        raise typer.Exit(3)


def where_lines(answer: dict[str, Any]) -> list[str]:
    """Format who has one source for a terminal."""
    title = f"  {answer['title']!r}" if answer["title"] else ""
    heading = f"{answer['key']}{title}"
    if not answer["models"]:
        return [f"{heading}: no model was trained on it"]
    cells = [
        (
            model["model_uri"],
            ", ".join(model["aliases"]) or "-",
            model["weights"][:12] or "-",
            model["state"],
            _since(model["since"]),
            model["relation"],
        )
        for model in answer["models"]
    ]
    return [heading, *table(cells, _HEADER)]


def _since(since: dict[str, Any] | None) -> str:
    if since is None:
        return "-"
    request = f", request {since['request_id']}" if since["request_id"] else ""
    return f"{since['model_uri']}{request}"
