"""The check of growth can fail."""

from __future__ import annotations

import pytest

from tests.costs import assert_linear


def test_quadratic_work_is_caught_and_linear_work_is_not() -> None:
    assert_linear(lambda n: sum(range(2000 * n)))
    with pytest.raises(AssertionError):  # enough of it that the 20 ms do not matter on a fast machine
        assert_linear(lambda n: [sum(range(8 * n)) for _ in range(8 * n)])
