"""`nulls unlearn`: revoke sources in a model version, and show the evidence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import DryRunOption, JsonOption, ModelArgument, RegistryOption
from orchestration.output import Output
from orchestration.settings import Settings
from orchestration.unlearning.loss_table import evidence_lines
from orchestration.unlearning.plan import Policy
from registry.errors import UsageError
from registry.messages.shown import listed, refuse_controls

_REQUEST, _RUN = "Request", "Order of work"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlearnRequest:
    """The parameters of `nulls unlearn`."""

    model_uri: ModelArgument
    queries: Annotated[list[str] | None, typer.Argument(metavar="SOURCE...", help="URL, title, ISBN, key or id.")] = (
        None
    )
    reason: Annotated[
        str,
        typer.Option("--reason", metavar="TEXT", help="Why: it goes into the ledger.", rich_help_panel=_REQUEST),
    ] = ""
    policy: Annotated[
        Policy,
        typer.Option(
            "--policy",
            help="Remove text with several owners when its last owner goes, or when any goes.",
            rich_help_panel=_REQUEST,
        ),
    ] = Policy.ALL_OWNERS
    requested_by: Annotated[
        str | None,
        typer.Option("--requested-by", metavar="WHO", help="Who asked; by default you.", rich_help_panel=_REQUEST),
    ] = None
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume", metavar="REQUEST_ID", help="Continue a request that was interrupted.", rich_help_panel=_RUN
        ),
    ] = None
    no_evidence: Annotated[
        bool,
        typer.Option("--no-evidence", help="Revoke now, measure later (--resume).", rich_help_panel=_RUN),
    ] = False
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page for whoever asked.", rich_help_panel=_REQUEST),
    ] = None
    registry: RegistryOption = None
    dry_run: DryRunOption = False
    as_json: JsonOption = False


def run(request: UnlearnRequest, settings: Settings, output: Output) -> None:
    """Take sources out of a model version: a new version that never switches their sinks on, and the evidence."""
    refuse_controls("--reason", request.reason)
    refuse_controls("--requested-by", request.requested_by or "")
    from orchestration.unlearning import unlearn as act
    from orchestration.unlearning.report.page import check_writable, write_request
    from orchestration.unlearning.report.request_report import request_report

    check_writable(request.html)
    if request.html and request.dry_run:
        raise UsageError("--html writes a page of what was done: leave it out with --dry-run")
    with output.progress("unlearn") as update:
        if request.resume:
            if request.queries or request.dry_run:
                raise UsageError("--resume continues a request as it was made: leave out SOURCE... and --dry-run")
            result = act.resume(settings, request.resume, progress=update)
        else:
            result = act.unlearn(
                settings,
                request.model_uri,
                request.queries or [],
                reason=request.reason,
                policy=request.policy,
                requested_by=request.requested_by,
                dry_run=request.dry_run,
                measure=not request.no_evidence,
                progress=update,
            )
    output.result(result.to_dict(), lambda: unlearn_lines(result.to_dict(), request.dry_run))
    if request.html and result.request_id:
        write_request(request.html, request_report(settings, result.request_id))
        output.note(f"report: {request.html}")
    if result.is_weak:
        raise typer.Exit(1)


def unlearn_lines(data: dict[str, Any], dry_run: bool = False) -> list[str]:
    """Format the result of an unlearn for a terminal."""
    verb = "would revoke" if dry_run else "revoked"
    text = [f"{verb} {listed(data['sources'])}"]
    text += [f"{verb} with it: {listed(data['also_removed'])}"] if data["also_removed"] else []
    for kept in data["kept_by_other_owners"]:
        text.append(f"stays: {kept['key']}, published by {listed(kept['owners'])} (--policy any-owner takes it too)")
    for copy in data["collateral"]["lives_on_as_near_copy"]:
        text.append(f"lives on as a near copy (Jaccard {copy['jaccard']:.2f}) at {copy['at']}: {copy['title']}")
    for copy in data["collateral"]["displaced_by_these_sources"]:
        text.append(f"goes too: the near copy of {copy['published_by']} that it displaced: {copy['title']}")
    if num_same := data["collateral"]["num_with_the_same_sinks"]:
        text.append(f"lose their sinks too, since they are the very same: {num_same} other sources of this model")
    if dry_run:
        return text
    text.append(
        f"new version {data['model_uri']} in {data['seconds']:.2f} s; request {data['request_id']}: {data['state']}"
    )
    return text + (evidence_lines(data["evidence"]) if data["evidence"] else [])
