"""The act of an unlearn: under the lock of the weights, plan, make the new version, and write both to the ledger.

Of several processes with the same request one acts, and the others find that it is done. A process that dies after it
made the version, and before it could record it, leaves one that the request finds again when it is resumed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestration.unlearning import erasure, where
from orchestration.unlearning.erasure import Budget
from orchestration.unlearning.plan import MAX_NAMED, Plan, Policy, make_plan, recorded_plan
from orchestration.unlearning.request.wrong import at_lines
from registry import ids
from registry.catalog.ledger import Ledger, Request
from registry.catalog.revocations import Change
from registry.catalog.states import State, TransitionError
from registry.errors import DamagedError, NotFoundError, RefusedError, ServiceError, UsageError
from registry.ids import SourceId
from registry.lookup import Source, Unresolved, read_sources, resolve_all
from registry.snapshot import Snapshot

if TYPE_CHECKING:
    import sqlalchemy as sa

    from training.serving.flavor import ModelVersion

Progress = Callable[[str, float | None], None]


class _PlanChangedError(Exception):
    """The sources that an erasure takes are not those that its weights were made for."""


def act(
    ledger: Ledger,
    snapshot: Snapshot,
    base: ModelVersion,
    request_id: str,
    *,
    progress: Progress = lambda _message, _share: None,
) -> tuple[Plan, str]:
    """Revoke the sources of a request, unless that is done, and return its plan and the new version.

    Under the lock of the weights, so that the plan is still valid when the version is made, and so that of several
    processes with the same request one acts and the others find that it is done. An erasure's weights are made before,
    without the lock; if another request has changed the plan by then, they are made again.

    Raises:
        RefusedError: a source cannot be unlearned, or erasing costs others too much; the request is recorded as
            refused.
    """
    while True:
        with contextlib.suppress(_PlanChangedError):
            return _act(ledger, snapshot, base, request_id, progress)


def _act(
    ledger: Ledger, snapshot: Snapshot, base: ModelVersion, request_id: str, progress: Progress
) -> tuple[Plan, str]:
    catalog = ledger.catalog
    refused: RefusedError | None = None
    try:
        # Before the lock: this asks about other weights too, and other requests need not wait for it.
        request = ledger.request(request_id)
        around: dict[str, Any] = {}
        if request.model_after is None:
            wanted = [ids.source_id(key) for key in request.sources]
            around = where.surroundings(catalog, snapshot, base, wanted, request_id)
        prepared = _prepared(ledger, snapshot, base, request_id, progress)
        with catalog.exclusive(f"weights:{base.weights_id}") as transaction:
            request = ledger.request(request_id, within=transaction)
            targets = targets_of(snapshot, request)
            if request.model_after is not None:
                return recorded_plan(snapshot, request.detail["plan"]), request.model_after
            try:
                if isinstance(prepared, RefusedError):
                    raise prepared
                plan, uri = _revoke(ledger, snapshot, base, request, targets, around, prepared, transaction)
            except RefusedError as error:
                refused = at_lines(error, request.detail.get("lines", ()))
                reasons = {"error": str(error), **refused.facts}
                ledger.append(request_id, State.REFUSED, detail=reasons, within=transaction)
    except ServiceError:
        raise  # a store is down: the request stays open, and the same command continues it
    except (NotFoundError, UsageError, DamagedError) as error:
        with contextlib.suppress(TransitionError):  # another process was faster
            ledger.append(request_id, State.FAILED, detail={"error": str(error)})
        raise
    if refused is not None:
        raise refused
    made = base
    if isinstance(prepared, erasure.Prepared):
        made = dataclasses.replace(base, pointer=dict(prepared.pointer))
    catalog.record_model(uri, snapshot_id=base.snapshot, weights=str(made.weights), run_id=base.run_id)
    return plan, uri


def _prepared(
    ledger: Ledger, snapshot: Snapshot, base: ModelVersion, request_id: str, progress: Progress
) -> erasure.Prepared | RefusedError | None:
    """Make the weights of an erasure that is not done yet; None for a revocation. A refusal is returned, to record."""
    from training.serving import in_force

    request = ledger.request(request_id)
    if request.action != erasure.ERASE or request.model_after is not None:
        return None
    with ledger.catalog.read() as connection:
        revoked = in_force.within(connection, base).revoked
    try:
        plan = plan_for(snapshot, base, targets_of(snapshot, request), Policy(request.policy), revoked, erase=True)
        return erasure.prepare(
            base,
            snapshot,
            plan.with_text,
            Budget(**request.detail["budget"]),
            revoked=revoked,
            load=erasure.loader(base, ledger.catalog.engine.url.render_as_string(hide_password=False)),
            progress=lambda message: progress(message, None),
        )
    except RefusedError as error:
        return error


def targets_of(snapshot: Snapshot, request: Request) -> list[Source]:
    """Return the sources of a request.

    Raises:
        NotFoundError: the snapshot does not hold one of them.
    """
    targets: list[Source] = []
    for found in resolve_all(snapshot, request.sources):
        if isinstance(found, Unresolved):
            raise found.error()
        targets.append(found)
    return targets


def _revoke(
    ledger: Ledger,
    snapshot: Snapshot,
    base: ModelVersion,
    request: Request,
    targets: Sequence[Source],
    around: Mapping[str, Any],
    prepared: erasure.Prepared | None,
    transaction: sa.Connection,
) -> tuple[Plan, str]:
    from training.serving import flavor, in_force

    revoked = dict(in_force.within(transaction, base).revoked)
    # A process that died after it made the version, and before it could record it, leaves one of this request.
    made = flavor.made_by(request.request_id, tracking_uri=base.tracking_uri)
    own = {int(text, 16) for text in made.pointer.get("revoked_by_request", ())} if made else set()
    before = {source_id: place for source_id, place in revoked.items() if source_id not in own}
    plan = plan_for(snapshot, base, targets, Policy(request.policy), before, erase=prepared is not None)
    detail: dict[str, Any] = {"plan": plan.to_dict(), **around}
    after = base
    if prepared is not None:
        if prepared.source_ids != plan.with_text:
            raise _PlanChangedError
        detail["erasure"] = prepared.detail
        after = dataclasses.replace(base, pointer=dict(prepared.pointer))
    ledger.append(request.request_id, State.PLANNED, detail=detail, within=transaction)
    uri = flavor.derive(
        after, revoked=plan.revoked | revoked.keys(), request_id=request.request_id, by_request=plan.revoked
    )
    ledger.append(
        request.request_id,
        State.APPLIED,
        model_after=uri,
        change=Change(weights_id=base.weights_id, tensors=base.weights_digest, revoked=plan.revoked),
        within=transaction,
    )
    return plan, uri


def plan_for(
    snapshot: Snapshot,
    base: ModelVersion,
    targets: Sequence[Source],
    policy: Policy,
    revoked: Mapping[SourceId, str],
    *,
    erase: bool = False,
) -> Plan:
    """Decide what an unlearn of these sources does; see `orchestration.unlearning.plan`."""
    done = erasure.done_already(base, revoked, erase=erase)
    plan = make_plan(snapshot, targets, policy=policy, heldout=base.heldout, revoked=done, also_gone=revoked.keys())
    losing = sorted(base.same_sinks(plan.revoked) - base.same_sinks(revoked) - revoked.keys())
    if not losing:
        return plan
    named = sorted(source.key for source in read_sources(snapshot, losing[:MAX_NAMED]).values())
    return dataclasses.replace(plan, same_sinks=named, num_same_sinks=len(losing))
