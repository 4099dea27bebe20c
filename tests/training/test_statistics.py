"""The numbers that evidence rests on, against scipy and simulation."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from scipy import stats

from training.evaluate.statistics import closure, combined_p, single_case_p, weaknesses


def test_single_case_test_is_scipys_two_sample_test_with_one_case() -> None:
    controls = [5.1, 5.4, 4.9, 5.0, 5.6, 5.2, 5.3, 5.05]
    expected = stats.ttest_ind([4.6], controls, equal_var=True, alternative="less").pvalue
    assert single_case_p(4.6, controls) == pytest.approx(expected)
    assert single_case_p(statistics.fmean(controls), controls) == pytest.approx(0.5)


def test_single_case_test_holds_its_error_rate() -> None:
    rng = random.Random(0)
    trials = 4000
    p_values = [single_case_p(rng.gauss(5, 1), [rng.gauss(5, 1) for _ in range(8)]) for _ in range(trials)]
    rejected = sum(p is not None and p < 0.05 for p in p_values)
    assert abs(rejected / trials - 0.05) < 4 * math.sqrt(0.05 * 0.95 / trials)


def test_single_case_test_has_power_with_eight_controls() -> None:
    rng = random.Random(1)
    hits = [single_case_p(rng.gauss(1, 1), [rng.gauss(5, 1) for _ in range(8)]) for _ in range(200)]
    assert sum(p is not None and p < 0.05 for p in hits) > 180


def test_too_few_controls_say_nothing() -> None:
    assert single_case_p(1.0, [1.0, 2.0]) is None
    assert single_case_p(1.0, [2.0, 2.0, 2.0]) is None
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
    assert "yardstick" in weaknesses(p_value=None, closures=good, num_controls=2)[0]
    assert "backbone 0.20" in weaknesses(p_value=0.4, closures=good | {"backbone": 0.2}, num_controls=8)[0]
