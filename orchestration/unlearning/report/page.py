"""Write a request, an audit or the demo's story as one HTML file: no scripts, nothing fetched, plots inside as SVG.

A page is handed to whoever asked: it opens in any browser without a network, and prints. Its policy (a meta element)
forbids scripts and all fetching, whatever a title may hold.

Run: ``write_request(Path("request.html"), request_report(settings, request_id))``. Cost: 50 ms, 30 kB.
"""

from __future__ import annotations

import datetime
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.unlearning.loss_table import p_text
from orchestration.unlearning.report.visible import visible
from registry.errors import UsageError
from registry.storage import write_atomic

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

MAX_ROWS = 200
"""Sources, copies, versions or events that a page lists; `--json` has all."""
_MAX_DETAIL_CHARACTERS, _MAX_LINE = 20_000, 2000


def check_writable(path: Path | None) -> None:
    """Refuse a page that cannot be written, before the work that it would show begins; None passes.

    Raises:
        UsageError: the path is a folder, or no file can be made beside it.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"--html {path}: that is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"--html {path}: cannot write there ({error.strerror}); name another file") from error


def write_request(path: Path, report: Mapping[str, Any]) -> None:
    """Write a request (the JSON of `nulls report`) as HTML.

    Raises:
        ServiceError: the file cannot be written.
    """
    evidence = report["evidence"] or {}
    detail = json.dumps(report["more"], ensure_ascii=False, indent=1)
    _write(
        path,
        "request.html.j2",
        report=report,
        measured=_measured(evidence.get("sources", ()), evidence.get("heldout")),
        outcome=report["conclusion"]["outcome"].replace(" ", "-"),
        others=evidence.get("others", ()),
        detail="\n".join(visible(line, _MAX_LINE) for line in detail[:_MAX_DETAIL_CHARACTERS].splitlines()),
        detail_cut=len(detail) > _MAX_DETAIL_CHARACTERS,
    )


def write_audit(path: Path, audited: Mapping[str, Any]) -> None:
    """Write an audit (the JSON of `nulls audit`) as HTML.

    Raises:
        ServiceError: the file cannot be written.
    """
    summary = audited["summary"]
    names = ("model_uri", "weights_sha256", "snapshot", "oracle_uri")
    labels = ("model version", "weights, SHA-256", "snapshot", "retrained model (oracle)")
    digests = [(label, audited[name] or "none") for name, label in zip(names, labels, strict=True)]
    unlearned = sum(source["revoked"] for source in audited["sources"])
    write_report(
        path,
        title=f"Audit of {audited['model_uri']}",
        subtitle=f"{summary['num_sources']:,} sources, {unlearned:,} of them unlearned in this version",
        sources=audited["sources"],
        heldout=summary["unseen_loss"],
        verdict=_audit_verdict(unlearned, summary["weaknesses"]),
        closures=summary["closure_by_state"],
        facts=[("What was measured, with what", [*digests, *_code(audited["code"])])],
    )


def _audit_verdict(unlearned: int, weaknesses: Sequence[str]) -> Mapping[str, Any]:
    if not unlearned:
        headline = "None of these sources is unlearned in this version: they are measured as if they were"
        return {"outcome": "open", "headline": headline, "reasons": weaknesses}
    if weaknesses:
        headline = "The measurements do not fully support that the unlearned sources have left no trace"
        return {"outcome": "weak", "headline": headline, "reasons": weaknesses}
    headline = "With their sinks off, the unlearned sources are as hard to predict as text that was never trained"
    return {"outcome": "supported", "headline": headline, "reasons": []}


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    sources: Sequence[Mapping[str, Any]],
    heldout: Mapping[str, Any],
    verdict: Mapping[str, Any] | None = None,
    closures: Mapping[str, float | None] | None = None,
    others: Sequence[Mapping[str, Any]] = (),
    figures: Sequence[tuple[str, str]] = (),
    generations: Sequence[Mapping[str, Any]] = (),
    facts: Sequence[tuple[str, Sequence[tuple[str, Any]]]] = (),
) -> None:
    """Write measurements as HTML, of an audit or of the demo.

    Args:
        path: an .html file; its folder is made.
        title, subtitle: the heading.
        sources: audited sources, each with `revoked`.
        heldout: the held-out baseline.
        verdict: `outcome` (of `conclusion.Outcome`), `headline` and `reasons`.
        closures: ablation -> the mean closure.
        others: the other sources in the evidence of an unlearn.
        figures: (label, value) pairs to show large.
        generations: texts that the model wrote, with their prompts.
        facts: (heading, (name, value) pairs), one section each.

    Raises:
        ServiceError: the file cannot be written.
    """
    _write(
        path,
        "audit.html.j2",
        title=title,
        subtitle=subtitle,
        measured=_measured(sources, heldout),
        verdict=verdict,
        closures=closures or {},
        others=others,
        figures=figures,
        generations=generations,
        facts=facts,
    )


def _measured(sources: Sequence[Mapping[str, Any]], heldout: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return what the table of measurements shows: sources with their lanes and strips, and the axis."""
    if heldout is None or not sources:
        return None
    from orchestration.unlearning.report.measurements import MAX_SHOWN, domain, lanes
    from orchestration.unlearning.report.strip_plot import axis, strip
    from training.evaluate.statistics import INTERVAL_LEVEL

    shown = sources[:MAX_SHOWN]
    groups = [lanes(source, heldout) for source in shown]
    losses = domain(groups)
    return {
        "rows": [
            (source, [(lane, strip(lane, losses)) for lane in group])
            for source, group in zip(shown, groups, strict=True)
        ],
        "axis": axis(losses),
        "num_hidden": len(sources) - len(shown),
        "heldout": heldout,
        "level": INTERVAL_LEVEL,
    }


def _code(versions: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [(name, version or "not known") for name, version in versions.items()]


def _write(path: Path, template: str, **values: Any) -> None:
    text = _environment().get_template(template).render(**values)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())


@functools.cache
def _p_value(value: float | None) -> str:
    return "–" if value is None else p_text(value)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("orchestration.unlearning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "nats": lambda value: "–" if value is None else f"{value:.2f}",
        "p": _p_value,
        "count": lambda value: "–" if value is None else f"{value:,}",
        "visible": visible,
        "text": _isolated,
        "paragraphs": _paragraphs,
        "when": _when,
    }
    environment.globals |= {"max_rows": MAX_ROWS, "code_rows": _code}
    return environment


def _isolated(text: object, limit: int = 300) -> Markup:
    """Show text of others: hidden characters as escapes, and its direction kept to itself."""
    from markupsafe import Markup

    return Markup('<bdi dir="auto">{}</bdi>').format(visible(text, limit))


def _paragraphs(text: str) -> Markup:
    """Show text of several lines; each is isolated for itself."""
    from markupsafe import Markup

    return Markup("\n").join(_isolated(line, _MAX_LINE) for line in text.splitlines()[:MAX_ROWS])


def _when(text: str) -> str:
    """Write a time of the ledger (ISO 8601, UTC) in words."""
    at = datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    return f"{at.day} {at:%B %Y, %H:%M:%S} UTC"
