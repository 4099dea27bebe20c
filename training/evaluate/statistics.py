"""The numbers that evidence rests on, as pure functions.

An unlearned source is one case, the held-out sources are a small sample of never-trained ones: is the one easier than
they are? That is Crawford and Howell's modified t-test for a single case against a small control sample (The Clinical
Neuropsychologist 12, 1998): with n controls, t = (x - mean) / (sd * sqrt((n + 1) / n)) on n - 1 degrees of freedom. It
holds its error rate from n = 5 upwards. It assumes that losses of sources are about normal; a source whose text is
easier by nature (a list, a table) is rejected more often than it should be, which errs on the side of saying "weak".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

SIGNIFICANCE = 0.05
MIN_CLOSURE = 0.7  # under this, a tenth or more of what was memorised per held-out yardstick is still readable
MIN_GAP_NATS = 0.3  # under this, the source was not memorised, and closure divides by noise
OFF_STATES = ("closest", "placebo", "backbone")


def single_case_p(case: float, controls: Sequence[float]) -> float | None:
    """One-sided p-value that `case` is from the controls' population, against its being lower.

    Returns:
        The p-value; None with fewer than three controls or no spread among them.
    """
    from scipy import stats

    n = len(controls)
    if n < 3 or (spread := statistics.stdev(controls)) == 0:
        return None
    t = (case - statistics.fmean(controls)) / (spread * math.sqrt((n + 1) / n))
    return float(stats.t.cdf(t, n - 1))


def combined_p(p_values: Sequence[float | None]) -> float | None:
    """Bonferroni: the p-value of the smallest among several tests."""
    known = [p for p in p_values if p is not None]
    return min(1.0, len(known) * min(known)) if known else None


def closure(*, on: float, off: float, never: float) -> float | None:
    """(off - on) / (never - on): 1 is a perfect unlearn.

    Returns:
        None where `never - on` is under MIN_GAP_NATS: the source was not memorised, and there is nothing to close.
    """
    return (off - on) / (never - on) if never - on >= MIN_GAP_NATS else None


def weaknesses(*, p_value: float | None, closures: Mapping[str, float | None], num_controls: int) -> list[str]:
    """Why the evidence for one source does not support that it was unlearned; empty if it does."""
    found = []
    if p_value is None:
        found.append(f"no yardstick: {num_controls} held-out sources, at least 3 are needed")
    elif p_value < SIGNIFICANCE:
        found.append(f"its text is still easier than never-trained text (p = {p_value:.3f} < {SIGNIFICANCE})")
    low = {state: value for state, value in closures.items() if value is not None and value < MIN_CLOSURE}
    if low:
        worst = ", ".join(f"{state} {value:.2f}" for state, value in low.items())
        found.append(f"closure under {MIN_CLOSURE}: {worst}")
    return found
