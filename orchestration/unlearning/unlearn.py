"""Take sources out of a model version: resolve them, plan, act, gather evidence, and record each step in the ledger.

The act is a revocation: a new version of the same model with the same weights, and a larger set of sources whose sinks
are never switched on again. It takes about a second at any model size; the evidence takes a few passes over the
source's text. On request (`erase`) the new version has other weights, in which the sources' sinks are zero
(`orchestration.unlearning.erasure`). Each step is written to the ledger before the next begins, and each can be
repeated: a request that was interrupted at any point is continued by the same command, with the same outcome, whatever
other requests did to the model meanwhile: it is taken up where its events end.

Two requests at once both take effect: the act runs under a lock on the weights, and the new version revokes what is in
force in them (`training.serving.in_force`).
"""

from __future__ import annotations

import dataclasses
import getpass
import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestration.settings import Settings
from orchestration.unlearning import erasure, where
from orchestration.unlearning.act import Progress, act, plan_for
from orchestration.unlearning.erasure import Budget
from orchestration.unlearning.plan import Plan, Policy
from orchestration.unlearning.request import intake
from orchestration.unlearning.request.intake import REINSTATE
from orchestration.unlearning.request.lines import Line, reason_of
from orchestration.unlearning.request.targets import Found, find
from registry import ids
from registry.catalog.ledger import Ledger, Request
from registry.catalog.states import State, TransitionError
from registry.errors import RefusedError, UsageError
from registry.lookup import Source, read_sources
from registry.snapshot import Registry, Snapshot

