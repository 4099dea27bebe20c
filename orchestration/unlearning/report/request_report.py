"""Collect all that is known of a request: the ledger's record, its sources in the snapshot, versions, digests.

The ledger is what counts. The snapshot adds titles and sizes; where it cannot be read any more, the report says so and
has what the ledger holds.

Run: ``request_report(settings, request_id)``. Cost: two queries and a lookup of each source, 0.1 s for 10 sources.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from orchestration.settings import Settings
from orchestration.unlearning.code_versions import code_versions
from orchestration.unlearning.loss_table import evidence_lines
from orchestration.unlearning.report.conclusion import conclude, limits
from registry import ids
from registry.catalog.database import Catalog
from registry.catalog.ledger import Ledger, Request
from registry.catalog.tables import models, now
from registry.errors import NullsError
from registry.lookup import read_sources
from registry.messages.shown import listed
from registry.snapshot import Registry

_SHOWN_ELSEWHERE = {"plan", "evidence", "error", "elsewhere", "revocations", "request"}
"""Keys of a request's detail that have a place of their own in the report."""
_MAX_LINES = 20  # sources of a report in a terminal


def request_report(settings: Settings, request_id: str) -> dict[str, Any]:
    """Return the JSON of `nulls report`.

    Args:
        settings: the stores; the snapshot is the one that the model was trained on.
        request_id: of the ledger.

    Raises:
        NotFoundError: there is no such request.
        DamagedError: the ledger was altered.
    """
    catalog = settings.open_catalog()
    ledger = Ledger(catalog)
    request = ledger.request(request_id)
    history = ledger.history(request_id)
    plan: Mapping[str, Any] = request.detail.get("plan") or {}
    evidence: Mapping[str, Any] | None = request.detail.get("evidence") or None
    snapshot_id = _snapshot_id(settings, catalog, request, evidence)
    also_removed = list(plan.get("also_removed", ()))
    known, note = _known(settings, snapshot_id, [*request.sources, *also_removed])
    titles = {row["key"]: row["title"] for row in evidence["sources"]} if evidence else {}
    return {
        "request": {name: value for name, value in request.to_dict().items() if name != "detail"},
        "conclusion": conclude(request, len(also_removed)).to_dict(),
        "sources": [known.get(key) or _unknown(key, titles) for key in request.sources],
        "also_removed": [known.get(key) or _unknown(key, titles) for key in also_removed],
        "kept_by_other_owners": list(plan.get("kept_by_other_owners", ())),
        "collateral": plan.get("collateral"),
        "elsewhere": request.detail.get("elsewhere"),
        "events": [_event(event) for event in history],
        "evidence": evidence,
        "limits": limits(request, plan),
        "digests": _digests(request, evidence, snapshot_id),
        "code": {"measured_with": (evidence or {}).get("code"), "written_with": code_versions()},
        "more": {name: value for name, value in request.detail.items() if name not in _SHOWN_ELSEWHERE},
        "snapshot_note": note,
        "written_at": now(),
    }


def _event(event: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: event[name] for name in ("event_id", "at", "state", "model_after", "evidence_digest", "digest")}
    detail = event["detail"]
    verdict = (detail.get("evidence") or {}).get("verdict")
    return fields | {"error": detail.get("error"), "verdict": verdict}


def _digests(request: Request, evidence: Mapping[str, Any] | None, snapshot_id: str | None) -> dict[str, str | None]:
    revocations = request.detail.get("revocations") or {}
    return {
        "weights": revocations.get("tensors") or (evidence or {}).get("weights_sha256"),
        "weights_and_configuration": revocations.get("weights_id"),
        "snapshot": snapshot_id,
        "evidence": request.evidence_digest,
    }


def _snapshot_id(
    settings: Settings, catalog: Catalog, request: Request, evidence: Mapping[str, Any] | None
) -> str | None:
    """Return the id of the model's snapshot: from the evidence, else the catalogue, else MLflow; None if unknown."""
    if evidence and evidence.get("snapshot"):
        return str(evidence["snapshot"])
    versions = [uri for uri in (request.model_after, request.model_before) if uri]
    with catalog.read() as connection:
        found = connection.execute(sa.select(models.c.snapshot_id).where(models.c.model_uri.in_(versions))).scalar()
    if found:
        return str(found)
    from training.serving import flavor

    try:
        return flavor.describe(request.model_before, tracking_uri=settings.tracking_uri).snapshot
    except NullsError:
        return None  # the store is down or the version was deleted; the report says that the snapshot is not known


def _known(
    settings: Settings, snapshot_id: str | None, keys: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Return the sources by key as the snapshot has them, and why there are none if it cannot be read."""
    if snapshot_id is None:
        return {}, "The snapshot that the model was trained on is not on record: titles and sizes are missing."
    try:
        snapshot = Registry.open(settings.registry_uri).snapshot(snapshot_id)
        found = read_sources(snapshot, [ids.source_id(key) for key in keys])
    except NullsError as error:
        return {}, f"Snapshot {snapshot_id[:16]} cannot be read here, so titles and sizes are missing: {error}"
    return {
        source.key: {
            "key": source.key,
            "source_id": ids.format_id(source.source_id),
            "title": source.title,
            "kind": source.kind,
            "num_documents": source.num_documents,
            "num_bytes": source.num_bytes,
            "shared_with": list(source.shared_with),
        }
        for source in found.values()
    }, None


def _unknown(key: str, titles: Mapping[str, str | None]) -> dict[str, Any]:
    nothing = dict.fromkeys(("kind", "num_documents", "num_bytes", "shared_with"))
    return {"key": key, "source_id": ids.format_id(ids.source_id(key)), "title": titles.get(key), **nothing}


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Format a report for a terminal, in short; the page has all of it."""
    request, conclusion = report["request"], report["conclusion"]
    after = f" -> {request['model_after']}" if request["model_after"] else ""
    text = [
        f"request {request['request_id']}: {conclusion['headline']}",
        *(f"  {reason}" for reason in ([] if report["evidence"] else conclusion["reasons"])),
        f"asked    by {request['requested_by']} at {request['created_at'][:19]}: {request['reason']}",
        f"model    {request['model_before']}{after} ({request['action']}, {request['policy']})",
    ]
    text += [f"source   {_named(source)}" for source in report["sources"][:_MAX_LINES]]
    text += [f"with it  {_named(source)}" for source in report["also_removed"][:_MAX_LINES]]
    hidden = len(report["sources"]) + len(report["also_removed"]) - 2 * _MAX_LINES
    text += [f"         and more sources; --json has all {len(report['sources']):,}"] if hidden > 0 else []
    text += [f"{event['state']:<8} at {event['at'][:19]}" for event in report["events"]]
    text.append(f"also at  {_places(report['elsewhere'])}")
    text += [f"{name.replace('_', ' '):<15} {value}" for name, value in report["digests"].items() if value]
    text += [report["snapshot_note"]] if report["snapshot_note"] else []
    if evidence := report["evidence"]:
        text += evidence_lines({**evidence, "sources": evidence["sources"][:_MAX_LINES]})
    return text


def _named(source: Mapping[str, Any]) -> str:
    count = "" if source["num_documents"] is None else f", {source['num_documents']:,} documents"
    shared = f", shared with {listed(source['shared_with'])}" if source["shared_with"] else ""
    return f"{source['key']} {source['title'] or ''}".rstrip() + count + shared


def _places(elsewhere: Iterable[Mapping[str, Any]] | None) -> str:
    if elsewhere is None:
        return "not recorded"
    return listed([f"{place['model_uri']} ({place['relation']})" for place in elsewhere]) or "nowhere else"
