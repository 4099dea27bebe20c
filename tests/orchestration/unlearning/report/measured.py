"""Measured sources as evidence has them, for pages and their parts: made by the statistics, without a model."""

from __future__ import annotations

from typing import Any

from training.evaluate.statistics import ABLATIONS, closure, combined_p, expected

# Twelve held-out sources whose level and spread differ between the ablations, as they do in the demo.
DIFFICULTIES = [4.0, 4.4, 3.9, 4.1, 4.8, 4.2, 4.1, 4.05, 4.3, 4.6, 3.8, 4.5]
NOISE = [0.05, -0.1, 0.02, 0.12, -0.04, 0.0, -0.06, 0.08, -0.02, 0.03, -0.09, 0.01]
LEVEL = {"closest": (4.9, 3.0), "placebo": (5.1, 1.0), "backbone": (4.6, 0.8)}
ON, DIFFICULTY = 3.5, 4.25


def heldout() -> dict[str, Any]:
    """The `heldout` object."""
    losses = {
        state: [level + 0.5 * (x - 4.2) + scale * e for x, e in zip(DIFFICULTIES, NOISE, strict=True)]
        for state, (level, scale) in LEVEL.items()
    }
    means = {state: sum(values) / len(values) for state, values in losses.items()}
    return {"num_sources": len(DIFFICULTIES), **means, "difficulties": DIFFICULTIES, "losses": losses}


def source(title: str | None, key: str = "web:a.example", **off: float) -> dict[str, Any]:
    """A measured source; its losses with sinks off are those expected, unless `off` has another."""
    baseline = heldout()
    found = {state: expected(baseline["losses"][state], DIFFICULTIES, DIFFICULTY) for state in ABLATIONS}
    never = {state: value.mean for state, value in found.items() if value}
    losses = never | off
    p_values = {state: value.p_value(losses[state]) for state, value in found.items() if value}
    return {
        "key": key,
        "title": title,
        "num_tokens": 1234,
        "difficulty": DIFFICULTY,
        "loss_on": ON,
        "loss_off": losses,
        "p_values": p_values,
        "p_value": combined_p(list(p_values.values())),
        "never": never,
        "expected": {state: value.to_dict() for state, value in found.items() if value},
        "closure": {state: closure(on=ON, off=losses[state], never=never[state]) for state in ABLATIONS},
        "oracle": None,
        "weaknesses": [],
    }
