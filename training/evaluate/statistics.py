"""The numbers that evidence rests on, as pure functions.

An unlearned source is one case, the held-out sources are a small sample of never-trained ones: is the one easier than
they are? That is Crawford and Howell's modified t-test for a single case against a small control sample (The Clinical
Neuropsychologist 12, 1998): with n controls, t = (x - mean) / (sd * sqrt((n + 1) / n)) on n - 1 degrees of freedom. It
holds its error rate from n = 5 upwards. It assumes that losses of sources are about normal.

Texts differ in how hard they are by nature (`difficulty.py`). Where that is known, the case is compared with what the
controls' regression on it predicts, on n - 2 degrees of freedom (Crawford and Garthwaite, Neuropsychology 20, 2006), so
that an easy text is not taken for a remembered one, nor a hard one that is remembered for a stranger.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

SIGNIFICANCE = 0.05
MIN_CLOSURE = 0.7  # under this, a tenth or more of what was memorised per held-out yardstick is still readable
MIN_GAP_NATS = 0.3  # under this, the source was not memorised, and closure divides by noise
MIN_FOR_SLOPE = 6  # controls; with fewer the slope takes more than it gives
_MIN_VARIATION = 1e-9  # sum of squares of difficulties, in nats; under this there is nothing but rounding in it
OFF_STATES = ("closest", "placebo", "backbone")


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a case from the controls' population would be."""

    mean: float
    spread: float
    """Standard error of one such case about `mean`; zero if the controls do not differ."""
    degrees: int
    """Of freedom of `spread`."""

    def p_value(self, case: float) -> float | None:
        """One-sided, that `case` is from that population, against its being lower; None without a spread."""
        if self.degrees < 1 or self.spread == 0:
            return None
        from scipy import stats

        return float(stats.t.cdf((case - self.mean) / self.spread, self.degrees))


def expected(
    controls: Sequence[float], difficulties: Sequence[float] | None = None, difficulty: float | None = None
) -> Expected | None:
    """What a case would be that is one of the controls.

    Args:
        controls: their losses.
        difficulties: of the controls; without, with fewer than `MIN_FOR_SLOPE` controls, or if all are equally hard,
            the controls' mean is expected.
        difficulty: of the case.

    Returns:
        None without controls; no p-value comes of fewer than three.
    """
    n = len(controls)
    if n == 0:
        return None
    mean = statistics.fmean(controls)
    if difficulties is not None and difficulty is not None and n >= MIN_FOR_SLOPE:
        center = statistics.fmean(difficulties)
        variation = sum((x - center) ** 2 for x in difficulties)
        if variation > _MIN_VARIATION:
            pairs = list(zip(difficulties, controls, strict=True))
            slope = sum((x - center) * (y - mean) for x, y in pairs) / variation
            left = sum((y - mean - slope * (x - center)) ** 2 for x, y in pairs)
            leverage = 1 + 1 / n + (difficulty - center) ** 2 / variation
            return Expected(mean + slope * (difficulty - center), math.sqrt(left / (n - 2) * leverage), n - 2)
    spread = statistics.stdev(controls) * math.sqrt((n + 1) / n) if n >= 3 else 0.0
    return Expected(mean, spread, n - 1)


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


def weaknesses(
    *, p_value: float | None, closures: Mapping[str, float | None], num_controls: int, trace: str = ""
) -> list[str]:
    """Why the evidence for one source does not support that it was unlearned; empty if it does.

    `trace` says in words where the smallest p-value is from.
    """
    found = []
    if p_value is None:
        found.append(f"no yardstick: {num_controls} held-out sources, at least 3 are needed")
    elif p_value < SIGNIFICANCE:
        words = f"{trace}; " if trace else ""
        found.append(f"its text is still easier than never-trained text ({words}p = {p_value:.3f} < {SIGNIFICANCE})")
    low = {state: value for state, value in closures.items() if value is not None and value < MIN_CLOSURE}
    if low:
        worst = ", ".join(f"{state} {value:.2f}" for state, value in low.items())
        found.append(f"closure under {MIN_CLOSURE}: {worst}")
    return found
