"""The outcome of a request in plain words, for every state and kind of evidence."""

from __future__ import annotations

from typing import Any

import pytest

from orchestration.unlearning.report.conclusion import Outcome, conclude, limits
from registry.catalog.ledger import Request
from registry.catalog.states import State
from tests.orchestration.unlearning.report.measured import heldout, source

AFTER = "models:/m/2"


def request(state: State, *, action: str = "revoke", after: str | None = AFTER, **detail: Any) -> Request:
    """A request as the ledger returns it."""
    return Request(
        request_id="0ac381f5b236d745",
        created_at="2026-11-28T04:54:16.123Z",
        requested_by="A. Person",
        reason="letter of 3 May",
        action=action,
        policy="all-owners",
        model_name="m",
        model_before="models:/m/1",
        sources=("web:a.example",),
        state=state,
        model_after=after,
        evidence_digest=None,
        detail=detail,
        updated_at="2026-11-28T04:54:18.123Z",
    )


def evidence(verdict: str, *reasons: str, sources: int = 1) -> dict[str, Any]:
    """Evidence of a verdict."""
    rows = [source(f"Title {n}") for n in range(sources)]
    return {
        "verdict": verdict,
        "reasons": list(reasons),
        "sources": rows,
        "heldout": heldout(),
        "masks_refused": True,
        "others": [],
    }


@pytest.mark.parametrize(
    ("given", "outcome", "words"),
    [
        (request(State.VERIFIED, evidence=evidence("supported")), Outcome.SUPPORTED, "as hard to predict"),
        (request(State.APPLIED, evidence=evidence("weak", "p = 0.01")), Outcome.WEAK, "do not fully support"),
        (request(State.APPLIED), Outcome.NOT_MEASURED, "--resume 0ac381f5b236d745"),
        (
            request(State.APPLIED, evidence=evidence("weak", "no text", sources=0)),
            Outcome.NOT_MEASURED,
            "could not be measured",
        ),
        (request(State.REFUSED, after=None, error="held out"), Outcome.REFUSED, "Nothing was changed"),
        (request(State.FAILED, after=None, error="gone"), Outcome.FAILED, "Nothing was changed"),
        (request(State.REQUESTED, after=None), Outcome.OPEN, "not carried out to the end"),
        (request(State.PLANNED, after=None, plan={}), Outcome.OPEN, "not carried out to the end"),
    ],
)
def test_every_state_has_an_outcome_in_words(given: Request, outcome: Outcome, words: str) -> None:
    conclusion = conclude(given)
    assert conclusion.outcome is outcome
    assert words in " ".join(conclusion.sentences)
    carried_out = outcome in (Outcome.SUPPORTED, Outcome.WEAK, Outcome.NOT_MEASURED)
    assert (AFTER in " ".join(conclusion.sentences)) == carried_out == conclusion.headline.startswith("Carried out")
    assert list(conclusion.reasons) == [
        *((given.detail.get("evidence") or {}).get("reasons", [])),
        *([given.detail["error"]] if "error" in given.detail else []),
    ]
    assert limits(given, {})


def test_a_source_that_is_not_refused_is_said_so() -> None:
    found = evidence("weak", "the new version does not refuse the sources' sinks") | {"masks_refused": False}
    assert "NOT refused" in " ".join(conclude(request(State.APPLIED, evidence=found)).sentences)


def test_shared_sources_that_went_too_are_counted() -> None:
    assert "these 3 sources" in conclude(request(State.APPLIED), num_also_removed=2).sentences[0]
    assert "this source" in conclude(request(State.APPLIED)).sentences[0]


@pytest.mark.parametrize("action", ["revoke", "erase", "reinstate", "something new"])
def test_other_actions_are_reported_too(action: str) -> None:
    sentences = conclude(request(State.APPLIED, action=action)).sentences
    assert ("never switches" in sentences[0]) == (action != "reinstate")
    assert ("zero" in sentences[0]) == (action == "erase")


def test_limits_name_what_stays_and_what_a_test_could_find() -> None:
    plan = {"collateral": {"num_lives_on_as_near_copy": 7}, "kept_by_other_owners": [{"key": "shared:1"}]}
    text = "\n".join(limits(request(State.VERIFIED, evidence=evidence("supported")), plan))
    assert "7 near copies" in text
    assert "1 texts that other sources published too" in text
    assert "The weights were not changed" in text
    assert "12 sources that were never trained" in text
    assert "Title 0: a trace of less than 0." in text
    assert "Nothing was measured" in "\n".join(limits(request(State.APPLIED), {}))
    assert "The weights were not changed" not in "\n".join(limits(request(State.APPLIED, action="erase"), {}))
