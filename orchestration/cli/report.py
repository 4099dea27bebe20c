"""`nulls report`: one request of the ledger for whoever asked, as text, as JSON or as one HTML page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from orchestration.cli.parameters.options import JsonOption, RegistryOption
from orchestration.output import Output
from orchestration.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """The parameters of `nulls report`."""

    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="Of `nulls unlearn` or `nulls ledger`.")]
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as one page that needs no network.")
    ] = None
    registry: RegistryOption = None
    as_json: JsonOption = False


def run(request: ReportRequest, settings: Settings, output: Output) -> None:
    """Report a request for whoever asked: what was found and done, the evidence, and what it does not show."""
    from orchestration.unlearning.report.page import check_writable, write_request
    from orchestration.unlearning.report.request_report import report_lines, request_report

    check_writable(request.html)
    report = request_report(settings, request.request_id)
    if request.html:
        write_request(request.html, report)
        output.note(f"report: {request.html}")
    output.result(report, lambda: report_lines(report))
