"""Say in plain words how a request ended, and what its evidence does not show: pure functions of the ledger's rows."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.unlearning.report.measurements import lanes, smallest_trace
from registry.catalog.ledger import Request
from registry.catalog.states import State

_NOTHING_CHANGED = "Nothing was changed: no model version was made for it."
_MAX_NAMED = 5


class Outcome(enum.StrEnum):
    """How a request stands, for whoever asked."""

    SUPPORTED = "supported"
    WEAK = "weak"
    NOT_MEASURED = "not measured"
    REFUSED = "refused"
    FAILED = "failed"
    OPEN = "open"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conclusion:
    """The outcome, its headline, and the sentences and reasons under it."""

    outcome: Outcome
    headline: str
    sentences: Sequence[str]
    reasons: Sequence[str] = ()
    """As the ledger has them: of an error, or of weak evidence."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return dataclasses.asdict(self) | {"outcome": self.outcome.value}


def conclude(request: Request, num_also_removed: int = 0) -> Conclusion:
    """Conclude from a request of the ledger.

    Args:
        request: the request, with its merged detail.
        num_also_removed: shared sources that went with the requested ones.
    """
    evidence = request.detail.get("evidence") or {}
    error = [str(request.detail["error"])] if request.detail.get("error") else []
    if request.state is State.REFUSED:
        sentences = ["The request was not carried out, for the reason below.", _NOTHING_CHANGED]
        return Conclusion(outcome=Outcome.REFUSED, headline="Refused", sentences=sentences, reasons=error)
    if request.state is State.FAILED:
        sentences = ["The request ended with the error below.", _NOTHING_CHANGED]
        return Conclusion(outcome=Outcome.FAILED, headline="Failed", sentences=sentences, reasons=error)
    if request.state in (State.REQUESTED, State.PLANNED):
        sentences = [
            "The request is on record and was not carried out to the end.",
            f"No model version is recorded for it yet. `nulls unlearn --resume {request.request_id}` continues it.",
        ]
        return Conclusion(outcome=Outcome.OPEN, headline="Not finished", sentences=sentences, reasons=error)
    act = _act(request, num_also_removed)
    if not evidence:
        more = f"Nothing was measured yet. `nulls unlearn --resume {request.request_id}` measures it."
        return Conclusion(outcome=Outcome.NOT_MEASURED, headline="Carried out, not measured", sentences=[act, more])
    return _measured(request, evidence, act)


def _measured(request: Request, evidence: Mapping[str, Any], act: str) -> Conclusion:
    reasons = [str(reason) for reason in evidence.get("reasons") or ()]
    sentences = [act, *_refusal(request, evidence)]
    if request.state is State.VERIFIED or evidence.get("verdict") == "supported":
        if not evidence.get("sources"):
            return Conclusion(outcome=Outcome.SUPPORTED, headline="Carried out", sentences=sentences, reasons=reasons)
        sentences.append(
            "With these sinks off, the model finds the sources' own text as hard to predict as it would be expected "
            "to, had it never been trained on it."
        )
        headline = "Carried out, and the measurements support it"
        return Conclusion(outcome=Outcome.SUPPORTED, headline=headline, sentences=sentences, reasons=reasons)
    if not evidence.get("sources"):
        sentences.append("The effect could not be measured, for the reasons below.")
        headline = "Carried out, not measured"
        return Conclusion(outcome=Outcome.NOT_MEASURED, headline=headline, sentences=sentences, reasons=reasons)
    sentences.append(
        "The measurements do not fully support that nothing of the sources is left in the rest of the model: at "
        "least one of them differs from what is expected of a model that was never trained on the sources."
    )
    headline = "Carried out, but the evidence is weak"
    return Conclusion(outcome=Outcome.WEAK, headline=headline, sentences=sentences, reasons=reasons)


def _act(request: Request, num_also_removed: int) -> str:
    count = len(request.sources) + num_also_removed
    one = count == 1
    sources, after = f"{count:,} source{'' if one else 's'}", request.model_after or "the new version"
    if request.action == "reinstate":
        return f"{sources} that had been taken out may be used again, from version {after} on."
    text = (
        f"What the model learned from each source is kept in a part of its own, the source's sinks. Model version "
        f"{after} never switches on the sinks of {'this source' if one else f'these {sources}'}."
    )
    return text + (" In its files they are zero as well." if request.action == "erase" else "")


def _refusal(request: Request, evidence: Mapping[str, Any]) -> list[str]:
    if "masks_refused" not in evidence or request.action == "reinstate":
        return []
    if evidence["masks_refused"]:
        return ["This was tried: version {} refuses to use them.".format(request.model_after or "after the request")]
    return ["This was tried, and at least one of them was NOT refused."]


def limits(request: Request, plan: Mapping[str, Any]) -> list[str]:
    """Say what a request and its evidence do not show.

    Args:
        request: the request.
        plan: the plan in its detail; empty if it was never planned.
    """
    if request.state in (State.REFUSED, State.FAILED, State.REQUESTED):
        return ["No change to any model is recorded with this request, so there is nothing to measure."]
    evidence = request.detail.get("evidence") or {}
    found = []
    if request.action == "revoke":
        found.append(
            f"The weights were not changed. Files of them, and systems that load them without regard to what is "
            f"revoked, still hold the sources. {request.model_before} and earlier copies are to be withdrawn."
        )
    if near := plan.get("collateral", {}).get("num_lives_on_as_near_copy"):
        found.append(
            f"{near:,} near copies of documents of these sources, published by other sources, stay in the model."
        )
    if kept := plan.get("kept_by_other_owners"):
        found.append(f"{len(kept):,} texts that other sources published too stay in the model with those sources.")
    found.append("Facts and wording that other sources state as well stay in the model: the request is about a source.")
    found.append(
        "The request changes the model. The sources stay in the training corpus until they are removed from it."
    )
    found += (
        _limits_of_measuring(evidence) if evidence.get("sources") else ["Nothing was measured on the sources' text."]
    )
    found.append(
        "The ledger's digests show a change of what is on record. That its last events were deleted shows only in "
        "comparison with an earlier copy: keep the digests below."
    )
    found.append("Whether this satisfies a law or a contract is for others to judge.")
    return found


def _limits_of_measuring(evidence: Mapping[str, Any]) -> list[str]:
    rows, heldout = evidence["sources"], evidence["heldout"]
    tokens = sum(row["num_tokens"] for row in rows)
    found = [
        f"Measured is how well the model predicts the sources' own text, on {tokens:,} tokens of it. Attacks that "
        "extract text, test for membership or train the model again on similar text were not tried.",
        f"The comparison is with {heldout['num_sources']:,} sources that were never trained. No difference found is "
        "not a proof that there is none.",
    ]
    known = [(row, smallest_trace(lanes(row, heldout))) for row in rows[:_MAX_NAMED]]
    for row, trace in known:
        if trace is not None:
            share = "" if trace[1] is None else f" ({trace[1]:.0%} of what its sinks held)"
            found.append(
                f"{row['title'] or row['key']}: a trace of less than {trace[0]:.2f} nats a token{share} is more likely "
                "to be missed than found."
            )
    return found
