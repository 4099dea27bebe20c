"""`nulls generate`: continue a prompt with a model version."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import JsonOption, ModelArgument, OfflineOption, RegistryOption
from orchestration.output import Output
from orchestration.settings import Settings
from registry.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """The parameters of `nulls generate`."""

    model_uri: ModelArgument
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")]
    source: Annotated[str | None, typer.Option("--source", metavar="Q", help="Use this source's sinks.")] = None
    no_source: Annotated[bool, typer.Option("--no-source", help="Use no sinks, only the backbone.")] = False
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 64
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the likeliest token.")] = 0.0
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0
    offline: OfflineOption = False
    registry: RegistryOption = None
    as_json: JsonOption = False


def run(request: GenerateRequest, settings: Settings, output: Output) -> None:
    """Continue a prompt, with the sinks of the closest source that is not unlearned, of a given one, or of none."""
    if request.source and request.no_source:
        raise UsageError("--source and --no-source exclude each other")
    from orchestration.unlearning.unlearn import snapshot_of
    from registry.lookup import read_sources, resolve
    from training.serving import flavor

    served = flavor.load(
        request.model_uri,
        tracking_uri=settings.tracking_uri,
        catalog=settings.catalog_url(),
        offline=request.offline,
    )
    if not served.in_force.checked:
        output.note("offline: only what this version itself revokes is off; the catalogue was not asked")
    options: dict[str, Any] = {
        "max_new_tokens": request.max_new_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    snapshot = snapshot_of(settings, served.version)
    if request.source:
        options["source_id"] = resolve(snapshot, request.source).source_id
    elif request.no_source:
        options["source_id"] = None
    text, used = served.generate(request.prompt, **options)
    names = read_sources(snapshot, [used] if used is not None else [])
    key = names[used].key if used in names else None
    data = {
        "model_uri": served.version.uri,
        "prompt": request.prompt,
        "source": key,
        "text": text,
        "revocations": "checked" if served.in_force.checked else "offline",
    }
    output.note(f"sinks: {key or 'none (backbone only)'}")
    output.result(data, lambda: (request.prompt + text).split("\n"))
