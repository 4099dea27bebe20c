"""Tables of measured losses for a terminal: one line a source, and below it the loss if it were never trained.

Losses are in nats a token. `nulls unlearn`, `audit` and `ledger` print them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.output import table
from orchestration.unlearning.erasure import cost_lines, proof_lines

_ABLATIONS = ("closest", "placebo", "backbone")
_HEADER = ("source", "on", "off: closest", "off: placebo", "off: backbone", "p", "closure")


def loss_table(measured: Sequence[Mapping[str, Any]], heldout: Mapping[str, Any]) -> list[str]:
    """Format measured sources, and last the mean of the held-out sources."""
    lines = [line for source in measured for line in _source_lines(source)]
    lines.append((f"{heldout['num_sources']} never trained", "-", *_ablations(heldout), "-", "-"))
    return table(lines, _HEADER)


def evidence_lines(evidence: Mapping[str, Any]) -> list[str]:
    """Format the evidence of an unlearn."""
    text = loss_table(evidence["sources"], evidence["heldout"])
    changes = [abs(other["loss_after"] - other["loss_before"]) for other in evidence["others"]]
    if changes:
        text.append(f"{len(changes)} other sources: loss changed by at most {max(changes):.1e}")
    if erasure := evidence.get("erasure"):
        text += cost_lines(erasure["cost_before"] | erasure["cost_after"]) + proof_lines(erasure["proof"])
    text.append(f"evidence: {evidence['verdict']}" + "".join(f"; {reason}" for reason in evidence["reasons"]))
    return text


def decimals(value: float | None) -> str:
    """Format a value with two decimals, and None as a dash."""
    return "-" if value is None else f"{value:.2f}"


def _source_lines(source: Mapping[str, Any]) -> list[tuple[str, ...]]:
    statistics = (decimals(source["p_value"]), decimals(source["closure"]["placebo"]))
    return [
        (source["title"] or source["key"], decimals(source["loss_on"]), *_ablations(source["loss_off"]), *statistics),
        ("  if never trained", "-", *_ablations(source["never"]), "-", "-"),
    ]


def _ablations(losses: Mapping[str, Any]) -> list[str]:
    return [decimals(losses.get(ablation)) for ablation in _ABLATIONS]
