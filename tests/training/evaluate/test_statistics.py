"""The statistics of evidence, against scipy and simulation."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import pytest
from scipy import stats

from training.evaluate.statistics import (
    ABLATIONS,
    INTERVAL_LEVEL,
    SIGNIFICANCE,
    closure,
    combined_p,
    expected,
    weaknesses,
)

CONTROLS = [5.1, 5.4, 4.9, 5.0, 5.6, 5.2, 5.3, 5.05]


def p_of(
    case: float,
    controls: Sequence[float],
    difficulties: Sequence[float] | None = None,
    difficulty: float | None = None,
) -> float | None:
    found = expected(controls, difficulties, difficulty)
    return found.p_value(case) if found else None


def test_without_difficulties_it_is_scipys_two_sample_test_with_one_case() -> None:
    wanted = stats.ttest_ind([4.6], CONTROLS, equal_var=True, alternative="less").pvalue
    assert p_of(4.6, CONTROLS) == pytest.approx(wanted)
    assert p_of(statistics.fmean(CONTROLS), CONTROLS) == pytest.approx(0.5)


def test_with_difficulties_it_is_the_prediction_of_a_regression() -> None:
    difficulties = [4.0, 4.4, 3.9, 4.1, 4.8, 4.2, 4.1, 4.05]
    found = expected(CONTROLS, difficulties, 4.6)
    assert found is not None
    line = stats.linregress(difficulties, CONTROLS)
    assert found.mean == pytest.approx(line.intercept + 4.6 * line.slope)
    assert found.degrees == 6
    # At the mean difficulty, the error is that of the line, and of one case about it.
    at_mean = expected(CONTROLS, difficulties, statistics.fmean(difficulties))
    assert at_mean is not None
    errors = [y - line.intercept - line.slope * x for x, y in zip(difficulties, CONTROLS, strict=True)]
    assert at_mean.spread == pytest.approx(math.sqrt(sum(e * e for e in errors) / 6 * (1 + 1 / 8)))
    assert found.spread > at_mean.spread, "the error grows with the distance from the controls"


def test_the_interval_is_scipys_and_ends_where_the_test_rejects() -> None:
    found = expected(CONTROLS)
    assert found is not None
    interval = found.interval()
    assert interval == pytest.approx(stats.t.interval(INTERVAL_LEVEL, found.degrees, found.mean, found.spread))
    assert found.p_value(interval[0] if interval else 0) == pytest.approx(SIGNIFICANCE / len(ABLATIONS))
    assert found.to_dict() | {"low": None, "high": None} == {
        "mean": found.mean,
        "spread": found.spread,
        "degrees": 7,
        "low": None,
        "high": None,
    }
    assert (found.to_dict()["low"], found.to_dict()["high"]) == interval


@pytest.mark.parametrize("controls", [[5.0], [5.0, 5.1], [5.0, 5.0, 5.0]])
def test_without_a_spread_there_is_no_interval(controls: list[float]) -> None:
    found = expected(controls)
    assert found is not None
    assert found.interval() is None
    assert found.to_dict()["low"] is None


@pytest.mark.parametrize("slope", [0.0, 0.8])
def test_it_holds_its_error_rate(slope: float) -> None:
    rng = random.Random(0)
    trials, rejected = 4000, 0
    for _ in range(trials):
        hard = [rng.gauss(4, 0.5) for _ in range(9)]
        losses = [5 + slope * x + rng.gauss(0, 0.2) for x in hard]
        p_value = p_of(losses[8], losses[:8], hard[:8], hard[8])
        rejected += p_value is not None and p_value < 0.05
    assert abs(rejected / trials - 0.05) < 4 * math.sqrt(0.05 * 0.95 / trials)


def test_difficulty_separates_easy_texts_from_remembered_ones() -> None:
    rng = random.Random(1)
    flagged = {"easy, never seen": [0, 0], "hard, half a nat remembered": [0, 0]}
    trials = 1000
    for _ in range(trials):
        hard = [rng.gauss(4, 0.5) for _ in range(12)]
        losses = [5 + 0.9 * x + rng.gauss(0, 0.15) for x in hard]
        cases = {
            "easy, never seen": (3.2, 5 + 0.9 * 3.2 + rng.gauss(0, 0.15)),
            "hard, half a nat remembered": (4.5, 5 + 0.9 * 4.5 + rng.gauss(0, 0.15) - 0.5),
        }
        for name, (difficulty, loss) in cases.items():
            for index, known in enumerate((None, hard)):
                p_value = p_of(loss, losses, known, difficulty)
                flagged[name][index] += p_value is not None and p_value < 0.05
    assert flagged["easy, never seen"][0] > 0.3 * trials
    assert flagged["easy, never seen"][1] < 0.08 * trials
    assert flagged["hard, half a nat remembered"][0] < 0.1 * trials
    assert flagged["hard, half a nat remembered"][1] > 0.7 * trials


def test_few_controls_or_equal_difficulties_leave_the_mean() -> None:
    assert expected(CONTROLS[:5], [1.0, 2.0, 3.0, 4.0, 5.0], 2.0) == expected(CONTROLS[:5])
    assert expected(CONTROLS, [4.0] * 8, 9.0) == expected(CONTROLS)
    assert expected([]) is None


def test_too_few_controls_give_no_p_value() -> None:
    assert p_of(1.0, [1.0, 2.0]) is None
    assert p_of(1.0, [2.0, 2.0, 2.0]) is None
    assert combined_p([None, None]) is None
    assert combined_p([0.02, None, 0.5]) == pytest.approx(0.04)
    assert combined_p([0.9, 0.9, 0.9]) == 1.0


def test_closure() -> None:
    assert closure(on=2.0, off=5.0, never=6.0) == pytest.approx(0.75)
    assert closure(on=2.0, off=6.0, never=6.0) == 1.0
    assert closure(on=5.9, off=6.0, never=6.0) is None, "what was not memorised cannot be unlearned"


def test_weak_evidence_says_why() -> None:
    good = {"closest": 0.9, "placebo": 1.0, "backbone": None}
    assert weaknesses(p_value=0.4, closures=good, num_controls=8) == []
    assert "easier" in weaknesses(p_value=0.01, closures=good, num_controls=8)[0]
    message = weaknesses(p_value=0.01, closures=good, num_controls=8, trace="backbone: 4.48")[0]
    assert "(backbone: 4.48; p = 0.010 < 0.05)" in message
    assert "no held-out baseline" in weaknesses(p_value=None, closures=good, num_controls=2)[0]
    assert "backbone 0.20" in weaknesses(p_value=0.4, closures=good | {"backbone": 0.2}, num_controls=8)[0]
