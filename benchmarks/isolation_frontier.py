"""The table of variants and the plot of the frontier, from the losses that `isolation.py` measures.

Means are over sources, of each source's loss in nats a token. Standard errors come from a bootstrap over sources, drawn
separately for measured and unseen ones.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

DENSE = ("dense", "control")
STATES = ("backbone", "closest")
_NUM_DRAWS = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One variant in one ablation (sinks off)."""

    on: float
    off: float
    never: float
    """The loss that the measured sources would have, had they not been trained."""
    unseen: float
    unseen_stderr: float
    closure: float
    closure_stderr: float


def point(losses: dict[str, Any], control: dict[str, Any], state: str) -> Point:
    """Return a variant's point, from its losses and the control's, both as `isolation.measure` returns them."""
    on, off, unseen = (np.array(x) for x in (losses["on"], losses[state]["off"], losses[state]["unseen"]))
    easy, hard = np.array(control["backbone"]["off"]), np.array(control["backbone"]["unseen"])
    draws = np.random.default_rng(0)
    measured_DM = draws.integers(len(on), size=(_NUM_DRAWS, len(on)))
    unseen_DU = draws.integers(len(unseen), size=(_NUM_DRAWS, len(unseen)))

    def closure(m: Any, u: Any) -> Any:
        never = unseen[u].mean(-1) + easy[m].mean(-1) - hard[u].mean(-1)
        return (off[m].mean(-1) - on[m].mean(-1)) / (never - on[m].mean(-1))

    return Point(
        on=float(on.mean()),
        off=float(off.mean()),
        never=float(unseen.mean() + easy.mean() - hard.mean()),
        unseen=float(unseen.mean()),
        unseen_stderr=float(unseen.std(ddof=1) / len(unseen) ** 0.5),
        closure=float(closure(slice(None), slice(None))),
        closure_stderr=float(closure(measured_DM, unseen_DU).std(ddof=1)),
    )


def points(results: list[dict[str, Any]]) -> tuple[float, dict[str, dict[str, Point]]]:
    """Return the dense model's loss on unseen text, and each variant's points by state; needs both dense models."""
    of = {result["name"]: result["losses"] for result in results}
    variants = [name for name in of if name not in DENSE]
    dense = float(np.mean(of["dense"]["backbone"]["unseen"]))
    return dense, {name: {state: point(of[name], of["control"], state) for state in STATES} for name in variants}


def table(results: list[dict[str, Any]]) -> str:
    """Return a Markdown table; a cell with a slash has the backbone alone, then the closest source's sinks."""
    dense, variants = points(results)
    lines = [
        "| variant | on | off | never trained | closure | unseen | unseen over dense |",
        "|---|---|---|---|---|---|---|",
        f"| **dense** | {_dense_on(results):.2f} | | | | {dense:.2f} | 0 |",
    ]
    for name, by_state in variants.items():
        cells = [by_state[state] for state in STATES]
        columns = [
            f"{cells[0].on:.2f}",
            " / ".join(f"{p.off:.2f}" for p in cells),
            " / ".join(f"{p.never:.2f}" for p in cells),
            " / ".join(f"{p.closure:.3f} ± {p.closure_stderr:.3f}" for p in cells),
            " / ".join(f"{p.unseen:.2f}" for p in cells),
            " / ".join(f"{p.unseen - dense:+.2f}" for p in cells),
        ]
        lines.append("| " + " | ".join([name, *columns]) + " |")
    return "\n".join(lines)


def _dense_on(results: list[dict[str, Any]]) -> float:
    """Return the dense model's loss on the measured sources, which it was trained on."""
    return float(np.mean(next(r for r in results if r["name"] == "dense")["losses"]["backbone"]["off"]))


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Draw closure against the loss on unseen text, in both ablations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dense, variants = points(results)
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5.5), sharey=True)
    for axis, state in zip(axes, STATES, strict=True):
        for name, by_state in variants.items():
            p = by_state[state]
            axis.errorbar(p.unseen, p.closure, yerr=p.closure_stderr, fmt="o", color="tab:blue", ecolor="lightgray")
            axis.annotate(name, (p.unseen, p.closure), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axis.axvline(dense, color="tab:red", linestyle="--", label=f"dense Llama of the active width: {dense:.2f}")
        axis.axhline(0.9, color="gray", linewidth=0.7)
        axis.set(xlabel="loss on unseen text, nats a token", title=f"off = {state}")
        axis.legend(loc="lower right", fontsize=8)
    axes[0].set_ylabel("closure")
    figure.tight_layout()
    figure.savefig(path)
