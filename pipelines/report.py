"""The report of an ingest: counts, failures, and sources that lost most of their text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from registry.messages.shown import listed

MAX_NAMED = 1000  # failures and wipeouts that are named one by one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A document that could not be read, and where it is.

    Attributes:
        input_file: the input's name.
        input_offset: bytes from the start of its decompressed content.
        reason: "truncated-stream", "not-a-dump", ...
        detail: explains `reason` to a person; "" if the failure is of an earlier ingest.
    """

    input_file: str
    input_offset: int
    reason: str
    detail: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wipeout:
    """A source that lost most of its text to near copies at other sources.

    Attributes:
        key: of the source.
        lost_bytes: bytes of its text that are displaced.
        num_bytes: bytes of all its text.
        survivors: keys of the sources under which the near copies are trained, ten at most.
    """

    key: str
    lost_bytes: int
    num_bytes: int
    survivors: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestReport:
    """The counts of a snapshot: read = kept + filtered + duplicate + superseded + failed.

    Attributes:
        snapshot: its id; None after a dry run, whose counts are zero.
        filtered, failed: by reason.
        sources: by kind, without shared ones.
        seconds: time that this call took.
        failures: `MAX_NAMED` at most, in the order of files and offsets.
        left_out: files of the given directories whose names match no pattern.
        inputs: names of the files read.
        num_input_bytes: the sum of their sizes.
        script: after a dry run, the script that would be submitted to Slurm.
        is_new: False if the registry held all of it already.
    """

    snapshot: str | None
    read: int = 0
    kept: int = 0
    filtered: Mapping[str, int] = dataclasses.field(default_factory=dict)
    duplicate: int = 0
    superseded: int = 0
    failed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sources: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shared_sources: int = 0
    seconds: float = 0.0
    failures: tuple[Failure, ...] = ()
    wipeouts: tuple[Wipeout, ...] = ()
    left_out: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    num_input_bytes: int = 0
    script: str = ""
    is_new: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        found = dataclasses.asdict(self)
        found["seconds"] = round(self.seconds, 3)
        return found

    def lines(self) -> list[str]:
        """Return the lines that a person reads."""
        megabytes = self.num_input_bytes / 1e6
        if self.snapshot is None:
            found = [
                f"would read {len(self.inputs)} files, {megabytes:.1f} MB:",
                *(f"  {name}" for name in self.inputs),
                *(["would submit:", *self.script.splitlines()] if self.script else []),
            ]
        else:
            found = [
                f"snapshot {self.snapshot}" + ("" if self.is_new else " (held all of this already)"),
                f"read {self.read} documents of {len(self.inputs)} files, {megabytes:.1f} MB, in {self.seconds:.1f} s",
                f"  kept {self.kept}, filtered {_sum(self.filtered)}, duplicate {self.duplicate}, "
                f"superseded {self.superseded}, failed {_sum(self.failed)}",
                f"  sources: {_list(self.sources)}; shared by several: {self.shared_sources}",
            ]
        for failure in self.failures[:20]:
            detail = f" ({failure.detail})" if failure.detail else ""
            found.append(f"  failed: {failure.input_file} at byte {failure.input_offset}: {failure.reason}{detail}")
        for wipeout in self.wipeouts[:20]:
            share = wipeout.lost_bytes / wipeout.num_bytes
            found.append(f"  {wipeout.key} lost {share:.0%} of its text to near copies at {listed(wipeout.survivors)}")
        hidden = max(0, len(self.failures) - 20) + max(0, len(self.wipeouts) - 20)
        found += [f"  ... and {hidden} more such lines; --json has them"] if hidden else []
        return found + [f"  left out, not named like a dump: {path}" for path in self.left_out]


def _sum(reasons: Mapping[str, int]) -> str:
    total = sum(reasons.values())
    return f"{total} ({_list(reasons)})" if total else "0"


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
