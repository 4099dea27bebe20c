"""Every error this project raises on purpose, split by what whoever catches it should do.

    NullsError                     base; carries the exit code of the command line
    |- UsageError            (2)   the call or its input is wrong: fix it and call again
    |  |- InputError         (2)   an input cannot be used at all (no dump in a directory, not XML, not UTF-8)
    |  `- ModelExistsError   (2)   a name that was to be new is taken
    |- NotFoundError         (1)   the answer is no: no such source, snapshot, document, model
    |- WeakEvidenceError     (1)   it was done, but the measurements do not support it
    |- DamagedError          (3)   stored data is not what was written: a hash, a count, a schema differs
    |- RefusedError          (4)   allowed by nobody: a revoked mask, a held-out source, a changed snapshot
    |- ServiceError          (2)   a server or store cannot be reached or written: retry when it is back
    `- RecordError           (-)   one record of an input is bad: skip it, record `reason` and the place, go on

A message says what was got, what was expected and what to do about it.
"""

from __future__ import annotations


class NullsError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line returns for it."""

    exit_code = 2


class UsageError(NullsError):
    """The call is wrong: an option, a name, a combination."""


class InputError(UsageError):
    """An input cannot be used at all."""


class ModelExistsError(UsageError):
    """A model name that was to be new is already registered."""


class NotFoundError(NullsError):
    """What was asked for is not there."""

    exit_code = 1


class WeakEvidenceError(NullsError):
    """The act was done, but its measurements do not support that it worked."""

    exit_code = 1


class DamagedError(NullsError):
    """Stored data differs from what was written."""

    exit_code = 3


class RefusedError(NullsError):
    """The request is understood and will not be carried out."""

    exit_code = 4


class ServiceError(NullsError):
    """A server or a store cannot be reached, read or written."""


class RecordError(NullsError):
    """One record of an input is bad; the reader goes on with the next.

    Args:
        reason: a short machine-readable reason, e.g. ``truncated``: it is counted, so few distinct values.
        detail: words for a person.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
