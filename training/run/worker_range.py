"""The number of workers of a run: fixed, or a range that Ray fills as far as the cluster allows.

Results do not depend on it, up to rounding: a step is the same rows, shared among the workers that there are
(`training.data.packing`), and any number of ranks can read a checkpoint (`training.checkpoint.dcp`). With a range, a
run that loses a node goes on with fewer workers, from its last whole checkpoint, instead of waiting for another node.

It also grows again: every `RESIZE_INTERVAL_S` Ray checks whether more workers could run. Growing costs a restart
(15 s) and the steps since the last checkpoint.

Run: ``Workers.parse("1-4")``. Cost: nothing.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from registry.errors import UsageError

RESIZE_INTERVAL_S = 300.0
"""Seconds between checks for room to grow; Ray's default of 60 s would throw away too many steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """From `least` to `most` workers; both are equal where the number is fixed.

    Raises:
        UsageError: `least` is less than one, or more than `most`.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            got = self.least if self.least == self.most else f"{self.least}-{self.most}"
            raise UsageError(f"num_workers={got}: expected at least 1, or a range such as 1-4 (--workers)")

    @classmethod
    def parse(cls, value: str | int) -> Workers:
        """Parse `2`, or `1-4` for a range.

        Raises:
            UsageError: it is neither, or the range is invalid.
        """
        found = re.fullmatch(r"(-?\d+)(?:-(\d+))?", str(value).strip())
        if not found:
            raise UsageError(f"--workers {value}: expected a number, or a range such as 1-4")
        return cls(least=int(found[1]), most=int(found[2] or found[1]))

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"

    def scaling(self, *, use_gpu: bool) -> Any:
        """Return Ray Train's `ScalingConfig` for it."""
        from ray.train import ScalingConfig

        if self.least == self.most:
            return ScalingConfig(num_workers=self.most, use_gpu=use_gpu)
        return ScalingConfig(
            num_workers=(self.least, self.most), use_gpu=use_gpu, elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S
        )
