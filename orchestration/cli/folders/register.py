"""`nulls register`: take a folder back as a model version: an exported one, or a fine-tune."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from orchestration.cli.parameters.options import JsonOption, NewVersionOption, OfflineOption, RegistryOption
from orchestration.output import Output
from orchestration.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegisterRequest:
    """The parameters of `nulls register`."""

    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Hugging Face folder; it stays where it is.")]
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Name to register the model under.")]
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="MODEL_URI",
            help="The version it was made from; by default the one with the weights that its config.json names.",
        ),
    ] = None
    new_version: NewVersionOption = False
    offline: OfflineOption = False
    registry: RegistryOption = None
    as_json: JsonOption = False


def run(request: RegisterRequest, settings: Settings, output: Output) -> None:
    """Register an exported folder, or a fine-tune of one, as a model version that refuses what is unlearned.

    The version refuses what the folder refuses, and what was unlearned since in the weights that it was made from.
    """
    from training.serving import flavor
    from training.serving.registration import register_folder

    tracking_uri = settings.tracking_uri
    model_uri = register_folder(
        request.directory,
        model_name=request.model,
        tracking_uri=tracking_uri,
        registry=settings.registry_of(None),
        catalog=settings.catalog_url(),
        base_uri=request.base,
        new_version=request.new_version,
        offline=request.offline,
    )
    version = flavor.describe(model_uri, tracking_uri=tracking_uri)
    data = {
        "model_uri": model_uri,
        "weights": str(version.weights),
        "weights_id": version.weights_id,
        "lineage": list(version.lineage),
        "num_revoked": len(version.revoked),
    }
    output.result(
        data,
        lambda: [f"registered {request.directory} as {model_uri}: refuses {data['num_revoked']} unlearned sources"],
    )
