"""Undo a mistake: sources that were unlearned answer again in their weights, whatever else was unlearned meanwhile.

A reinstatement is a request of the ledger of its own, with a reason. It makes a version whose revoked set is what is in
force without these sources, and the catalogue then outranks what older versions say. Text of several owners that went
with a source comes back with it, unless the owners that stay unlearned take it: all of them, or one that was unlearned
under `any-owner`. What is in force afterwards is read back in the same transaction, so a request ends `verified`.

Cost: as an unlearn without evidence, about a second.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestration.settings import Settings
from orchestration.unlearning.act import Progress, targets_of
from orchestration.unlearning.plan import Policy, shared_of
from orchestration.unlearning.request.intake import REINSTATE, refuse_other_model
from orchestration.unlearning.request.lines import Line, reason_of
from orchestration.unlearning.request.targets import find
from orchestration.unlearning.request.wrong import Kind, Wrong, at_lines, error_of
from orchestration.unlearning.unlearn import snapshot_of
from registry import ids
from registry.catalog import revocations
from registry.catalog.ledger import Ledger, Request
from registry.catalog.revocations import Change
from registry.catalog.states import State, TransitionError
from registry.errors import DamagedError, NotFoundError, RefusedError, UsageError
from registry.ids import SourceId
from registry.lookup import Source, read_sources
from registry.schema import Kind as SourceKind
from registry.snapshot import Snapshot

if TYPE_CHECKING:
    import sqlalchemy as sa

    from training.serving.flavor import ModelVersion

_POLICY = "as-unlearned"  # of the ledger's row: shared text follows the policies of the unlearns that are left
_UNDONE = "nothing was reinstated"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken:
    """How a source came to be revoked: under which policy, and whether it was asked for itself."""

    policy: str
    asked: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """What a reinstatement does with shared sources, by id.

    Attributes:
        also: they answer again too.
        stay: they stay revoked, although an owner answers again.
        refused: asked for, and not possible, since their owners stay revoked.
    """

    also: Sequence[SourceId]
    stay: Sequence[SourceId]
    refused: Sequence[SourceId]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a reinstatement, and the JSON of `nulls reinstate`."""

    request_id: str | None
    state: State
    model_uri: str
    plan: Mapping[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON."""
        return {
            "request_id": self.request_id,
            "state": self.state.value,
            "model_uri": self.model_uri,
            **self.plan,
            "seconds": round(self.seconds, 3),
        }


def reinstate(
    settings: Settings,
    model_uri: str,
    queries: Sequence[str],
    *,
    reason: str = "",
    lines: Sequence[Line] = (),
    requested_by: str | None = None,
    dry_run: bool = False,
    progress: Progress = lambda _message, _share: None,
) -> Result:
    """Let sources answer again that were unlearned by mistake.

    Args:
        settings: the stores.
        model_uri: a version of the weights, whether the sources were unlearned in it, before it or after it.
        queries: URLs, titles, ISBNs, keys or ids.
        reason: why, for the ledger; needed if there are queries, or a line without a reason of its own.
        lines: more sources, from a file.
        requested_by: the requester; by default the login name.
        dry_run: decide and return the plan, and write nothing.
        progress: called with a message, and the share done if known.

    Raises:
        NotFoundError: no such model, or a source that its snapshot does not hold.
        UsageError: an ambiguous title, no reason, or no source.
        RefusedError: a source is not revoked, or was erased; nothing is changed.
    """
    from training.serving import flavor, in_force

    started = time.monotonic()
    asked = [*(Line(query=query) for query in queries), *lines]
    if not asked or (queries and not reason.strip()):
        raise UsageError("a reinstatement needs at least one source, and a reason for the ledger (--reason)")
    reason = reason_of(asked, reason)
    base = flavor.describe(model_uri, tracking_uri=settings.tracking_uri)
    snapshot = snapshot_of(settings, base)
    found = find(snapshot, asked, progress)
    ledger = Ledger(settings.open_catalog())
    if found.wrong or dry_run:
        targets = list(found.targets.values())
        with ledger.catalog.read() as connection:
            revoked = in_force.within(connection, base).revoked
            decision = _decided(ledger, snapshot, base, targets, revoked, connection)
        found = found.without(refusals(base, targets, revoked, decision))
        if found.wrong:
            raise error_of(found.wrong, len(found.named) + len(found.wrong), undone=_UNDONE)
        plan = _plan(snapshot, targets, decision)
        seconds = time.monotonic() - started
        return Result(request_id=None, state=State.PLANNED, model_uri=base.uri, plan=plan, seconds=seconds)
    request_id = ledger.open_request(
        requested_by=requested_by or getpass.getuser(),
        reason=reason,
        action=REINSTATE,
        policy=_POLICY,
        model_name=base.name,
        model_before=base.uri,
        sources=[source.key for source in found.targets.values()],
        detail={"lines": found.lines()},
    )
    return _act(ledger, snapshot, base, request_id, started)


def resume(settings: Settings, request_id: str, *, model_uri: str | None = None) -> Result:
    """Continue a reinstatement that was interrupted; never begin a new one.

    Raises:
        NotFoundError: there is no such request.
        UsageError: it is for another model, or no reinstatement.
        RefusedError: the request has ended.
    """
    from training.serving import flavor

    started = time.monotonic()
    ledger = Ledger(settings.open_catalog())
    request = ledger.request(request_id)
    refuse_other_model(request, model_uri)
    if request.action != REINSTATE:
        raise UsageError(f"request {request_id} is an unlearn: continue it with `nulls unlearn --resume`")
    if request.state.is_terminal:
        raise RefusedError(f"request {request_id} has ended: {request.state.value}")
    base = flavor.describe(request.model_before, tracking_uri=settings.tracking_uri)
    return _act(ledger, snapshot_of(settings, base), base, request_id, started)


def decide(
    targets: Collection[int],
    *,
    revoked: Collection[int],
    owners: Mapping[int, Collection[int]],
    taken: Mapping[int, Taken],
) -> Decision:
    """Decide which shared sources answer again with `targets`.

    Args:
        targets: sources that are to answer again.
        revoked: what is in force, targets included.
        owners: shared source -> its owners, for those that a target owns, and those that are targets.
        taken: how sources were revoked; of one that is missing it is not known, and it stays revoked unless asked for.
    """
    remaining = set(revoked) - set(targets)
    also: list[SourceId] = []
    stay: list[SourceId] = []
    refused: list[SourceId] = []
    for source_id, owned_by in sorted(owners.items()):
        if source_id not in revoked:
            continue
        gone = remaining.intersection(owned_by)
        held = len(gone) == len(set(owned_by)) or any(
            owner in taken and taken[owner].policy == Policy.ANY_OWNER for owner in gone
        )
        if source_id in targets:
            refused += [SourceId(source_id)] if held else []
        elif held or source_id not in taken or taken[source_id].asked:
            stay.append(SourceId(source_id))
        else:
            also.append(SourceId(source_id))
    return Decision(also=also, stay=stay, refused=refused)


def refusals(
    base: ModelVersion, targets: Sequence[Source], revoked: Mapping[SourceId, str], decision: Decision
) -> dict[SourceId, Wrong]:
    """Return why sources cannot answer again, by source id, for those that cannot."""
    erased = {int(text, 16) for text in base.pointer.get("erased", ())}
    asked = {source.source_id for source in targets}
    tied = base.same_sinks(revoked.keys() - asked - set(decision.also))
    found: dict[SourceId, Wrong] = {}
    for source in targets:
        key = source.key
        if source.source_id in erased:
            kind, why = Kind.ERASED, f"{key} was erased: its sinks are zero in these weights; train again to have it"
        elif source.source_id not in revoked:
            kind, why = Kind.IN_FORCE, f"{key} is not unlearned in {base.uri}: there is nothing to reinstate"
        elif source.source_id in decision.refused:
            kind = Kind.OWNERS_REVOKED
            why = f"{key} is text of {', '.join(source.shared_with)}, which stay unlearned: reinstate an owner"
        elif source.source_id in tied:
            kind, why = Kind.SAME_SINKS, f"{key} has the same sinks as a source that stays unlearned"
        else:
            continue
        found[source.source_id] = Wrong(query=key, key=key, kind=kind, message=why)
    return found


def _act(ledger: Ledger, snapshot: Snapshot, base: ModelVersion, request_id: str, started: float) -> Result:
    """Reinstate the sources of a request, unless that is done, under the lock of the weights.

    Raises:
        RefusedError: a source cannot be reinstated; the request is recorded as refused.
    """
    catalog = ledger.catalog
    refused: RefusedError | None = None
    try:
        with catalog.exclusive(f"weights:{base.weights_id}") as transaction:
            request = ledger.request(request_id, within=transaction)
            if request.model_after is not None:  # another process with the same request was faster
                return _result(request, started)
            try:
                uri = _reinstate(ledger, snapshot, base, request, transaction)
            except RefusedError as error:
                refused = at_lines(error, request.detail.get("lines", ()))
                reasons = {"error": str(error), **refused.facts}
                ledger.append(request_id, State.REFUSED, detail=reasons, within=transaction)
    except (NotFoundError, UsageError, DamagedError) as error:
        with contextlib.suppress(TransitionError):
            ledger.append(request_id, State.FAILED, detail={"error": str(error)})
        raise
    if refused is not None:
        raise refused
    catalog.record_model(uri, snapshot_id=base.snapshot, weights=str(base.weights), run_id=base.run_id)
    return _result(ledger.request(request_id), started)


def _reinstate(
    ledger: Ledger, snapshot: Snapshot, base: ModelVersion, request: Request, transaction: sa.Connection
) -> str:
    from training.serving import flavor, in_force

    targets = targets_of(snapshot, request)
    revoked = in_force.within(transaction, base).revoked
    decision = _decided(ledger, snapshot, base, targets, revoked, transaction)
    wrong = refusals(base, targets, revoked, decision)
    if wrong:
        raise error_of(list(wrong.values()), len(targets), undone=_UNDONE)
    back = {source.source_id for source in targets}.union(decision.also)
    plan = _plan(snapshot, targets, decision)
    ledger.append(request.request_id, State.PLANNED, detail={"plan": plan}, within=transaction)
    uri = flavor.derive(base, revoked=revoked.keys() - back, request_id=request.request_id)
    change = Change(weights_id=base.weights_id, tensors=base.weights_digest, reinstated=back)
    ledger.append(request.request_id, State.APPLIED, model_after=uri, change=change, within=transaction)
    made = flavor.describe(uri, tracking_uri=base.tracking_uri)
    now = in_force.within(transaction, made).revoked.keys()
    if now != revoked.keys() - back:
        raise DamagedError(f"{uri}: what is revoked in it is not what this request leaves; nothing was recorded")
    check = {"num_in_force": len(now), "in_force": revocations.set_digest(now)}
    ledger.append(request.request_id, State.VERIFIED, detail={"check": check}, within=transaction)
    return uri


def _decided(
    ledger: Ledger,
    snapshot: Snapshot,
    base: ModelVersion,
    targets: Sequence[Source],
    revoked: Mapping[SourceId, str],
    connection: sa.Connection,
) -> Decision:
    target_ids = [source.source_id for source in targets]
    owners: dict[int, Collection[int]] = dict(shared_of(snapshot, target_ids))
    for source in targets:
        if source.kind == SourceKind.SHARED:
            owners[source.source_id] = [ids.source_id(key) for key in source.shared_with]
    concerned = set(owners).union(*owners.values())
    taken: dict[int, Taken] = {}
    for scope in reversed([base.weights_id, *base.lineage]):  # the nearest weights have the last word
        by_source = revocations.requests_of(connection, [scope], concerned)
        requests = {number: ledger.request(number, within=connection) for number in set(by_source.values())}
        asked = {number: {ids.source_id(key) for key in request.sources} for number, request in requests.items()}
        taken |= {
            source_id: Taken(policy=requests[number].policy, asked=source_id in asked[number])
            for source_id, number in by_source.items()
        }
    return decide(target_ids, revoked=revoked.keys(), owners=owners, taken=taken)


def _plan(snapshot: Snapshot, targets: Sequence[Source], decision: Decision) -> dict[str, Any]:
    known = read_sources(snapshot, [*decision.also, *decision.stay])
    return {
        "sources": [source.key for source in targets],
        "also_reinstated": [known[source_id].key for source_id in decision.also],
        "stays_revoked": [
            {"key": known[source_id].key, "owners": list(known[source_id].shared_with)} for source_id in decision.stay
        ],
    }


def _result(request: Request, started: float) -> Result:
    return Result(
        request_id=request.request_id,
        state=request.state,
        model_uri=str(request.model_after),
        plan=request.detail["plan"],
        seconds=time.monotonic() - started,
    )
