"""Tables of measured losses for a terminal: a line a source, and below it the loss if never trained and the closure.

Losses are in nats a token. `nulls unlearn`, `audit` and `ledger` print them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.output import table

_ABLATIONS = ("closest", "placebo", "backbone")
_MAX_REASONS = 5  # in one line
_HEADER = ("source", "on", "off: closest", "off: placebo", "off: backbone", "p")
_SMALLEST_P = 0.0001


def loss_table(measured: Sequence[Mapping[str, Any]], heldout: Mapping[str, Any]) -> list[str]:
    """Format measured sources, and last the mean of the held-out sources."""
    lines = [line for source in measured for line in _source_lines(source)]
    lines.append((f"{heldout['num_sources']} never trained", "-", *_ablations(heldout), "-"))
    return table(lines, _HEADER)


def evidence_lines(evidence: Mapping[str, Any]) -> list[str]:
    """Format the evidence of an unlearn."""
    text = loss_table(evidence["sources"], evidence["heldout"])
    changes = [abs(other["loss_after"] - other["loss_before"]) for other in evidence["others"]]
    if changes:
        text.append(f"{len(changes)} other sources: loss changed by at most {max(changes):.1e}")
    reasons = evidence["reasons"]
    text.append(f"evidence: {evidence['verdict']}" + "".join(f"; {reason}" for reason in reasons[:_MAX_REASONS]))
    more = len(reasons) - _MAX_REASONS
    return text + ([f"  and {more:,} more reasons; --json has them"] if more > 0 else [])


def decimals(value: float | None) -> str:
    """Format a value with two decimals, and None as a dash."""
    return "-" if value is None else f"{value:.2f}"


def p_text(value: float | None) -> str:
    """Format a p-value with two significant digits, one under 0.0001 as such, and None as a dash."""
    if value is None:
        return "-"
    return f"<{_SMALLEST_P}" if value < _SMALLEST_P else f"{value:.2g}"


def _source_lines(source: Mapping[str, Any]) -> list[tuple[str, ...]]:
    on, p_value = decimals(source["loss_on"]), p_text(source["p_value"])
    return [
        (source["title"] or source["key"], on, *_ablations(source["loss_off"]), p_value),
        ("  if never trained", "-", *_ablations(source["never"]), "-"),
        ("  closure", "-", *_ablations(source["closure"]), "-"),
    ]


def _ablations(losses: Mapping[str, Any]) -> list[str]:
    return [decimals(losses.get(ablation)) for ablation in _ABLATIONS]