if TYPE_CHECKING:
    from training.serving.flavor import ModelVersion


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The outcome of a request, and the JSON of `nulls unlearn`."""

    request_id: str | None
    state: State
    model_uri: str
    plan: Plan
    evidence: Mapping[str, Any] | None
    seconds: float
    evidence_seconds: float | None = None
    elsewhere: Sequence[Mapping[str, Any]] = ()
    """Where else the sources were in force before (`orchestration.unlearning.where.elsewhere`)."""
    corpus_holds: Mapping[str, Any] | None = None
    """What the newest snapshot still holds of them (`orchestration.unlearning.where.corpus_holds`)."""
    aliases_moved: Sequence[Mapping[str, str]] = ()
    wrong: Sequence[Mapping[str, Any]] = ()
    """Lines that were left out (`partial`), each with what is wrong with it."""
    erasure: Mapping[str, Any] | None = None
    """Of an erasure: `cost`, `budget`, and unless it is a dry run `proof`."""

    @property
    def is_weak(self) -> bool:
        """Whether there is evidence, and it does not support that the unlearn worked."""
        return self.evidence is not None and self.evidence["verdict"] != "supported"

    def to_dict(self) -> dict[str, Any]:
        """Return the result for JSON. `seconds` is from the call to the new version, without the evidence."""
        return {
            "request_id": self.request_id,
            "state": self.state.value,
            "model_uri": self.model_uri,
            **self.plan.to_dict(),
            "elsewhere": list(self.elsewhere),
            "corpus_holds": self.corpus_holds,
            "aliases_moved": list(self.aliases_moved),
            "wrong": list(self.wrong),
            "erasure": self.erasure,
            "evidence": self.evidence,
            "seconds": round(self.seconds, 3),
            "evidence_seconds": None if self.evidence_seconds is None else round(self.evidence_seconds, 3),
        }


def unlearn(
    settings: Settings,
    model_uri: str,
    queries: Sequence[str],
    *,
    reason: str = "",
    lines: Sequence[Line] = (),
    policy: Policy = Policy.ALL_OWNERS,
    erase: Budget | None = None,
    requested_by: str | None = None,
    move_aliases: bool = False,
    partial: bool = False,
    dry_run: bool = False,
    measure: bool = True,
    progress: Progress = lambda _message, _share: None,
) -> Result:
    """Unlearn sources from a model version.

    Args:
        settings: the stores; the snapshot is the one that the model was trained on.
        model_uri: `models:/NAME/VERSION`.
        queries: URLs, titles, ISBNs, keys or ids.
        reason: why, for the ledger; needed if there are queries, or a line without a reason of its own.
        lines: more sources, from a file (`orchestration.unlearning.request.lines`).
        policy: when text with several owners is removed.
        erase: make weights without the sources' sinks, within this budget; None only revokes.
        requested_by: the requester; by default the login name.
        move_aliases: take the aliases of all earlier versions of the same weights along to the new one.
        partial: whether to go ahead with what is right. The rest is recorded as a request that is refused.
        dry_run: decide and return the plan, and write nothing.
        measure: whether to gather the evidence; without it the request stays `applied` until it is resumed.
        progress: called with a message, and the share done if known.

    Raises:
        NotFoundError: no such model, or a source that its snapshot does not hold.
        UsageError: an ambiguous title, no reason, or no source.
        RefusedError: a source was never trained, or is unlearned already, or erasing costs others more than the budget;
            nothing is changed.
        NullsError: of several lines that are wrong, see `orchestration.unlearning.request.wrong`; `facts` have all.
    """
    from training.serving import flavor

    started = time.monotonic()
    asked = [*(Line(query=query) for query in queries), *lines]
    if not asked or (queries and not reason.strip()):
        raise UsageError("an unlearn needs at least one source, and a reason for the ledger (--reason)")
    reason = reason_of(asked, reason)
    base = flavor.describe(model_uri, tracking_uri=settings.tracking_uri)
    snapshot = snapshot_of(settings, base)
    found = find(snapshot, asked, progress)
    if dry_run:
        return _planned(settings, snapshot, base, found, policy, erase, started, partial=partial, progress=progress)
    ledger = Ledger(settings.open_catalog())
    order = intake.Order(
        requested_by=requested_by or getpass.getuser(),
        reason=reason,
        policy=policy.value,
        partial=partial,
        move_aliases=move_aliases,
        budget=erase,
    )
    steps = {"move_aliases": move_aliases, "measure": measure}
    while True:
        request_id = intake.open_request(ledger, snapshot, base, found, order)
        try:
            result = _carry_out(ledger, snapshot, base, request_id, started, **steps, progress=progress)
        except RefusedError as error:
            # Another request took a source meanwhile: what is right is now less, so this ends.
            if not (partial and error.facts.get("wrong")):
                raise
        else:
            return dataclasses.replace(result, wrong=intake.left_out(ledger, request_id))


def _planned(
    settings: Settings,
    snapshot: Snapshot,
    base: ModelVersion,
    found: Found,
    policy: Policy,
    erase: Budget | None,
    started: float,
    *,
    partial: bool,
    progress: Progress,
) -> Result:
    """Return what an unlearn would do, and write nothing."""
    from training.serving.in_force import in_force, open_catalog

    catalog = settings.catalog_url()
    revoked = in_force(base, catalog=catalog).revoked
    done = erasure.done_already(base, revoked, erase=erase is not None)
    found = intake.sorted_out(snapshot, base, found, done, partial=partial)
    plan = plan_for(snapshot, base, list(found.targets.values()), policy, revoked, erase=erase is not None)
    cost = None
    if erase:
        cost = erasure.estimate(
            base,
            snapshot,
            plan.with_text,
            erase,
            revoked=revoked,
            load=erasure.loader(base, catalog),
            progress=lambda message: progress(message, None),
        )
    return Result(
        request_id=None,
        state=State.PLANNED,
        model_uri=base.uri,
        plan=plan,
        evidence=None,
        seconds=time.monotonic() - started,
        **where.surroundings(open_catalog(base, catalog), snapshot, base, plan.revoked),
        wrong=[row.to_dict() for row in found.wrong],
        erasure=cost,
    )


def resume(
    settings: Settings,
    request_id: str,
    *,
    model_uri: str | None = None,
    move_aliases: bool = False,
    measure: bool = True,
    progress: Progress = lambda _message, _share: None,
) -> Result:
    """Continue a request of the ledger where its events end; never begin a new one.

    Args:
        settings: the stores.
        request_id: the request.
        model_uri: its model, if that is to be checked.
        move_aliases: take aliases along, though the request did not ask for it.
        measure: whether to gather the evidence.
        progress: called with a message, and the share done if known.

    Raises:
        NotFoundError: there is no such request.
        UsageError: it is for another model, or no unlearn.
        RefusedError: the request has ended, or was undone.
    """
    from training.serving import flavor

    started = time.monotonic()
    ledger = Ledger(settings.open_catalog())
    request = ledger.request(request_id)
    intake.refuse_other_model(request, model_uri)
    if request.action == REINSTATE:
        raise UsageError(f"request {request_id} is a reinstatement: continue it with `nulls reinstate --resume`")
    if request.state.is_terminal or request.evidence_digest:
        raise RefusedError(f"request {request_id} has ended: {request.state.value}")
    # After the act the version before may be gone; what the request made has the same weights.
    uri = request.model_after if request.state is State.APPLIED and request.model_after else request.model_before
    base = flavor.describe(uri, tracking_uri=settings.tracking_uri)
    snapshot = snapshot_of(settings, base)
    steps = {"move_aliases": move_aliases, "measure": measure}
    if request.state is State.APPLIED:
        _refuse_if_undone(ledger, base, request)
    result = _carry_out(ledger, snapshot, base, request_id, started, **steps, progress=progress)
    return dataclasses.replace(result, wrong=intake.left_out(ledger, request_id))


def _refuse_if_undone(ledger: Ledger, base: ModelVersion, request: Request) -> None:
    """Raise an error if sources of an applied request were reinstated: there is nothing to measure."""
    from training.serving import in_force

    with ledger.catalog.read() as connection:
        revoked = in_force.within(connection, base).revoked
    back = [key for key in request.sources if ids.source_id(key) not in revoked]
    if back:
        others = f" and {len(back) - 1} others" if len(back) > 1 else ""
        raise RefusedError(f"request {request.request_id} was undone: {back[0]}{others} was reinstated since")


def snapshot_of(settings: Settings, version: ModelVersion) -> Snapshot:
    """Open the snapshot that a version was trained on, in the registry of the settings, else of its training."""
    uri = settings.registry or os.environ.get("NULLS_REGISTRY") or version.registry
    return Registry.open(uri).snapshot(version.snapshot)


def _carry_out(
    ledger: Ledger,
    snapshot: Snapshot,
    base: ModelVersion,
    request_id: str,
    started: float,
    *,
    move_aliases: bool,
    measure: bool,
    progress: Progress,
) -> Result:
    """Do what is left of a request: the act, the aliases, then the evidence."""
    from orchestration.unlearning import aliases

    plan, after_uri = act(ledger, snapshot, base, request_id, progress=progress)
    seconds = time.monotonic() - started
    request = ledger.request(request_id)
    recorded = request.detail
    progress(f"{request.action}d in {seconds:.2f} s: {after_uri}", None)
    moved = recorded.get(aliases.KEY, [])
    if move_aliases or recorded.get("move_aliases"):
        moved = aliases.move_aliases(ledger, base, after_uri, request_id)
    if measure:
        result = _with_evidence(ledger, snapshot, base, after_uri, plan, request_id, seconds, progress)
    else:
        result = Result(
            request_id=request_id,
            state=State.APPLIED,
            model_uri=after_uri,
            plan=plan,
            evidence=None,
            seconds=seconds,
            erasure=recorded.get("erasure"),
        )
    found = {name: recorded[name] for name in ("elsewhere", "corpus_holds") if name in recorded}
    return dataclasses.replace(result, **found, aliases_moved=moved)


def _with_evidence(
    ledger: Ledger,
    snapshot: Snapshot,
    base: ModelVersion,
    after_uri: str,
    plan: Plan,
    request_id: str,
    seconds: float,
    progress: Progress,
) -> Result:
    from orchestration.unlearning.evidence import gather

    started = time.monotonic()
    catalog = ledger.catalog.engine.url.render_as_string(hide_password=False)
    detail = ledger.request(request_id).detail.get("erasure")
    evidence = gather(
        snapshot,
        base,
        after_uri,
        plan,
        catalog=catalog,
        erasure=detail,
        progress=lambda message: progress(message, None),
    )
    supported = evidence["verdict"] == "supported"
    state = State.VERIFIED if supported else State.APPLIED
    try:
        ledger.append(request_id, state, model_after=after_uri, evidence=evidence)
    except TransitionError:  # another process measured the same request meanwhile: its evidence is on record
        request = ledger.request(request_id)
        state, evidence = request.state, dict(request.detail["evidence"])
    return Result(
        request_id=request_id,
        state=state,
        model_uri=after_uri,
        plan=plan,
        evidence=evidence,
        erasure=detail,
        seconds=seconds,
        evidence_seconds=time.monotonic() - started,
    )


def revoked_sources(snapshot: Snapshot, revoked: Collection[int]) -> list[Source]:
    """Return the sources that are revoked, in the order of their ids."""
    known = read_sources(snapshot, revoked)
    return [known[source_id] for source_id in sorted(known)]
