"""Prepare measured sources for a page: each state of the sinks beside its own expectation, with intervals.

The expectation of each ablation is that of the held-out sources in the same ablation, for a text as hard as the
source's (`training.evaluate.statistics`). Losses are in nats a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

ABLATIONS = ("closest", "placebo", "backbone")
LABELS = {
    "on": "on: its own sinks",
    "closest": "off: sinks of the closest other source",
    "placebo": "off: sinks of a far source (placebo)",
    "backbone": "off: no sinks (backbone only)",
}
MAX_SHOWN = 40
"""Sources with a plot on a page; a source takes 130 px, and about 4 kB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lane:
    """One source in one state of the sinks."""

    state: str
    loss: float
    never: float | None = None
    """The never-trained loss: an oracle's, or the one that the held-out sources make expected."""
    low: float | None = None
    high: float | None = None
    """The interval of a never-trained text as hard, by the held-out sources of this state."""
    p_value: float | None = None
    closure: float | None = None
    closure_low: float | None = None
    closure_high: float | None = None

    @property
    def label(self) -> str:
        """The state in words."""
        return LABELS[self.state]

    @property
    def reading(self) -> str:
        """Whether the loss is as expected of a text that was never trained; empty if that is not known."""
        if self.low is None or self.high is None:
            return ""
        return "lower than expected" if self.loss < self.low else "as expected"


def lanes(source: Mapping[str, Any], heldout: Mapping[str, Any]) -> list[Lane]:
    """Return the four states of a measured source, sinks on first.

    Args:
        source: an entry of `sources` in an audit or in evidence.
        heldout: the `heldout` object beside it.
    """
    expected = expectations(source, heldout)
    found = [Lane(state="on", loss=source["loss_on"])]
    for state in ABLATIONS:
        mine = expected.get(state, {})
        low, high = mine.get("low"), mine.get("high")
        gained = source["loss_off"][state] - source["loss_on"]
        by_oracle = source["oracle"] is not None
        found.append(
            Lane(
                state=state,
                loss=source["loss_off"][state],
                never=source["never"].get(state),
                low=low,
                high=high,
                p_value=source["p_values"][state],
                closure=source["closure"][state],
                closure_low=None if by_oracle else _closure(gained, high, source, state),
                closure_high=None if by_oracle else _closure(gained, low, source, state),
            )
        )
    return found


def expectations(source: Mapping[str, Any], heldout: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return ablation -> the expectation, computed here if the evidence is older than its field for it."""
    if "expected" in source:
        return dict(source["expected"])
    from training.evaluate.statistics import expected

    losses, difficulties = heldout["losses"], heldout["difficulties"]
    found = {state: expected(losses[state], difficulties, source["difficulty"]) for state in ABLATIONS}
    return {state: value.to_dict() for state, value in found.items() if value}


def domain(groups: Sequence[Sequence[Lane]]) -> tuple[float, float]:
    """Return the range of losses that holds every dot and band, with a margin; (0, 1) without any."""
    marks = [value for group in groups for lane in group for value in (lane.loss, lane.never, lane.low, lane.high)]
    known = [value for value in marks if value is not None]
    if not known:
        return 0.0, 1.0
    margin = 0.04 * (max(known) - min(known)) or 0.5
    return min(known) - margin, max(known) + margin


def smallest_trace(group: Sequence[Lane]) -> tuple[float, float | None] | None:
    """Return the smallest trace that the tests of a source find more often than not; None without an interval.

    Returns:
        Nats a token in the most sensitive ablation, and as a share of what its sinks held if they held anything.
    """
    on = group[0].loss
    found = [
        (lane.never - lane.low, lane.never - on) for lane in group if lane.never is not None and lane.low is not None
    ]
    if not found:
        return None
    trace, held = min(found)
    return trace, trace / held if held > 0 else None


def _closure(gained: float, never: float | None, source: Mapping[str, Any], state: str) -> float | None:
    """Return the closure for another never-trained loss; None where the source's own closure is not known."""
    if never is None or source["closure"][state] is None or never <= source["loss_on"]:
        return None
    return float(gained / (never - source["loss_on"]))
