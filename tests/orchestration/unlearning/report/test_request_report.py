"""The report of a real request, in each state, and where its stores are gone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from orchestration.settings import Settings
from orchestration.unlearning import unlearn as act
from orchestration.unlearning.report.page import write_request
from orchestration.unlearning.report.request_report import report_lines, request_report
from registry import ids
from registry.catalog.ledger import Ledger
from registry.catalog.states import State
from registry.errors import NotFoundError, RefusedError
from registry.snapshot import Snapshot
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, SHARED, heldout_of, key, title
from tests.orchestration.unlearning.report.test_page import Parsed


def page_of(settings: Settings, request_id: str, folder: Path) -> str:
    """The text of a request's page."""
    write_request(folder / "request.html", request_report(settings, request_id))
    return Parsed((folder / "request.html").read_text(encoding="utf-8")).text


def test_a_measured_request_has_all_that_was_asked_found_and_done(
    deployed: Deployed, weights: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    number = next(n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout_of(weights))
    result = act.unlearn(
        deployed.settings,
        deployed.uri,
        [title(number)],
        reason="Letter of 3 May\nsecond line",
        requested_by="A. Person",
    )
    request_id, evidence = result.request_id or "", result.evidence
    assert evidence is not None
    report = request_report(deployed.settings, request_id)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["conclusion"]["outcome"] == ("supported" if result.state is State.VERIFIED else "weak")
    (found,) = report["sources"]
    assert (found["key"], found["title"], found["num_documents"]) == (key(number), title(number), 1)
    assert [event["state"] for event in report["events"]] == ["requested", "planned", "applied", result.state.value]
    assert report["evidence"] == json.loads(json.dumps(evidence))
    (row,) = evidence["sources"]
    assert {state: expected["mean"] for state, expected in row["expected"].items()} == row["never"]
    assert evidence["code"]["torch"]
    history = Ledger(deployed.settings.open_catalog()).history(request_id)
    page = page_of(deployed.settings, request_id, tmp_path)
    for text in (
        request_id,
        "A. Person",
        "Letter of 3 May\nsecond line",
        "all-owners",
        title(number),
        deployed.uri,
        result.model_uri,
        snapshot.id,
        evidence["weights_sha256"],
        report["digests"]["evidence"],
        evidence["code"]["torch"],
        *(event["digest"] for event in history),
        *(other["key"] for other in evidence["others"]),
        *evidence["reasons"],
        *report["limits"],
    ):
        assert text in page
    assert "second line" in "\n".join(report_lines(report))


def test_co_owned_text_and_near_copies_are_named(deployed: Deployed, tmp_path: Path) -> None:
    queries = [key(1), "web:b.example"]
    with pytest.raises(RefusedError):
        act.unlearn(deployed.settings, deployed.uri, queries, reason="x", measure=False)
    result = act.unlearn(deployed.settings, deployed.uri, [key(1), "web:a.example"], reason="x", measure=False)
    report = request_report(deployed.settings, result.request_id or "")
    assert report["conclusion"]["outcome"] == "not measured"
    assert [kept["key"] for kept in report["kept_by_other_owners"]] == [SHARED]
    assert {source["key"]: source["shared_with"] for source in report["sources"]}[key(1)] == [key(2)]
    page = page_of(deployed.settings, result.request_id or "", tmp_path)
    assert SHARED in page
    assert "0.90" in page, "the likeness of b.example's near copy"
    assert "What was measured" not in page
    last = act.unlearn(deployed.settings, result.model_uri, [key(2)], reason="y", measure=False)
    assert [s["key"] for s in request_report(deployed.settings, last.request_id or "")["also_removed"]] == [SHARED]


def test_a_refused_request_says_why_and_that_nothing_changed(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    heldout = next(n for n in range(1, NUM_ARTICLES + 1) if ids.source_id(key(n)) in heldout_of(weights))
    with pytest.raises(RefusedError):
        act.unlearn(deployed.settings, deployed.uri, [key(heldout)], reason="x")
    (request,) = Ledger(deployed.settings.open_catalog()).requests()
    report = request_report(deployed.settings, request.request_id)
    assert report["conclusion"]["outcome"] == "refused"
    assert report["sources"][0]["title"] == title(heldout), "the snapshot is that of the version in MLflow"
    page = page_of(deployed.settings, request.request_id, tmp_path)
    assert "held out of training" in page
    assert "Nothing was changed" in page
    assert "none was made" in page


def test_a_request_is_reported_where_its_registry_and_its_model_are_gone(
    deployed: Deployed, weights: Path, tmp_path: Path
) -> None:
    number = next(n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout_of(weights))
    result = act.unlearn(deployed.settings, deployed.uri, [key(number)], reason="x", measure=False)
    without_registry = dataclasses.replace(deployed.settings, registry=str(tmp_path / "nowhere"))
    report = request_report(without_registry, result.request_id or "")
    assert "cannot be read" in report["snapshot_note"]
    assert report["sources"][0]["key"] == key(number)
    assert report["sources"][0]["num_bytes"] is None
    assert "cannot be read" in page_of(without_registry, result.request_id or "", tmp_path)

    settings = dataclasses.replace(without_registry, tracking=f"sqlite:///{tmp_path / 'empty.db'}")
    ledger = Ledger(settings.open_catalog())
    fields = {"requested_by": "a", "reason": "x", "action": "revoke", "policy": "all-owners", "model_name": "gone"}
    opened = ledger.open_request(**fields, model_before="models:/gone/1", sources=["web:a.example"])
    assert "not on record" in request_report(settings, opened)["snapshot_note"]
    assert "Not finished" in page_of(settings, opened, tmp_path)


def test_what_else_is_on_record_is_shown(deployed: Deployed, tmp_path: Path) -> None:
    ledger = Ledger(deployed.settings.open_catalog())
    fields = {"requested_by": "a", "reason": "x", "action": "revoke", "policy": "all-owners", "model_name": "m"}
    detail = {
        "lines": [{"query": "B\u202e ook", "reason": "not found"}],
        "elsewhere": [{"model_uri": "models:/copy/1", "aliases": ["prod"], "relation": "copy"}],
    }
    opened = ledger.open_request(**fields, model_before=deployed.uri, sources=[key(3)], detail=detail)
    page = page_of(deployed.settings, opened, tmp_path)
    for text in ("models:/copy/1", "prod", "B\\u202e ook"):
        assert text in page
    assert "models:/copy/1 (copy)" in "\n".join(report_lines(request_report(deployed.settings, opened)))


def test_an_unknown_request_is_not_found(deployed: Deployed) -> None:
    with pytest.raises(NotFoundError, match="nulls ledger"):
        request_report(deployed.settings, "0" * 16)
