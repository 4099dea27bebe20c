"""`nulls unlearn`: revoke sources in a model version, and show the evidence."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import DryRunOption, JsonOption, ModelArgument, RegistryOption
from orchestration.output import Output, table
from orchestration.settings import Settings
from orchestration.unlearning.erasure import DEFAULT_MAX_COST_NATS, Budget, cost_lines, proof_lines
from orchestration.unlearning.loss_table import evidence_lines
from orchestration.unlearning.plan import Policy
from orchestration.unlearning.request.wrong import HEADER, rows_of
from registry.errors import NullsError, UsageError
from registry.messages.shown import listed, refuse_controls

_REQUEST, _ERASE, _RUN = "Request", "Erasing", "Order of work"

FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="More sources, one a line: text, CSV with the columns query, reason, reference, or JSON lines with these "
        "fields; - is standard input.",
        rich_help_panel=_REQUEST,
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnlearnRequest:
    """The parameters of `nulls unlearn`."""

    model_uri: ModelArgument
    queries: Annotated[list[str] | None, typer.Argument(metavar="SOURCE...", help="URL, title, ISBN, key or id.")] = (
        None
    )
    reason: Annotated[
        str,
        typer.Option(
            "--reason",
            metavar="TEXT",
            help="Why: it goes into the ledger. A line of --from may have its own.",
            rich_help_panel=_REQUEST,
        ),
    ] = ""
    from_file: FromOption = None
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Go ahead with what is right; the ledger has the rest as refused, and the exit code is 1.",
            rich_help_panel=_REQUEST,
        ),
    ] = False
    policy: Annotated[
        Policy,
        typer.Option(
            "--policy",
            help="Remove text with several owners when its last owner goes, or when any goes.",
            rich_help_panel=_REQUEST,
        ),
    ] = Policy.ALL_OWNERS
    erase: Annotated[
        bool,
        typer.Option(
            "--erase",
            help="Make weights in which the sources' sinks are zero, for weights that leave the house; others lose the "
            "sinks that they share.",
            rich_help_panel=_ERASE,
        ),
    ] = False
    max_cost: Annotated[
        float | None,
        typer.Option(
            "--max-cost",
            metavar="NATS",
            help=f"Refuse if another source's loss rises by more, per token; by default {DEFAULT_MAX_COST_NATS}.",
            rich_help_panel=_ERASE,
        ),
    ] = None
    accept_cost: Annotated[
        bool,
        typer.Option("--accept-cost", help="Erase whatever it costs other sources.", rich_help_panel=_ERASE),
    ] = False
    requested_by: Annotated[
        str | None,
        typer.Option("--requested-by", metavar="WHO", help="Who asked; by default you.", rich_help_panel=_REQUEST),
    ] = None
    move_aliases: Annotated[
        bool,
        typer.Option(
            "--move-aliases",
            help="Take the aliases of earlier versions along; under another name, to a copy of the new version.",
            rich_help_panel=_REQUEST,
        ),
    ] = False
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
    from orchestration.unlearning.request.lines import read_file

    check_writable(request.html)
    if request.html and request.dry_run:
        raise UsageError("--html writes a page of what was done: leave it out with --dry-run")
    with output.progress("unlearn") as update, wrong_as_table(output):
        if request.resume is not None:
            named = request.queries or request.from_file is not None
            if named or request.partial or request.dry_run or request.erase:
                raise UsageError("--resume continues a request as it was made: leave out SOURCE... and other options")
            result = act.resume(
                settings,
                request.resume,
                model_uri=request.model_uri,
                move_aliases=request.move_aliases,
                progress=update,
            )
        else:
            result = act.unlearn(
                settings,
                request.model_uri,
                request.queries or [],
                reason=request.reason,
                lines=read_file(request.from_file) if request.from_file is not None else (),
                policy=request.policy,
                erase=_budget(request),
                requested_by=request.requested_by,
                partial=request.partial,
                move_aliases=request.move_aliases,
                dry_run=request.dry_run,
                measure=not request.no_evidence,
                progress=update,
            )
    output.result(result.to_dict(), lambda: unlearn_lines(result.to_dict(), request.dry_run, request.move_aliases))
    if request.html and result.request_id:
        write_request(request.html, request_report(settings, result.request_id))
        output.note(f"report: {request.html}")
    if result.is_weak or result.wrong:
        raise typer.Exit(1)


@contextlib.contextmanager
def wrong_as_table(output: Output) -> Iterator[None]:
    """Print a table of the lines that are wrong, if the block raises an error that has several."""
    try:
        yield
    except NullsError as error:
        wrong = error.facts.get("wrong", ())
        if len(wrong) > 1:
            for line in table(rows_of(wrong), HEADER):
                output.note(line)
        raise


def _budget(request: UnlearnRequest) -> Budget | None:
    if not request.erase:
        if request.max_cost is not None or request.accept_cost:
            raise UsageError("--max-cost and --accept-cost: revoking costs others nothing; give them with --erase")
        return None
    max_cost = DEFAULT_MAX_COST_NATS if request.max_cost is None else request.max_cost
    return Budget(max_cost_nats=max_cost, accept_cost=request.accept_cost)


def unlearn_lines(data: dict[str, Any], dry_run: bool = False, move_aliases: bool = False) -> list[str]:
    """Format the result of an unlearn for a terminal."""
    from orchestration.unlearning.elsewhere_lines import alias_lines, elsewhere_lines

    erasure = data["erasure"]
    verb = ("would erase" if erasure else "would revoke") if dry_run else ("erased" if erasure else "revoked")
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
    if data["wrong"]:
        text.append(f"left out: {len(data['wrong'])} lines")
        text += table(rows_of(data["wrong"]), HEADER)
    text += elsewhere_lines(data, dry_run)
    text += alias_lines(data, dry_run, move_aliases)
    if dry_run:
        return text + (_estimate_lines(erasure) if erasure else [])
    text.append(
        f"new version {data['model_uri']} in {data['seconds']:.2f} s; request {data['request_id']}: {data['state']}"
    )
    if data["evidence"]:
        return text + evidence_lines(data["evidence"])
    return text + (cost_lines(erasure["cost"]) + proof_lines(erasure["proof"]) if erasure else [])


def _estimate_lines(erasure: dict[str, Any]) -> list[str]:
    """Format the cost that a dry run measured, and whether it is within the budget."""
    text = cost_lines(erasure["cost"])
    if erasure["objection"] and not erasure["budget"]["accept_cost"]:
        text.append(f"would be refused: {erasure['objection']}; --max-cost or --accept-cost allows it")
    return text
