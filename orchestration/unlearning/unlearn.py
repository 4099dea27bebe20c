"""Take sources out of a model version: resolve them, plan, act, gather evidence, and record each step in the ledger.

The act is a revocation: a new version of the same model with the same weights, and a larger set of sources whose sinks
are never switched on again. It takes about a second at any model size; the evidence takes a few passes over the
source's text. Each step is written to the ledger before the next begins, and each can be repeated: a request that was
interrupted at any point is continued by the same command, with the same outcome.

Two requests at once both take effect: the act runs under a lock on the model's name, and the new version revokes what
any version of the same weights revokes.
"""

from __future__ import annotations

import dataclasses
import getpass
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestration.settings import Settings
from orchestration.unlearning.plan import MAX_NAMED, Plan, Policy, make_plan
from registry.catalog.ledger import Ledger, Request, State
from registry.errors import NullsError, RefusedError, ServiceError, UsageError
from registry.lookup import Source, read_sources, resolve
from registry.snapshot import Registry, Snapshot

if TYPE_CHECKING:
    from registry.catalog.database import Catalog
    from training.serving.flavor import ModelVersion

REVOKE = "revoke"
Progress = Callable[[str, float | None], None]


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
            "evidence": self.evidence,
            "seconds": round(self.seconds, 3),
            "evidence_seconds": None if self.evidence_seconds is None else round(self.evidence_seconds, 3),
        }


def unlearn(
    settings: Settings,
    model_uri: str,
    queries: Sequence[str],
    *,
    reason: str,
    policy: Policy = Policy.ALL_OWNERS,
    requested_by: str | None = None,
    dry_run: bool = False,
    measure: bool = True,
    progress: Progress = lambda _message, _share: None,
) -> Result:
    """Unlearn sources from a model version.

    Args:
        settings: the stores; the snapshot is the one that the model was trained on.
        model_uri: `models:/NAME/VERSION`.
        queries: URLs, titles, ISBNs, keys or ids.
        reason: why, for the ledger.
        policy: when text with several owners is removed.
        requested_by: the requester; by default the login name.
        dry_run: decide and return the plan, and write nothing.
        measure: whether to gather the evidence; without it the request stays `applied` until it is resumed.
        progress: called with a message, and the share done if known.

    Raises:
        NotFoundError: no such model, or a source that its snapshot does not hold.
        UsageError: an ambiguous title, an empty reason, or no source.
        RefusedError: a source was never trained, or is unlearned already; nothing is changed.
    """
    from training.serving import flavor

    started = time.monotonic()
    if not queries or not reason.strip():
        raise UsageError("an unlearn needs at least one source, and a reason for the ledger (--reason)")
    base = flavor.describe(model_uri, tracking_uri=settings.tracking_uri)
    snapshot = snapshot_of(settings, base)
    targets = list({source.source_id: source for source in (resolve(snapshot, q) for q in queries)}.values())
    if dry_run:
        plan = _plan(snapshot, base, targets, policy, _revoked_by(base, request_id=None))
        return Result(
            request_id=None,
            state=State.PLANNED,
            model_uri=base.uri,
            plan=plan,
            evidence=None,
            seconds=time.monotonic() - started,
        )
    catalog = settings.open_catalog()
    ledger = Ledger(catalog)
    request_id = _open_or_resume(ledger, base, targets, policy, reason, requested_by)
    plan, after_uri = _act(catalog, ledger, snapshot, base, targets, policy, request_id)
    seconds = time.monotonic() - started
    progress(f"revoked in {seconds:.2f} s: {after_uri}", None)
    if not measure:
        return Result(
            request_id=request_id,
            state=State.APPLIED,
            model_uri=after_uri,
            plan=plan,
            evidence=None,
            seconds=seconds,
        )
    return _with_evidence(ledger, snapshot, base, after_uri, plan, request_id, seconds, progress)


def resume(settings: Settings, request_id: str, *, progress: Progress = lambda _message, _share: None) -> Result:
    """Continue a request of the ledger where it was interrupted.

    Raises:
        NotFoundError: there is no such request.
        RefusedError: the request has ended.
    """
    request = Ledger(settings.open_catalog()).request(request_id)
    if request.state.is_terminal or request.evidence_digest:
        raise RefusedError(f"request {request_id} has ended: {request.state.value}")
    return unlearn(
        settings,
        request.model_before,
        list(request.sources),
        reason=request.reason,
        policy=Policy(request.policy),
        requested_by=request.requested_by,
        progress=progress,
    )


