"""The states of a request and which may follow which, as one table.

    requested -> planned -> applied -> verified
        |           |          `-> applied      (measured, and the evidence is weak)
        |           `-> planned                 (planned again, after an interruption)
        `-----------`-> failed, refused         (nothing was changed)

`refused` and `failed` say that nothing was changed, so neither can follow `applied`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from registry.errors import RefusedError


class State(enum.StrEnum):
    """The state of a request."""

    REQUESTED = "requested"  # recorded, nothing done
    PLANNED = "planned"  # its effects are known and recorded
    APPLIED = "applied"  # the new model version exists; the evidence is missing or weak
    VERIFIED = "verified"  # the evidence supports that it worked
    FAILED = "failed"  # ended with an error; nothing was changed
    REFUSED = "refused"  # not carried out, for a stated reason

    @property
    def is_terminal(self) -> bool:
        """Whether no other state can follow."""
        return not NEXT[self]


NEXT: Mapping[State | None, frozenset[State]] = {
    None: frozenset({State.REQUESTED}),
    State.REQUESTED: frozenset({State.PLANNED, State.FAILED, State.REFUSED}),
    State.PLANNED: frozenset({State.PLANNED, State.APPLIED, State.FAILED, State.REFUSED}),
    State.APPLIED: frozenset({State.APPLIED, State.VERIFIED}),
    State.VERIFIED: frozenset(),
    State.FAILED: frozenset(),
    State.REFUSED: frozenset(),
}
"""State -> the states that may follow it; None is a request that does not exist yet."""


class TransitionError(RefusedError):
    """An event does not follow from the state of its request."""


def check_transition(request_id: str, before: State | None, after: State) -> None:
    """Raise an error unless `after` may follow `before`.

    Raises:
        TransitionError: it may not.
    """
    if after not in NEXT[before]:
        raise TransitionError(f"request {request_id} is {before or 'not open'}: {after.value!r} cannot follow")
