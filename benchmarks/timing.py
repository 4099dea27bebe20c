"""Timing of variants that take turns, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(
    variants: dict[str, Callable[[], object]], turns: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Return the seconds of each variant in each turn, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(turns + 1):
        for name, run in variants.items():
            began = clock()
            run()
            if turn:
                seconds[name].append(clock() - began)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median over the turns of one variant's seconds divided by another's."""
    return round(statistics.median(a / b for a, b in zip(above, below, strict=True)), 3)


def milliseconds(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each variant in milliseconds."""
    return {f"{name}_ms": round(1e3 * statistics.median(values), 1) for name, values in seconds.items()}