def snapshot_of(settings: Settings, version: ModelVersion) -> Snapshot:
    """Open the snapshot that a version was trained on, in the registry of the settings, else of its training."""
    uri = settings.registry or os.environ.get("NULLS_REGISTRY") or version.registry
    return Registry.open(uri).snapshot(version.snapshot)


def _open_or_resume(
    ledger: Ledger,
    base: ModelVersion,
    targets: Sequence[Source],
    policy: Policy,
    reason: str,
    requested_by: str | None,
) -> str:
    keys = sorted(source.key for source in targets)
    for request in ledger.requests():
        if _is_same(request, base, keys, policy):
            return request.request_id
    return ledger.open_request(
        requested_by=requested_by or getpass.getuser(),
        reason=reason,
        action=REVOKE,
        policy=policy.value,
        model_name=base.name,
        model_before=base.uri,
        sources=keys,
    )


def _is_same(request: Request, base: ModelVersion, keys: Sequence[str], policy: Policy) -> bool:
    """Return whether an open request is for exactly this, and so is continued instead of opened again."""
    is_open = not request.state.is_terminal and not request.evidence_digest
    wanted = (request.model_before, list(request.sources), request.policy, request.action)
    return is_open and wanted == (base.uri, list(keys), policy.value, REVOKE)


def _act(
    catalog: Catalog,
    ledger: Ledger,
    snapshot: Snapshot,
    base: ModelVersion,
    targets: Sequence[Source],
    policy: Policy,
    request_id: str,
) -> tuple[Plan, str]:
    """Plan and revoke under the model's lock, so that the plan is still valid when the version is made."""
    from training.serving import flavor

    try:
        with catalog.exclusive(f"model:{base.name}") as transaction:
            revoked = _revoked_by(base, request_id)
            plan = _plan(snapshot, base, targets, policy, revoked)
            ledger.append(request_id, State.PLANNED, detail={"plan": plan.to_dict()}, within=transaction)
            uri = flavor.derive(base, revoked=plan.revoked.union(revoked), request_id=request_id)
            ledger.append(request_id, State.APPLIED, model_after=uri, within=transaction)
    except RefusedError as error:
        ledger.append(request_id, State.REFUSED, detail={"error": str(error)})
        raise
    except ServiceError:
        raise  # a store is down: the request stays open, and the same command continues it
    except NullsError as error:
        ledger.append(request_id, State.FAILED, detail={"error": str(error)})
        raise
    catalog.record_model(uri, snapshot_id=base.snapshot, weights=str(base.weights), run_id=base.run_id)
    return plan, uri


def _plan(
    snapshot: Snapshot, base: ModelVersion, targets: Sequence[Source], policy: Policy, revoked: Mapping[int, str]
) -> Plan:
    plan = make_plan(snapshot, targets, policy=policy, heldout=base.heldout, revoked=revoked)
    losing = sorted(base.same_sinks(plan.revoked) - base.same_sinks(revoked) - revoked.keys())
    if not losing:
        return plan
    named = sorted(source.key for source in read_sources(snapshot, losing[:MAX_NAMED]).values())
    return dataclasses.replace(plan, same_sinks=named, num_same_sinks=len(losing))


def _revoked_by(base: ModelVersion, request_id: str | None) -> dict[int, str]:
    """Map each revoked source id to the first version of the weights that revokes it, except this request's."""
    from training.serving import flavor

    found: dict[int, str] = {}
    for version in flavor.versions(base.name, tracking_uri=base.tracking_uri):
        own = request_id is not None and version.request_id == request_id
        if version.weights_digest == base.weights_digest and not own:
            for source_id in version.revoked:
                found.setdefault(source_id, version.uri)
    return found


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
    evidence = gather(snapshot, base, after_uri, plan, progress=lambda message: progress(message, None))
    supported = evidence["verdict"] == "supported"
    state = State.VERIFIED if supported else State.APPLIED
    ledger.append(request_id, state, model_after=after_uri, evidence=evidence)
    return Result(
        request_id=request_id,
        state=state,
        model_uri=after_uri,
        plan=plan,
        evidence=evidence,
        seconds=seconds,
        evidence_seconds=time.monotonic() - started,
    )


def revoked_sources(snapshot: Snapshot, version: ModelVersion) -> list[Source]:
    """Return the sources that a version revokes, in the order of their ids."""
    known = read_sources(snapshot, version.revoked)
    return [known[source_id] for source_id in sorted(known)]
