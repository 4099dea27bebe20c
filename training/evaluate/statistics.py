"""The statistics of an unlearn's evidence, as pure functions.

An unlearned source is one case, and the held-out sources are a small sample of never-trained ones. The question is
whether the case's loss is lower than theirs. Crawford and Howell's modified t-test compares a single case with a small
control sample (The Clinical Neuropsychologist 12, 1998): with n controls, t = (x - mean) / (sd * sqrt((n + 1) / n)) on
n - 1 degrees of freedom. It holds its error rate from n = 5 upwards, and assumes that losses of sources are about
normal.

Some texts are harder than others (`training.evaluate.difficulty`). Where that is known, the case is compared with the
prediction of the controls' regression on difficulty, on n - 2 degrees of freedom (Crawford and Garthwaite,
Neuropsychology 20, 2006). So an easy text is not taken for a remembered one, nor a hard, remembered text for one that
was never seen.

Run: ``expected(heldout_losses, difficulties, difficulty).p_value(loss)``. Cost: microseconds, and the import of scipy.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

SIGNIFICANCE = 0.05
MIN_CLOSURE = 0.7  # below this, a tenth or more of what was memorised, by the held-out baseline, can still be read
MIN_GAP_NATS = 0.3  # below this, the source was not memorised, and closure divides by noise
MIN_FOR_SLOPE = 6  # controls; with fewer, estimating a slope adds more error than it removes
_MIN_VARIATION = 1e-9  # sum of squares of difficulties, in nats; below this it is only rounding
ABLATIONS = ("closest", "placebo", "backbone")
"""The states in which a source's own sinks are off; `training.evaluate.ablation` defines them."""
INTERVAL_LEVEL = 1 - 2 * SIGNIFICANCE / len(ABLATIONS)
"""The level of `Expected.interval`: the share of never-trained texts that are in it, 0.967."""


@dataclasses.dataclass(frozen=True)
class Expected:
    """The distribution of a case that comes from the controls' population."""

    mean: float
    spread: float
    """Standard error of one such case about `mean`; zero if the controls are all equal."""
    degrees: int
    """Degrees of freedom of `spread`."""

    def p_value(self, case: float) -> float | None:
        """Return the one-sided p-value that `case` is from that population, against lower; None without a spread."""
        if self.degrees < 1 or self.spread == 0:
            return None
        from scipy import stats

        return float(stats.t.cdf((case - self.mean) / self.spread, self.degrees))

    def interval(self) -> tuple[float, float] | None:
        """Return the prediction interval at `INTERVAL_LEVEL`; None without a spread.

        A case below it is what makes evidence weak: its p-value, times the number of ablations, is under SIGNIFICANCE.
        """
        if self.degrees < 1 or self.spread == 0:
            return None
        from scipy import stats

        reach = float(stats.t.ppf(1 - SIGNIFICANCE / len(ABLATIONS), self.degrees)) * self.spread
        return self.mean - reach, self.mean + reach

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the fields and the interval, for JSON."""
        low, high = self.interval() or (None, None)
        return {**dataclasses.asdict(self), "low": low, "high": high}


def expected(
    controls: Sequence[float], difficulties: Sequence[float] | None = None, difficulty: float | None = None
) -> Expected | None:
    """Return the expected loss of a case that comes from the controls' population.

    Args:
        controls: the controls' losses.
        difficulties: the controls' difficulties; without them, with fewer than `MIN_FOR_SLOPE` controls, or if all are
            equally hard, the controls' mean is expected.
        difficulty: the case's.

    Returns:
        None without controls; with fewer than three, its p-value is None.
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
    """Return the p-value of the smallest of several tests, by Bonferroni's correction; None if none is known."""
    known = [p for p in p_values if p is not None]
    return min(1.0, len(known) * min(known)) if known else None


def closure(*, on: float, off: float, never: float) -> float | None:
    """Return (off - on) / (never - on), three losses in nats a token: 1 is a perfect unlearn.

    Returns:
        None where `never - on` is below MIN_GAP_NATS: the source was not memorised, so there is nothing to close.
    """
    return (off - on) / (never - on) if never - on >= MIN_GAP_NATS else None


def weaknesses(
    *, p_value: float | None, closures: Mapping[str, float | None], num_controls: int, trace: str = ""
) -> list[str]:
    """Return the reasons why the measurements do not support that a source was unlearned; empty if they do.

    Args:
        p_value: see `combined_p`.
        closures: ablation -> closure.
        num_controls: the number of held-out sources.
        trace: describes the ablation with the smallest p-value.
    """
    found = []
    if p_value is None:
        found.append(f"no held-out baseline: {num_controls} held-out sources, at least 3 are needed")
    elif p_value < SIGNIFICANCE:
        where = f"{trace}; " if trace else ""
        found.append(f"its text is still easier than never-trained text ({where}p = {p_value:.3f} < {SIGNIFICANCE})")
    low = {state: value for state, value in closures.items() if value is not None and value < MIN_CLOSURE}
    if low:
        worst = ", ".join(f"{state} {value:.2f}" for state, value in low.items())
        found.append(f"closure under {MIN_CLOSURE}: {worst}")
    return found
