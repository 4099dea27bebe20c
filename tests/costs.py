"""What a thing costs, held against itself at another size: machines differ, and are busy, but growth is growth."""

from __future__ import annotations

import time
from collections.abc import Callable

SMALL, LARGE = 250, 1000


def cpu_seconds(run: Callable[[], object], *, repeats: int = 3) -> float:
    """The least CPU time of a few runs: what else the machine does only adds to it."""
    costs = []
    for _ in range(repeats):
        started = time.process_time()
        run()
        costs.append(time.process_time() - started)
    return min(costs)


def assert_linear(run: Callable[[int], object]) -> None:
    """`run(n)` must cost about four times as much at four times the size; quadratic work costs sixteen times.

    The 20 ms are for runs so short that fixed costs and the clock decide.
    """
    small, large = cpu_seconds(lambda: run(SMALL)), cpu_seconds(lambda: run(LARGE))
    assert large < 8 * small + 0.02, f"{small:.3f} s at {SMALL}, {large:.3f} s at {LARGE}"
