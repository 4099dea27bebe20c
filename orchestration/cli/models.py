"""What the commands about models print: unlearn, audit, generate, ledger, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from orchestration.output import Output, table
from orchestration.settings import Settings
from orchestration.unlearning.plan import Policy
from registry.errors import NotFoundError, UsageError


def demo(output: Output, directory: Path, dump: Path | None) -> None:
    """`nulls demo`."""
    from orchestration.demo import run

    story = run(output, directory, dump)
    output.result(story.to_dict(), story.lines)


def unlearn(
    output: Output,
    settings: Settings,
    *,
    model_uri: str,
    queries: list[str],
    reason: str,
    policy: Policy,
    requested_by: str | None,
    resume: str | None,
    measure: bool,
    dry_run: bool,
) -> None:
    """`nulls unlearn`."""
    from orchestration.unlearning import unlearn as act

    with output.progress("unlearn") as update:
        if resume:
            if queries or dry_run:
                raise UsageError("--resume takes a request up as it was asked: leave SOURCE... and --dry-run out")
            result = act.resume(settings, resume, progress=update)
        else:
            result = act.unlearn(
                settings,
                model_uri,
                queries,
                reason=reason,
                policy=policy,
                requested_by=requested_by,
                dry_run=dry_run,
                measure=measure,
                progress=update,
            )
    output.result(result.to_dict(), lambda: unlearn_lines(result.to_dict(), dry_run))
    if result.is_weak:
        raise typer.Exit(1)


def unlearn_lines(data: dict[str, Any], dry_run: bool = False) -> list[str]:
    """An unlearn for a person."""
    verb = "would revoke" if dry_run else "revoked"
    text = [f"{verb} {', '.join(data['sources'])}"]
    text += [f"{verb} with it: {', '.join(data['also_removed'])}"] if data["also_removed"] else []
    for kept in data["kept_by_other_owners"]:
        text.append(f"stays: {kept['key']}, published by {', '.join(kept['owners'])} (--policy any-owner takes it too)")
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


def evidence_lines(evidence: dict[str, Any]) -> list[str]:
    """The evidence for a person; losses in nats a token."""
    header = ("source", "on", "off: closest", "off: placebo", "off: backbone", "p", "closure")
    rows = [line for row in evidence["sources"] for line in _evidence_rows(row)]
    heldout = evidence["heldout"]
    means = [_number(heldout.get(state)) for state in ("closest", "placebo", "backbone")]
    rows.append((f"{heldout['num_sources']} never trained", "-", *means, "-", "-"))
    changes = [abs(row["loss_after"] - row["loss_before"]) for row in evidence["others"]]
    text = table(rows, header)
    if changes:
        text.append(f"{len(changes)} other sources: loss changed by at most {max(changes):.1e}")
    text.append(f"evidence: {evidence['verdict']}" + "".join(f"; {reason}" for reason in evidence["reasons"]))
    return text


def audit(
    output: Output, settings: Settings, model_uri: str, queries: list[str], *, oracle: str | None, html: Path | None
) -> None:
    """`nulls audit`."""
    from orchestration.unlearning.audit import audit as measure

    with output.progress("audit") as update:
        report = measure(settings, model_uri, queries, oracle_uri=oracle, progress=lambda words: update(words, None))
    if html:
        from orchestration.unlearning.report import write_audit

        write_audit(html, report)
        output.note(f"report: {html}")
    output.result(report, lambda: audit_lines(report))
    if report["summary"]["weaknesses"]:
        raise typer.Exit(1)


def audit_lines(report: dict[str, Any]) -> list[str]:
    """An audit for a person; losses in nats a token."""
    header = ("source", "on", "off: closest", "off: placebo", "off: backbone", "p", "closure")
    rows = [line for row in report["sources"] for line in _evidence_rows(row)]
    summary = report["summary"]
    unseen = summary["unseen_loss"]
    means = [_number(unseen.get(state)) for state in ("closest", "placebo", "backbone")]
    rows.append((f"{unseen['num_sources']} never trained", "-", *means, "-", "-"))
    text = table(rows, header)
    closures = ", ".join(f"{state} {_number(value)}" for state, value in summary["closure_by_state"].items())
    text.append(f"closure (1 is as if never trained): {closures}")
    return text + [f"weak: {reason}" for reason in summary["weaknesses"]]


def generate(
    output: Output,
    settings: Settings,
    model_uri: str,
    prompt: str,
    *,
    source: str | None,
    no_source: bool,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> None:
    """`nulls generate`."""
    if source and no_source:
        raise UsageError("--source and --no-source exclude each other")
    from orchestration.unlearning.unlearn import snapshot_of
    from registry.lookup import read_sources, resolve
    from training.serving import flavor

    served = flavor.load(model_uri, tracking_uri=settings.tracking_uri)
    newer = flavor.superseded_by(served.version)
    if newer:
        output.note(f"warning: {newer} revokes sources that {served.version.uri} still answers from")
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    snapshot = snapshot_of(settings, served.version)
    if source:
        options["source_id"] = resolve(snapshot, source).source_id
    elif no_source:
        options["source_id"] = None
    text, used = served.generate(prompt, **options)
    names = read_sources(snapshot, [used] if used is not None else [])
    key = names[used].key if used in names else None
    data = {"model_uri": served.version.uri, "prompt": prompt, "source": key, "text": text}
    output.note(f"sinks: {key or 'none (backbone alone)'}")
    output.result(data, lambda: [prompt + text])


def ledger(output: Output, settings: Settings, *, request_id: str | None, verify: bool) -> None:
    """`nulls ledger`."""
    from registry.ledger import Ledger

    book = Ledger(settings.open_catalog())
    if verify:
        count = book.verify()
        output.result({"ok": True, "events": count}, lambda: [f"{count} events, none altered"])
        return
    requests = book.requests()
    if request_id:
        chosen = [request for request in requests if request.request_id == request_id]
        if not chosen:
            raise NotFoundError(f"no request {request_id!r}; `nulls ledger` lists them")
        data = chosen[0].to_dict() | {"events": book.history(request_id)}
        output.result(data, lambda: _request_lines(data))
        return
    rows = [
        (
            r.request_id,
            r.created_at[:19],
            r.state.value,
            r.model_before,
            r.model_after or "-",
            ", ".join(r.sources),
            r.reason,
        )
        for r in requests
    ]
    header = ("request", "at", "state", "model before", "after", "sources", "reason")
    output.result([r.to_dict() for r in requests], lambda: table(rows, header) if rows else ["no request yet"])


def _request_lines(data: dict[str, Any]) -> list[str]:
    names = ("request_id", "requested_by", "reason", "policy", "model_before", "model_after", "evidence_digest")
    text = [f"{name:<16} {data[name]}" for name in names] + [f"{'sources':<16} {', '.join(data['sources'])}"]
    text += [f"{event['at']}  {event['state']}" for event in data["events"]]
    evidence = data["detail"].get("evidence")
    return text + (evidence_lines(evidence) if evidence else [])


def _evidence_rows(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """A source, and below it what its text would cost if it had never been trained."""
    off, never = (
        [_number(row[name].get(state)) for state in ("closest", "placebo", "backbone")]
        for name in ("loss_off", "never")
    )
    numbers = (_number(row["p_value"]), _number(row["closure"]["placebo"]))
    return [
        (row["title"] or row["key"], _number(row["loss_on"]), *off, *numbers),
        ("  if never trained", "-", *never, "-", "-"),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
