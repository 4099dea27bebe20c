"""Take in a request: sort out what is wrong with it, and open it in the ledger.

Without `partial` a request in which a query names no source is not recorded, and one of which a source cannot be
unlearned is recorded and then refused, under the lock of the weights. With `partial` the lines that are wrong become a
request of their own, refused at once with a reason for each line, in the transaction that opens the request for the
others (`left_out` in its detail).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestration.unlearning.erasure import ERASE, Budget, done_already
from orchestration.unlearning.request.targets import Found
from orchestration.unlearning.request.wrong import error_of
from registry.catalog.ledger import Ledger, Request
from registry.errors import NullsError, UsageError
from registry.ids import SourceId
from registry.snapshot import Snapshot

if TYPE_CHECKING:
    from training.serving.flavor import ModelVersion

REVOKE, REINSTATE = "revoke", "reinstate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What a request says beside its sources; see `orchestration.unlearning.unlearn.unlearn`."""

    requested_by: str
    reason: str
    policy: str
    partial: bool
    move_aliases: bool = False
    budget: Budget | None = None
    """What an erasure may cost others; None for a revocation."""

    @property
    def action(self) -> str:
        """The action of the request in the ledger."""
        return REVOKE if self.budget is None else ERASE

    @property
    def recorded(self) -> dict[str, Any]:
        """What a request that is taken up again must know of it."""
        moving = {"move_aliases": True} if self.move_aliases else {}
        return moving | ({} if self.budget is None else {"budget": self.budget.to_dict()})


def sorted_out(
    snapshot: Snapshot, base: ModelVersion, found: Found, revoked: Mapping[SourceId, str], *, partial: bool
) -> Found:
    """Return what is right and what is wrong.

    Args:
        found: of the request's lines.
        revoked: the sources that are unlearned already.
        partial: whether it is enough that one line is right.

    Raises:
        NullsError: a line is wrong; if `partial`, all are. See `orchestration.unlearning.request.wrong`.
    """
    num_asked = len(found.named) + len(found.wrong)
    found = found.right(snapshot, heldout=base.heldout, revoked=revoked)
    if found.wrong and not (partial and found.targets):
        raise _error(found, num_asked)
    return found


def open_request(ledger: Ledger, snapshot: Snapshot, base: ModelVersion, found: Found, order: Order) -> str:
    """Open the request for what is right, unless an identical one is open, and return its id.

    Raises:
        NullsError: see `sorted_out`. If `partial`, the ledger has the reasons as a refused request.
    """
    from training.serving import in_force

    fields: dict[str, Any] = {
        "requested_by": order.requested_by,
        "reason": order.reason,
        "action": order.action,
        "policy": order.policy,
        "model_name": base.name,
        "model_before": base.uri,
    }
    if not found.wrong and not order.partial:
        # Whether its sources can be unlearned is decided under the lock of the weights; a refusal is on record.
        keys = [source.key for source in found.targets.values()]
        return ledger.open_request(**fields, sources=keys, detail={"lines": found.lines(), **order.recorded})
    asked, num_asked = found.asked, len(found.named) + len(found.wrong)
    with ledger.catalog.read() as connection:
        revoked = in_force.within(connection, base).revoked
    done = done_already(base, revoked, erase=order.budget is not None)
    found = found.right(snapshot, heldout=base.heldout, revoked=done)
    if not order.partial:
        raise _error(found, num_asked)
    keys = [source.key for source in found.targets.values()]
    detail: dict[str, Any] = {"lines": found.lines(), **order.recorded}
    known = {"action": order.action, "policy": order.policy, "model_before": base.uri}
    with ledger.catalog.exclusive("ledger") as transaction:
        open_already = ledger.open_like(**known, asked=asked, within=transaction)
        if open_already is not None:
            return open_already
        if found.wrong:
            refused = sorted({row.key or row.query for row in found.wrong})
            rows = {"wrong": [row.to_dict() for row in found.wrong]}
            detail["left_out"] = ledger.refuse(**fields, sources=refused, detail=rows, within=transaction)
        if keys:
            return ledger.open_request(**fields, sources=keys, detail=detail, asked=asked, within=transaction)
    raise _error(found, num_asked)


def _error(found: Found, num_asked: int) -> NullsError:
    hint = " (--partial goes ahead with the others)" if found.targets else ""
    return error_of(found.wrong, num_asked, undone=f"nothing was revoked{hint}")


def left_out(ledger: Ledger, request_id: str) -> list[Mapping[str, Any]]:
    """Return the lines that a partial request left out, as the ledger has them."""
    beside = ledger.request(request_id).detail.get("left_out")
    return list(ledger.request(beside).detail["wrong"]) if beside else []


def refuse_other_model(request: Request, model_uri: str | None) -> None:
    """Raise an error if a request is not for a model of this name.

    Raises:
        UsageError: it is for another.
    """
    name = re.split("[/@]", (model_uri or "").removeprefix("models:/"))[0]
    if model_uri is not None and name != request.model_name:
        raise UsageError(f"request {request.request_id} is for {request.model_before}, not for {model_uri}")
