"""How many workers train: a number, or a range that Ray fills as far as the cluster allows, now and after each failure.

The batch does not depend on it: a step is the same rows, shared out anew (`training.data.packing`), and checkpoints can be
read by any number of ranks (`training.checkpoint.dcp`). So a run that loses a node goes on with fewer workers, from its
last whole checkpoint, instead of waiting for another node; the numbers are the same up to rounding.

A range also grows back: every `RESIZE_INTERVAL_S` Ray looks whether more workers could run. That costs a restart (15 s)
and the steps since the last checkpoint.

Run: ``Workers.parse("1-4")``. Cost: nothing.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from registry.errors import UsageError

RESIZE_INTERVAL_S = 300.0
"""Between looks for room to grow; Ray's own minute would throw away too many steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """From `least` to `most` workers; equal, where the number is fixed.

    Raises:
        UsageError: less than one, or less at most than at least.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            got = self.least if self.least == self.most else f"{self.least}-{self.most}"
            raise UsageError(f"num_workers={got}: expected at least 1, or a range such as 1-4 (--workers)")

    @classmethod
    def parse(cls, value: str | int) -> Workers:
        """`2`, or `1-4` for a range.

        Raises:
            UsageError: neither.
        """
        found = re.fullmatch(r"(-?\d+)(?:-(\d+))?", str(value).strip())
        if not found:
            raise UsageError(f"--workers {value}: expected a number, or a range such as 1-4")
        return cls(least=int(found[1]), most=int(found[2] or found[1]))

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"

    def scaling(self, *, use_gpu: bool) -> Any:
        """What Ray Train takes for it."""
        from ray.train import ScalingConfig

        if self.least == self.most:
            return ScalingConfig(num_workers=self.most, use_gpu=use_gpu)
        return ScalingConfig(
            num_workers=(self.least, self.most), use_gpu=use_gpu, elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S
        )
