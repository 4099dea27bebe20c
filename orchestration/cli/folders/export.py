"""`nulls export`: hand a model version out as a Hugging Face folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import (
    DryRunOption,
    JsonOption,
    ModelArgument,
    OfflineOption,
    RegistryOption,
)
from orchestration.output import Output
from orchestration.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """The parameters of `nulls export`."""

    model_uri: ModelArgument
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="New folder, or an empty one.")]
    backbone: Annotated[
        bool,
        typer.Option("--backbone", help="A plain Llama without any sinks, for engines that do not know them."),
    ] = False
    offline: OfflineOption = False
    registry: RegistryOption = None
    dry_run: DryRunOption = False
    as_json: JsonOption = False


def run(request: ExportRequest, settings: Settings, output: Output) -> None:
    """Write a model version as a self-contained Hugging Face folder that refuses what is unlearned.

    It loads with transformers after `import training`, needs no store, and refuses the sources that are unlearned now.
    Their neurons are still in it unless they were erased. With --backbone it has no sinks of any source, and loads
    without this package.
    """
    from training.serving import flavor
    from training.serving.export.folder import facts_of, target_of
    from training.serving.in_force import in_force

    directory = target_of(request.directory)
    version = flavor.describe(request.model_uri, tracking_uri=settings.tracking_uri)
    found = in_force(version, catalog=settings.catalog_url(), offline=request.offline)
    if not found.checked:
        output.note(
            "offline: only what this version itself revokes is in the folder's list; the catalogue was not asked"
        )
    data: dict[str, Any] = {"backbone": request.backbone, "dry_run": request.dry_run}
    if request.dry_run:
        num_revoked = 0 if request.backbone else len(found.revoked)
        data |= facts_of(version, found) | {"directory": str(directory), "num_revoked": num_revoked}
    else:
        with output.progress("export") as update:
            if request.backbone:
                from training.serving.export.backbone import export_backbone

                data |= export_backbone(version, found, directory, progress=update)
            else:
                from training.serving.export.folder import export_version

                registry = settings.registry_of(version.registry)
                data |= export_version(version, found, directory, registry=registry, progress=update)
    output.result(data, lambda: _lines(data))


def _lines(data: dict[str, Any]) -> list[str]:
    verb = "would export" if data["dry_run"] else "exported"
    if data["backbone"]:
        return [f"{verb} the backbone of {data['model_uri']} to {data['directory']}: a plain Llama, without any sinks"]
    revoked = (
        f"refuses {data['num_revoked']} unlearned sources" if data["num_revoked"] else "nothing is unlearned in it"
    )
    return [f"{verb} {data['model_uri']} to {data['directory']}: {revoked}"]
