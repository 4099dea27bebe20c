"""Write an audit or an unlearn as one HTML file: no scripts, nothing fetched, the plot inside as SVG."""

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


def write_audit(path: Path, audited: Mapping[str, Any]) -> None:
    """Write an audit (the JSON of `nulls audit`) as HTML.

    Raises:
        ServiceError: the file cannot be written.
    """
    write_report(
        path,
        title=f"Audit of {audited['model_uri']}",
        subtitle=f"snapshot {audited['snapshot']}",
        sources=audited["sources"],
        heldout=audited["summary"]["unseen_loss"],
    )


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    sources: Sequence[Mapping[str, Any]],
    heldout: Mapping[str, Any],
    evidence: Mapping[str, Any] | None = None,
    figures: Sequence[tuple[str, str]] = (),
    generations: Sequence[Mapping[str, Any]] = (),
    facts: Sequence[tuple[str, Sequence[tuple[str, Any]]]] = (),
) -> None:
    """Write a report.

    Args:
        path: an .html file; its folder is made.
        title, subtitle: the heading.
        sources: audited sources, each with `revoked`.
        heldout: the held-out baseline.
        evidence: the evidence of an unlearn, for the verdict and the other sources.
        figures: (label, value) pairs to show large.
        generations: texts that the model wrote, with their prompts.
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
        sources=sources,
        heldout=heldout,
        evidence=evidence,
        names=[source["title"] or source["key"] for source in sources if source["revoked"]],
        figures=figures,
        generations=generations,
        others=evidence["others"] if evidence else [],
        facts=facts,
        plot=plot_losses(sources, heldout),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


def plot_losses(sources: Sequence[Mapping[str, Any]], heldout: Mapping[str, Any]) -> str:
    """Plot a line for each source with a dot for each loss, over the band of the held-out sources; return SVG text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "nulls"})
    figure, axes = pyplot.subplots(figsize=(9, 1.3 + 0.36 * len(sources)))
    if heldout["num_sources"]:
        low, high = heldout["range"]["placebo"]
        axes.axvspan(low, high, color="#e4e7ee", zorder=0)
        axes.axvline(heldout["placebo"], color="#8a93a6", zorder=1, linewidth=1.2)
    for height, source in enumerate(reversed(sources)):
        losses = {"on": source["loss_on"], **source["loss_off"]}
        axes.plot(
            [min(losses.values()), max(losses.values())], [height, height], color="#c9cfda", zorder=2, linewidth=1
        )
        for sinks, loss in losses.items():
            axes.scatter(loss, height, color=_COLOURS[sinks], s=44 if sinks == "on" else 30, zorder=3)
    for sinks, colour in _COLOURS.items():
        axes.scatter([], [], color=colour, label=_LABELS[sinks])
    names = [
        (source["title"] or source["key"])[:40] + (" ✕" if source["revoked"] else "") for source in reversed(sources)
    ]
    axes.set_yticks(range(len(sources)), names)
    axes.set_xlabel("loss, nats a token")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 1 + 0.75 / (1 + 0.36 * len(sources))),
        ncol=4,
        frameon=False,
        fontsize=8,
    )
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
