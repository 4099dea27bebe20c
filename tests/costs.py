"""Check how a cost grows: the same work at two sizes, in CPU time of one process.

Machines differ and are busy, and what else they do only adds to a run. So the least of several runs counts, and runs
are repeated until the growth is linear, or it has not been often enough: noise passes, a quadratic cost does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SMALL, LARGE = 250, 1000
_ROUNDS = 10


def assert_linear(run: Callable[[int], object]) -> None:
    """Check that `run(n)` costs about four times as much at four times the size; quadratic work costs sixteen times.

    The 20 ms are for runs so short that fixed costs and the clock decide.
    """
    least = {SMALL: float("inf"), LARGE: float("inf")}
    for _ in range(_ROUNDS):
        for size in least:
            started = time.process_time()
            run(size)
            least[size] = min(least[size], time.process_time() - started)
        if least[LARGE] < 8 * least[SMALL] + 0.02:
            return
    raise AssertionError(f"{least[SMALL]:.3f} s at {SMALL}, {least[LARGE]:.3f} s at {LARGE}, the least of {_ROUNDS}")
