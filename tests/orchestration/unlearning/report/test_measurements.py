"""Each ablation is compared with its own expectation, in numbers and in the plot."""

from __future__ import annotations

import re

import pytest

from orchestration.unlearning.report.measurements import domain, lanes, smallest_trace
from orchestration.unlearning.report.strip_plot import WIDTH, axis, strip
from tests.orchestration.unlearning.report.measured import ON, heldout, source
from training.evaluate.statistics import ABLATIONS, SIGNIFICANCE


def test_each_state_has_its_own_interval() -> None:
    on, *off = lanes(source("A"), heldout())
    assert (on.state, on.low, on.reading) == ("on", None, "")
    assert [lane.state for lane in off] == list(ABLATIONS)
    assert len({(lane.low, lane.high) for lane in off}) == 3
    for lane in off:
        assert lane.low is not None
        assert lane.high is not None
        assert lane.never == pytest.approx((lane.low + lane.high) / 2)
        assert lane.loss == lane.never
        assert lane.reading == "as expected"


def test_a_loss_that_is_usual_in_one_state_is_low_in_another() -> None:
    """The fault of one band for all: the backbone's losses lie outside the placebo's band, and are as expected."""
    usual = lanes(source("A"), heldout())[3].loss
    shown = {lane.state: lane.reading for lane in lanes(source("A", placebo=usual, backbone=usual), heldout())}
    assert shown["backbone"] == "as expected"
    assert shown["placebo"] == "lower than expected"


@pytest.mark.parametrize("shift", [-0.6, -0.3, -0.2, -0.1, 0.0, 0.4])
def test_left_of_the_band_is_what_the_test_rejects(shift: float) -> None:
    row = source("A", backbone=lanes(source("A"), heldout())[3].loss + shift)
    lane = lanes(row, heldout())[3]
    assert lane.p_value is not None
    assert (lane.reading == "lower than expected") == (lane.p_value * len(ABLATIONS) < SIGNIFICANCE)


def test_closure_has_the_interval_of_its_expectation() -> None:
    for lane in lanes(source("A", closest=4.5), heldout())[1:]:
        assert lane.closure is not None
        assert lane.low is not None
        assert lane.closure_low is not None
        assert lane.closure_high is not None
        assert lane.closure_low < lane.closure < lane.closure_high
        assert lane.closure_high == pytest.approx((lane.loss - ON) / (lane.low - ON))


def test_evidence_of_before_expectations_were_recorded_gives_the_same() -> None:
    row = source("A", placebo=4.4)
    assert lanes({name: value for name, value in row.items() if name != "expected"}, heldout()) == lanes(row, heldout())


def test_without_held_out_sources_there_is_no_interval_and_no_reading() -> None:
    nothing = dict.fromkeys(ABLATIONS)
    bare = source("A") | {"never": {}, "expected": {}, "p_values": nothing, "closure": nothing, "p_value": None}
    group = lanes(bare, {"num_sources": 0})
    assert {lane.reading for lane in group} == {""}
    assert smallest_trace(group) is None
    assert "band" not in strip(group[1], domain([group]))


def test_the_smallest_trace_is_that_of_the_most_sensitive_state() -> None:
    group = lanes(source("A"), heldout())
    trace = smallest_trace(group)
    assert trace is not None
    narrowest = min(group[1:], key=lambda lane: (lane.high or 0) - (lane.low or 0))
    assert narrowest.never is not None
    assert narrowest.low is not None
    assert trace == (
        pytest.approx(narrowest.never - narrowest.low),
        pytest.approx((narrowest.never - narrowest.low) / (narrowest.never - ON)),
    )


def test_dots_and_bands_are_drawn_at_their_losses() -> None:
    group = lanes(source("A", backbone=4.0), heldout())
    low, high = domain([group])
    for lane in group[1:]:
        assert lane.low is not None
        svg = strip(lane, (low, high))
        x = float(re.findall(r'circle cx="([\d.]+)"', svg)[0])
        left, width = map(float, re.findall(r'class="band" x="([\d.]+)" y="5" width="([\d.]+)"', svg)[0])
        assert low + x / WIDTH * (high - low) == pytest.approx(lane.loss, abs=0.01)
        assert low + left / WIDTH * (high - low) == pytest.approx(lane.low, abs=0.01)
        assert low + (left + width) / WIDTH * (high - low) == pytest.approx(lane.high, abs=0.01)
        assert (x < left) == (lane.state == "backbone")


@pytest.mark.parametrize("limits", [(3.3, 5.6), (0.0, 1.0), (2.50001, 2.50002), (1.0, 900.0)])
def test_the_axis_has_a_few_round_losses(limits: tuple[float, float]) -> None:
    marks = re.findall(r'x="([\d.]+)" y="10"[^>]*>([\d.]+)<', axis(limits))
    assert 3 <= len(marks) <= 8
    assert all(limits[0] <= float(label) <= limits[1] for _, label in marks)


def test_all_losses_equal_still_give_an_axis() -> None:
    nothing = dict.fromkeys(ABLATIONS)
    same = dict.fromkeys(ABLATIONS, ON)
    row = source("A", **same) | {"never": {}, "expected": {}, "p_values": nothing, "closure": nothing}
    limits = domain([lanes(row, {"num_sources": 0})])
    assert limits == (ON - 0.5, ON + 0.5)
    assert domain([]) == (0.0, 1.0)
