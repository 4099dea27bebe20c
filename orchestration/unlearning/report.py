"""An audit or an unlearn as one HTML file to look at: no scripts, nothing fetched, the plot inside as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from registry.storage import write_atomic

_COLOURS = {"on": "#0b7a4b", "closest": "#2f5bd0", "placebo": "#b3541e", "backbone": "#7a3e9d"}
_LABELS = {
    "on": "on: its own sinks",
    "closest": "off: next-closest source's sinks",
    "placebo": "off: a far source's sinks",
    "backbone": "off: backbone only",
}


def write_audit(path: Path, report: Mapping[str, Any]) -> None:
    """Writes an audit (the shape of `nulls audit --json`) as HTML.

    Raises:
        ServiceError: the file cannot be written.
    """
    write_report(
        path,
        title=f"Audit of {report['model_uri']}",
        subtitle=f"snapshot {report['snapshot']}",
        rows=report["sources"],
        heldout=report["summary"]["unseen_loss"],
    )


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    rows: Sequence[Mapping[str, Any]],
    heldout: Mapping[str, Any],
    evidence: Mapping[str, Any] | None = None,
    figures: Sequence[tuple[str, str]] = (),
    generations: Sequence[Mapping[str, Any]] = (),
    facts: Sequence[tuple[str, Sequence[tuple[str, Any]]]] = (),
) -> None:
    """Writes a report.

    Args:
        path: an .html file; its folder is made.
        title, subtitle: the heading.
        rows: audited sources, each with `revoked`.
        heldout: the yardstick.
        evidence: of an unlearn, for the verdict and the other sources.
        figures: (label, value) pairs to show large.
        generations: what the model wrote, and how it was asked.
        facts: (heading, (name, value) pairs), one section each.

    Raises:
        ServiceError: the file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("orchestration.unlearning"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["nats"] = lambda value: "–" if value is None else f"{value:.2f}"
    text = environment.get_template("report.html.j2").render(
        title=title,
        subtitle=subtitle,
        rows=rows,
        heldout=heldout,
        evidence=evidence,
        names=[row["title"] or row["key"] for row in rows if row["revoked"]],
        figures=figures,
        generations=generations,
        others=evidence["others"] if evidence else [],
        facts=facts,
        plot=plot_losses(rows, heldout),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


def plot_losses(rows: Sequence[Mapping[str, Any]], heldout: Mapping[str, Any]) -> str:
    """One line a source, a dot a state, over the band of the held-out sources; SVG text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "nulls"})
    figure, axes = pyplot.subplots(figsize=(9, 1.3 + 0.36 * len(rows)))
    if heldout["num_sources"]:
        low, high = heldout["range"]["placebo"]
        axes.axvspan(low, high, color="#e4e7ee", zorder=0)
        axes.axvline(heldout["placebo"], color="#8a93a6", zorder=1, linewidth=1.2)
    for place, row in enumerate(reversed(rows)):
        values = {"on": row["loss_on"], **row["loss_off"]}
        axes.plot([min(values.values()), max(values.values())], [place, place], color="#c9cfda", zorder=2, linewidth=1)
        for state, value in values.items():
            axes.scatter(value, place, color=_COLOURS[state], s=44 if state == "on" else 30, zorder=3)
    for state, colour in _COLOURS.items():
        axes.scatter([], [], color=colour, label=_LABELS[state])
    names = [(row["title"] or row["key"])[:40] + (" ✕" if row["revoked"] else "") for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xlabel("loss, nats a token")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 1 + 0.75 / (1 + 0.36 * len(rows))), ncol=4, frameon=False, fontsize=8
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
