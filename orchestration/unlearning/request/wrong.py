"""Everything that is wrong with a request, said at once: a row for each line that cannot be carried out.

The error of a request with several such lines is that of the first kind in this order: a line that cannot be read
(exit 2), a query that names no source (1), an ambiguous one (2), a source that cannot be unlearned (4).
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from registry.errors import InputError, NotFoundError, NullsError, RefusedError, UsageError
from registry.lookup import Problem
from registry.messages.shown import listed

_NUM_NAMED = 3  # in the message of an error; its `facts` have all of them


class Kind(enum.StrEnum):
    """What is wrong with a line, in the order of the error that is raised."""

    BAD_LINE = "bad-line"  # the line of a file cannot be used
    NOT_FOUND = Problem.NOT_FOUND.value
    ONLY_ITS_SITE = Problem.ONLY_ITS_SITE.value
    AMBIGUOUS = Problem.AMBIGUOUS.value
    GONE = "gone"  # unlearned already
    HELD_OUT = "held-out"  # kept out of training
    NEVER_TRAINED = "never-trained"  # nothing of it was kept for training
    IN_FORCE = "in-force"  # for a reinstate: it is not revoked
    ERASED = "erased"  # for a reinstate: its sinks are zero
    OWNERS_REVOKED = "owners-revoked"  # for a reinstate: those that published the text are revoked
    SAME_SINKS = "same-sinks"  # for a reinstate, in an imported model: a source with the same sinks is revoked


_ERRORS: Mapping[Kind, type[NullsError]] = {
    Kind.BAD_LINE: InputError,
    Kind.NOT_FOUND: NotFoundError,
    Kind.ONLY_ITS_SITE: NotFoundError,
    Kind.AMBIGUOUS: UsageError,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wrong:
    """A line that cannot be carried out.

    Attributes:
        query: as it was asked.
        kind: what is wrong.
        message: the same as a sentence.
        line: its number in the file; None for an argument.
        key: of the source, if the query names one.
        suggestions: titles or keys to try instead.
    """

    query: str
    kind: Kind
    message: str
    line: int | None = None
    key: str | None = None
    suggestions: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "line": self.line,
            "query": self.query,
            "kind": self.kind.value,
            "message": self.message,
            "key": self.key,
            "suggestions": list(self.suggestions),
        }


def error_of(wrong: Sequence[Wrong], num_asked: int, *, undone: str = "nothing was changed") -> NullsError:
    """Return the error of a request with these lines; its `facts` have all of them.

    Args:
        wrong: at least one.
        num_asked: lines of the request.
        undone: what did not happen.
    """
    order = list(Kind)
    first = min((row.kind for row in wrong), key=order.index)
    named = [_sentence(row) for row in wrong[:_NUM_NAMED]]
    message = "; ".join(named)
    if num_asked > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(row.kind.value for row in wrong).items())
        others = f"; and {len(wrong) - len(named):,} more" if len(wrong) > len(named) else ""
        message = f"{undone}: {len(wrong):,} of {num_asked:,} cannot be carried out ({counts}): {message}{others}"
    error = _ERRORS.get(first, RefusedError)(message)
    error.facts = {"wrong": [row.to_dict() for row in wrong]}
    return error


def at_lines(error: RefusedError, lines: Sequence[Mapping[str, Any]]) -> RefusedError:
    """Return the error with the line and the query by which each source was asked for.

    Args:
        error: its rows have keys; those of an error without rows are left as they are.
        lines: `{"line", "query", "key", ...}` each, as the ledger has them.
    """
    asked: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for place, line in enumerate(lines):
        asked.setdefault(line["key"], (place, {"line": line["line"], "query": line["query"]}))
    unknown: tuple[int, Mapping[str, Any]] = (len(lines), {})
    found_at = [(*asked.get(row["key"], unknown), row) for row in error.facts.get("wrong", ())]
    rows = [row | said for _, said, row in sorted(found_at, key=lambda found: found[0])]
    found = RefusedError(str(error))
    found.facts = {"wrong": rows} if rows else {}
    return found


def rows_of(wrong: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return cells of a table of rows in their JSON form: line, query, kind, message."""
    return [
        (
            str(row["line"] or "-"),
            row["query"],
            row["kind"],
            _with_hint(row["message"], row["kind"], row["suggestions"]),
        )
        for row in wrong
    ]


HEADER = ("line", "query", "wrong", "why")


def _sentence(row: Wrong) -> str:
    sentence = _with_hint(row.message, row.kind, row.suggestions)
    return sentence if row.line is None else f"line {row.line}: {sentence}"


def _with_hint(message: str, kind: str, suggestions: Sequence[str]) -> str:
    hint = f"; did you mean: {listed(suggestions)}" if suggestions and kind == Kind.NOT_FOUND else ""
    return message + hint
