"""Find the sources that the lines of a request name, and every line that is wrong, before anything is written.

Cost: 10,000 lines in 3 s, most of it for the suggestions of the first 100 that name nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from orchestration.unlearning.plan import refusals
from orchestration.unlearning.request.lines import Line
from orchestration.unlearning.request.wrong import Kind, Wrong
from registry.ids import SourceId
from registry.lookup import MAX_SUGGESTED, Source, Unresolved, resolve_all
from registry.snapshot import Snapshot

_AT_ONCE = 10_000  # lines between two reports of progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The sources of a request's lines.

    Attributes:
        targets: source id -> source, in the order of the lines; the same source twice is one.
        named: each line that names one source, with that source.
        wrong: the other lines.
    """

    targets: Mapping[SourceId, Source]
    named: Sequence[tuple[Line, Source]]
    wrong: Sequence[Wrong]

    @property
    def asked(self) -> list[str]:
        """All that was asked for: keys, and the queries that name none."""
        return sorted({source.key for source in self.targets.values()} | {row.query for row in self.wrong})

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the targets, as the ledger has them."""
        return [
            {
                "line": line.number,
                "query": line.query,
                "key": source.key,
                "reason": line.reason,
                "reference": line.reference,
            }
            for line, source in self.named
        ]

    def without(self, refused: Mapping[SourceId, Wrong]) -> Found:
        """Return it with these sources moved to what is wrong, by each line that names one."""
        rows = [
            dataclasses.replace(refused[source.source_id], line=line.number, query=line.query)
            for line, source in self.named
            if source.source_id in refused
        ]
        return Found(
            targets={number: source for number, source in self.targets.items() if number not in refused},
            named=[(line, source) for line, source in self.named if source.source_id not in refused],
            wrong=sorted([*self.wrong, *rows], key=lambda row: row.line or 0),
        )

    def right(self, snapshot: Snapshot, *, heldout: Collection[int], revoked: Mapping[SourceId, str]) -> Found:
        """Return it with the sources that cannot be unlearned moved to what is wrong."""
        targets = list(self.targets.values())
        return self.without(refusals(snapshot, targets, heldout=heldout, revoked=revoked))


def find(snapshot: Snapshot, lines: Sequence[Line], progress: Callable[[str, float | None], None]) -> Found:
    """Find the sources that these lines name."""
    usable = [line for line in lines if line.fault is None]
    wrong = [
        Wrong(query=line.query, kind=Kind.BAD_LINE, message=line.fault, line=line.number)
        for line in lines
        if line.fault is not None
    ]
    named: list[tuple[Line, Source]] = []
    num_suggested = 0
    for first in range(0, len(usable), _AT_ONCE):
        if len(usable) > 1:
            progress(f"looking up {len(usable):,} sources", first / len(usable))
        portion = usable[first : first + _AT_ONCE]
        answers = resolve_all(snapshot, [line.query for line in portion], max_suggested=MAX_SUGGESTED - num_suggested)
        for line, answer in zip(portion, answers, strict=True):
            if isinstance(answer, Unresolved):
                wrong.append(_unresolved(line, answer))
                num_suggested = min(MAX_SUGGESTED, num_suggested + bool(answer.suggestions))
            else:
                named.append((line, answer))
    targets = {source.source_id: source for _, source in named}
    return Found(targets=targets, named=named, wrong=sorted(wrong, key=lambda row: row.line or 0))


def _unresolved(line: Line, answer: Unresolved) -> Wrong:
    return Wrong(
        query=line.query,
        kind=Kind(answer.problem.value),
        message=answer.message,
        line=line.number,
        suggestions=answer.suggestions,
    )
