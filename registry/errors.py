"""Every error this project raises on purpose, split by what its caller should do: abort, skip the record, or retry.

    NullsError                     base; carries the exit code of the command line
    |- UsageError            (2)   the call or its input is wrong: fix it and call again
    |  |- InputError         (2)   an input cannot be used at all (no dump in a directory, not XML, not UTF-8)
    |  `- ModelExistsError   (2)   a name that was to be new is taken
    |- NotFoundError         (1)   there is no such source, snapshot, document or model
    |- DamagedError          (3)   stored data differs from what was written: a hash, a count, a schema
    |- RefusedError          (4)   never allowed: a revoked mask, a held-out source, a changed snapshot
    |- ServiceError          (2)   a server or store cannot be reached or written: retry when it is back
    `- RecordError           (-)   one record of an input is bad: skip it, record `reason` and its position, go on

A message says: got, expected, what to do. Passwords and tokens that it quotes are masked (`registry.messages.masking`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from registry.messages.masking import masked


class NullsError(Exception):
    """Base of every deliberate error; `exit_code` is what the command line returns for it."""

    exit_code = 2
    facts: Mapping[str, Any] = MappingProxyType({})
    """More fields for the JSON document of `--json`, e.g. a row for each line of a request that is wrong."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(masked(value) if isinstance(value, str) else value for value in args))


class UsageError(NullsError):
    """The call is wrong: an option, a name, a combination."""


class InputError(UsageError):
    """An input cannot be used at all."""


class ModelExistsError(UsageError):
    """A model name that was to be new is already registered."""


class NotFoundError(NullsError):
    """The source, snapshot, document or model asked for does not exist."""

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
        reason: a short machine-readable reason, e.g. ``truncated``; reasons are counted, so use few distinct ones.
        detail: a message for people.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
