"""The part `growth` of `unlearn.py`: what one more revocation costs after many versions and many revoked sources."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from orchestration.unlearning.unlearn import unlearn
from tests.many import registered


def growth(folder: Path, num_versions: int = 1000, num_revoked: int = 10_000, turns: int = 15) -> dict[str, Any]:
    """Measure single revocations at both ends of a long history, in CPU seconds of this process.

    Returns:
        `ratio`: the median of the last `turns` over that of the first, with the number of versions and of revoked
        sources before the last ones.
    """
    settings, keys = registered(folder, num_sources=num_revoked + num_versions + 2 * turns)
    remaining = iter(keys)

    def revoke(count: int) -> float:
        began = time.process_time()
        chosen = [next(remaining) for _ in range(count)]
        unlearn(settings, "models:/m/1", chosen, reason="measured", measure=False)
        return time.process_time() - began

    revoke(1)  # imports and caches
    first = [revoke(1) for _ in range(turns)]
    bulk = revoke(num_revoked - num_versions + turns)
    for _ in range(num_versions - turns - 2):
        revoke(1)
    last = [revoke(1) for _ in range(turns)]
    return {
        "ratio": round(statistics.median(last) / statistics.median(first), 3),
        "first_cpu_s": round(statistics.median(first), 4),
        "last_cpu_s": round(statistics.median(last), 4),
        "bulk_cpu_s": round(bulk, 2),
        "num_versions": num_versions,
        "num_revoked": num_revoked,
    }
