"""Draw a loss and its expectation as a strip of SVG: a band for the interval, a tick for the mean, a dot for the loss.

A strip holds no text but numbers, so no title can break it, and every strip of a page has the same axis. It needs no
plotting library: 0.1 ms a strip.
"""

from __future__ import annotations

import math

from markupsafe import Markup

from orchestration.unlearning.report.measurements import Lane

WIDTH, HEIGHT, _AXIS_HEIGHT, _MIDDLE = 270, 24, 18, 12
COLOURS = {"on": "#0b7a4b", "closest": "#2f5bd0", "placebo": "#b3541e", "backbone": "#7a3e9d"}
_ATTRIBUTES = f'viewBox="0 0 {WIDTH} %d" width="{WIDTH}" height="%d" role="img"'


def strip(lane: Lane, domain: tuple[float, float]) -> Markup:
    """Return the strip of one source in one state.

    Args:
        lane: the loss, and what is expected.
        domain: the losses at the left and the right edge, in nats a token.
    """
    colour, low, high = COLOURS[lane.state], lane.low, lane.high
    parts = [f'<line x1="{at:.1f}" y1="0" x2="{at:.1f}" y2="{HEIGHT}" stroke="#e6e9f0"/>' for _, at in _ticks(domain)]
    if low is not None and high is not None:
        left, right = _x(low, domain), _x(high, domain)
        parts.append(
            f'<rect class="band" x="{left:.1f}" y="5" width="{max(right - left, 1):.1f}" height="14" rx="2" '
            f'fill="{colour}" fill-opacity="0.18" stroke="{colour}" stroke-opacity="0.45"/>'
        )
    if lane.never is not None:
        at = _x(lane.never, domain)
        parts.append(f'<line x1="{at:.1f}" y1="5" x2="{at:.1f}" y2="19" stroke="{colour}" stroke-width="1.5"/>')
    parts.append(f'<circle cx="{_x(lane.loss, domain):.1f}" cy="{_MIDDLE}" r="5" fill="{colour}" stroke="#fff"/>')
    # Only numbers and constants are put in, so nothing needs to be escaped.
    return Markup(f'<svg {_ATTRIBUTES % (HEIGHT, HEIGHT)} aria-label="{_spoken(lane)}">{"".join(parts)}</svg>')


def axis(domain: tuple[float, float]) -> Markup:
    """Return the axis of all strips of a page."""
    parts = [
        f'<line x1="{at:.1f}" y1="13" x2="{at:.1f}" y2="{_AXIS_HEIGHT}" stroke="#8a93a6"/>'
        f'<text x="{min(max(at, 10), WIDTH - 10):.1f}" y="10" text-anchor="middle">{label}</text>'
        for label, at in _ticks(domain)
    ]
    label = "axis: loss in nats a token"
    return Markup(f'<svg {_ATTRIBUTES % (_AXIS_HEIGHT, _AXIS_HEIGHT)} aria-label="{label}">{"".join(parts)}</svg>')


def _spoken(lane: Lane) -> str:
    band = "" if lane.low is None or lane.high is None else f", expected {lane.low:.2f} to {lane.high:.2f}"
    return f"loss {lane.loss:.2f}{band}"


def _x(loss: float, domain: tuple[float, float]) -> float:
    return (loss - domain[0]) / (domain[1] - domain[0]) * WIDTH


def _ticks(domain: tuple[float, float]) -> list[tuple[str, float]]:
    """Return (label, x) of three to seven round losses."""
    rough = (domain[1] - domain[0]) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(domain[0] / step), math.floor(domain[1] / step)
    return [(f"{n * step:.{decimals}f}", _x(n * step, domain)) for n in range(first, last + 1)]
