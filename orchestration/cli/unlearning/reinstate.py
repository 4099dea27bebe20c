"""`nulls reinstate`: let sources answer again that were unlearned by mistake."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import DryRunOption, JsonOption, ModelArgument, RegistryOption
from orchestration.cli.unlearn import FromOption, wrong_as_table
from orchestration.output import Output
from orchestration.settings import Settings
from registry.errors import UsageError
from registry.messages.shown import listed, refuse_controls


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReinstateRequest:
    """The parameters of `nulls reinstate`."""

    model_uri: ModelArgument
    queries: Annotated[list[str] | None, typer.Argument(metavar="SOURCE...", help="URL, title, ISBN, key or id.")] = (
        None
    )
    from_file: FromOption = None
    reason: Annotated[
        str,
        typer.Option(
            "--reason", metavar="TEXT", help="Why: it goes into the ledger. A line of --from may have its own."
        ),
    ] = ""
    requested_by: Annotated[
        str | None, typer.Option("--requested-by", metavar="WHO", help="Who asked; by default you.")
    ] = None
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="REQUEST_ID", help="Continue a request that was interrupted."),
    ] = None
    registry: RegistryOption = None
    dry_run: DryRunOption = False
    as_json: JsonOption = False


def run(request: ReinstateRequest, settings: Settings, output: Output) -> None:
    """Undo a mistake: sources that were unlearned answer again, and other revocations stay."""
    refuse_controls("--reason", request.reason)
    from orchestration.unlearning import reinstate as act
    from orchestration.unlearning.request.lines import read_file

    with output.progress("reinstate") as update, wrong_as_table(output):
        if request.resume is not None:
            if request.queries or request.from_file is not None or request.dry_run:
                raise UsageError("--resume continues a request as it was made: leave out SOURCE..., --from, --dry-run")
            result = act.resume(settings, request.resume, model_uri=request.model_uri)
        else:
            result = act.reinstate(
                settings,
                request.model_uri,
                request.queries or [],
                reason=request.reason,
                lines=read_file(request.from_file) if request.from_file is not None else (),
                requested_by=request.requested_by,
                dry_run=request.dry_run,
                progress=update,
            )
    data = result.to_dict()
    output.result(data, lambda: _lines(data, request.dry_run))


def _lines(data: dict[str, Any], dry_run: bool) -> list[str]:
    verb = "would reinstate" if dry_run else "reinstated"
    text = [f"{verb} {listed(data['sources'])}"]
    text += [f"{verb} with it: {listed(data['also_reinstated'])}"] if data["also_reinstated"] else []
    for kept in data["stays_revoked"]:
        text.append(f"stays unlearned: {kept['key']}, published by {listed(kept['owners'])}")
    if dry_run:
        return text
    made = f"new version {data['model_uri']} in {data['seconds']:.2f} s"
    return [*text, f"{made}; request {data['request_id']}: {data['state']}"]
