"""`nulls audit`: measure what a model version knows of sources."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import JsonOption, ModelArgument, OfflineOption, RegistryOption
from orchestration.output import Output
from orchestration.settings import Settings
from orchestration.unlearning.loss_table import decimals, loss_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """The parameters of `nulls audit`."""

    model_uri: ModelArgument
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="[SOURCE...]", help="By default the unlearned ones, else eight.")
    ] = None
    oracle: Annotated[
        str | None, typer.Option("--oracle", metavar="MODEL_URI", help="A model trained without the sources.")
    ] = None
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a report with plots.")] = None
    offline: OfflineOption = False
    registry: RegistryOption = None
    as_json: JsonOption = False


def run(request: AuditRequest, settings: Settings, output: Output) -> None:
    """Measure what a model version knows of sources, sinks on and off, beside sources that it never saw."""
    from orchestration.unlearning.audit import audit
    from orchestration.unlearning.report.page import check_writable, write_audit

    check_writable(request.html)
    with output.progress("audit") as update:
        audited = audit(
            settings,
            request.model_uri,
            request.queries or [],
            oracle_uri=request.oracle,
            offline=request.offline,
            progress=lambda message: update(message, None),
        )
    if request.html:
        write_audit(request.html, audited)
        output.note(f"report: {request.html}")
    output.result(audited, lambda: audit_lines(audited))
    if audited["summary"]["weaknesses"]:
        raise typer.Exit(1)


def audit_lines(audited: dict[str, Any]) -> list[str]:
    """Format an audit for a terminal; losses in nats a token."""
    summary = audited["summary"]
    text = loss_table(audited["sources"], summary["unseen_loss"])
    closures = ", ".join(f"{ablation} {decimals(value)}" for ablation, value in summary["closure_by_state"].items())
    text.append(f"closure (1 is as if never trained): {closures}")
    return text + [f"weak: {reason}" for reason in summary["weaknesses"]]
