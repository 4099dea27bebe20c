"""`nulls ledger` and `report`: list every unlearn request or verify that none was altered; report one to who asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import JsonOption, RegistryOption
from orchestration.output import Output, field, table
from orchestration.settings import Settings
from orchestration.unlearning.loss_table import evidence_lines
from orchestration.unlearning.request.wrong import HEADER, rows_of
from registry.errors import NotFoundError
from registry.messages.shown import listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerRequest:
    """The parameters of `nulls ledger`."""

    request_id: Annotated[str | None, typer.Argument(metavar="[REQUEST_ID]", help="One request, with its events.")] = (
        None
    )
    verify: Annotated[bool, typer.Option("--verify", help="Recompute the chain of digests; exit 3 if altered.")] = False
    registry: RegistryOption = None
    as_json: JsonOption = False


def run(request: LedgerRequest, settings: Settings, output: Output) -> None:
    """List every unlearn request: who asked, why, its state and its evidence."""
    from registry.catalog.ledger import Ledger

    ledger = Ledger(settings.open_catalog())
    if request.verify:
        count = ledger.verify()
        output.result({"ok": True, "events": count}, lambda: [f"{count} events, none altered"])
        return
    entries = ledger.requests()
    if request.request_id:
        chosen = [entry for entry in entries if entry.request_id == request.request_id]
        if not chosen:
            raise NotFoundError(f"no request {request.request_id!r}; `nulls ledger` lists them")
        data = chosen[0].to_dict() | {"events": ledger.history(request.request_id)}
        output.result(data, lambda: _entry_lines(data))
        return
    cells = [
        (
            entry.request_id,
            entry.created_at[:19],
            entry.action,
            entry.state.value,
            entry.model_before,
            entry.model_after or "-",
            listed(entry.sources),
            entry.reason,
        )
        for entry in entries
    ]
    header = ("request", "at", "action", "state", "model before", "after", "sources", "reason")
    output.result([entry.to_dict() for entry in entries], lambda: table(cells, header) if cells else ["no request yet"])


def _entry_lines(data: dict[str, Any]) -> list[str]:
    names = (
        "request_id",
        "action",
        "requested_by",
        "reason",
        "policy",
        "model_before",
        "model_after",
        "evidence_digest",
    )
    text = [line for name in names for line in field(name, data[name])] + field("sources", listed(data["sources"]))
    text += [f"{event['at']}  {event['state']}" for event in data["events"]]
    if left_out := data["detail"].get("left_out"):
        text.append(f"{'left out':<16} request {left_out}")
    if wrong := data["detail"].get("wrong"):
        text += table(rows_of(wrong), HEADER)
    evidence = data["detail"].get("evidence")
    return text + (evidence_lines(evidence) if evidence else [])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """The parameters of `nulls report`."""

    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="Of `nulls unlearn` or `nulls ledger`.")]
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as one page that needs no network.")
    ] = None
    registry: RegistryOption = None
    as_json: JsonOption = False


def report(request: ReportRequest, settings: Settings, output: Output) -> None:
    """Report a request for whoever asked: what was found and done, the evidence, and what it does not show."""
    from orchestration.unlearning.report.page import check_writable, write_request
    from orchestration.unlearning.report.request_report import report_lines, request_report

    check_writable(request.html)
    found = request_report(settings, request.request_id)
    if request.html:
        write_request(request.html, found)
        output.note(f"report: {request.html}")
    output.result(found, lambda: report_lines(found))
