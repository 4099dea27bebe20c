"""Tables of losses for a terminal."""

from __future__ import annotations

import pytest

from orchestration.unlearning.loss_table import loss_table, p_text
from tests.orchestration.unlearning.report.measured import heldout, source


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (1.0, "1"),
        (0.43, "0.43"),
        (0.0384, "0.038"),
        (0.0004, "0.0004"),
        (0.00012, "0.00012"),
        (4e-7, "<0.0001"),
        (0.0, "<0.0001"),
    ],
)
def test_small_p_values_are_not_shown_as_zero(value: float | None, text: str) -> None:
    assert p_text(value) == text


def test_all_three_closures_are_printed() -> None:
    row = source("A", backbone=4.2)
    lines = [line.split() for line in loss_table([row], heldout())]
    closures = next(line for line in lines if line[0] == "closure")
    assert closures[2:5] == [f"{row['closure'][state]:.2f}" for state in ("closest", "placebo", "backbone")]
    assert lines[1][-1] == p_text(row["p_value"])
