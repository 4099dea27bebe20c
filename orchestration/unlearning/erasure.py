"""The erasing part of an unlearn: the plan with its cost to others, the budget, the act, and the evidence.

Revoking costs other sources nothing. Erasing does, since sources share sinks, so the plan measures it first
(`training.erasure.cost`), and a cost past the budget is refused before anything is written, unless it is accepted. The
act makes erased weights under a name that follows from the weights and the sources, so it can be repeated; the flow in
`unlearn.py` then registers them. The evidence measures the same sources again, in the weights that were written.

Cost: loading the model, two passes over 24 sources' text for the plan and one for the evidence; for the act, see
`training.erasure.erase`. Run: ``prepare(base, snapshot, ids, budget, revoked=(), load=load, progress=print)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from registry import ids
from registry.errors import RefusedError, UsageError
from registry.ids import SourceId
from registry.lookup import read_sources
from registry.snapshot import Snapshot

if TYPE_CHECKING:
    from training.evaluate.ablation import Examiner
    from training.serving.served_model import ServedModel
    from training.serving.version import ModelVersion

ERASE = "erase"
"""The action of such a request in the ledger."""
DEFAULT_MAX_COST_NATS = 0.1
"""Largest rise of another source's loss, nats a token, that needs no consent. In the demo's model erasing one source of
86 costs the worst other 0.06, two 0.08, and five 0.22 (docs/LOG.md)."""
_SAME_NATS = 1e-4  # two measurements of one source under the same sinks differ by less

Load = Callable[[], "ServedModel"]
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """What an erasure may cost other sources.

    Raises:
        UsageError: the cost is negative or no number.
    """

    max_cost_nats: float = DEFAULT_MAX_COST_NATS
    """Largest rise of the loss, nats a token: of the mean over the random sample, and of every measured source."""
    accept_cost: bool = False
    """Whether to go ahead whatever it costs, and where the cost cannot be measured."""

    def __post_init__(self) -> None:
        if not self.max_cost_nats >= 0:
            raise UsageError(f"--max-cost {self.max_cost_nats}: expected nats a token, 0 or more")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return dataclasses.asdict(self)

    def objection(self, cost: Mapping[str, Any]) -> str | None:
        """Return why this cost (`training.erasure.cost.Cost.to_dict`) needs consent; None if it does not."""
        if cost["num_losing"] == 0:
            return None
        mean, worst = cost["mean_nats"], cost["worst_nats"]
        sharing = f"{cost['num_losing']:,} other sources share the sinks, up to {cost['share']['max']:.1%} of theirs"
        if worst is None:
            return f"{sharing}, and without their text the rise of their loss cannot be measured"
        if max(mean, worst) <= self.max_cost_nats:
            return None
        return (
            f"{sharing}: their loss rises by {mean:.4f} nats a token on average and {worst:.4f} at worst, where "
            f"{self.max_cost_nats:g} is allowed"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """Erased weights that are ready to be registered."""

    source_ids: frozenset[int]
    """The sources that they were erased of."""
    pointer: Mapping[str, Any]
    """The pointer of a version with these weights, but for the revoked sources."""
    detail: Mapping[str, Any]
    """For the ledger: `cost`, `budget`, `proof`."""


def loader(version: ModelVersion, catalog: str | None) -> Load:
    """Return a function that loads a version for measuring."""

    def load() -> ServedModel:
        from training.serving import flavor

        return flavor.load(version.uri, tracking_uri=version.tracking_uri, catalog=catalog)

    return load


def done_already(version: ModelVersion, revoked: Mapping[SourceId, str], *, erase: bool) -> Mapping[SourceId, str]:
    """Return the revoked sources that a request cannot name again: what is only revoked can still be erased."""
    if not erase:
        return revoked
    return {source_id: place for source_id, place in revoked.items() if source_id in version.erased}


def estimate(
    version: ModelVersion,
    snapshot: Snapshot,
    source_ids: Collection[int],
    budget: Budget,
    *,
    revoked: Collection[int],
    load: Load,
    progress: Progress,
) -> dict[str, Any]:
    """Return what `prepare` would decide, for the dry run: `cost`, `budget`, and `objection`, None if within it."""
    from training.erasure.cost import measure

    cost = measure(version, source_ids, snapshot, revoked=revoked, load=load, progress=progress).to_dict()
    return {"cost": cost, "budget": budget.to_dict(), "objection": budget.objection(cost)}


def prepare(
    version: ModelVersion,
    snapshot: Snapshot,
    source_ids: Collection[int],
    budget: Budget,
    *,
    revoked: Collection[int],
    load: Load,
    progress: Progress,
) -> Prepared:
    """Measure the cost, and make the erased weights if it is within the budget; repeated, it finds what it made.

    Args:
        version: the version to erase from.
        snapshot: the one that it was trained on.
        source_ids: the sources to erase, shared ones included.
        budget: what it may cost.
        revoked: sources that are out of force, which have nothing to lose.
        load: loads the version.
        progress: called with a message at each step.

    Raises:
        RefusedError: the cost passes the budget; nothing was written.
        DamagedError, ServiceError: see `training.erasure.erase.erase`.
    """
    from training.erasure.erase import erase, erased_pointer

    found = estimate(version, snapshot, source_ids, budget, revoked=revoked, load=load, progress=progress)
    if found["objection"] is not None and not budget.accept_cost:
        raise RefusedError(
            f"erasing would cost others too much: {found['objection']}. Revoke without --erase, which costs nothing, "
            "or allow it with --max-cost NATS or --accept-cost; sources reserved at training cost nobody anything"
        )
    progress("writing the erased weights")
    erased = erase(version, source_ids)
    return Prepared(
        source_ids=frozenset(source_ids),
        pointer=erased_pointer(version, erased),
        detail={"cost": found["cost"], "budget": found["budget"], "proof": erased.proof},
    )


def evidence_part(
    examiner: Examiner, snapshot: Snapshot, detail: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Measure the sources of the plan again, under the erased weights.

    Args:
        examiner: of the new version.
        snapshot: the one that it was trained on.
        detail: what `Prepared.detail` recorded.

    Returns:
        The evidence's `erasure` (cost before and after, budget, proof), and the reasons why it does not support that
        the erasure did what the plan said.
    """
    from training.erasure.cost import rises

    before = detail["cost"]["measured"]
    known = read_sources(snapshot, [ids.source_id(row["key"]) for row in before])
    after = [row | {"loss_after": examiner.on_loss(known[ids.source_id(row["key"])])} for row in before]
    mean, worst = rises(after)
    differing = [
        row["key"] for row, old in zip(after, before, strict=True) if row["loss_after"] > old["loss_after"] + _SAME_NATS
    ]
    reasons = [f"others lost more than was measured before: {', '.join(differing)}"] if differing else []
    if not detail["proof"]["holds"]:
        reasons.append("the erased weights are not zero where they should be, or differ elsewhere")
    cost_after = {"measured": after, "mean_nats": mean, "worst_nats": worst}
    return {
        "cost_before": detail["cost"],
        "cost_after": cost_after,
        "budget": detail["budget"],
        "proof": detail["proof"],
    }, reasons


def cost_lines(cost: Mapping[str, Any]) -> list[str]:
    """Format a cost for a terminal."""
    if cost["num_losing"] == 0:
        return ["cost to others: none, no other source shares a sink with these"]
    share = cost["share"]
    text = [
        f"cost to others: {cost['num_losing']:,} of {cost['num_sources']:,} lose sinks, {share['mean']:.1%} of theirs "
        f"on average, {share['max']:.1%} at most"
    ]
    if cost["worst_nats"] is None:
        return [*text, "  their loss was not measured, since the registry does not hold the text"]
    num_random = sum(row["drawn"] == "random" for row in cost["measured"])
    worst = max(cost["measured"], key=lambda row: row["loss_after"] - row["loss_before"])
    return [
        *text,
        f"  loss {cost['mean_nats']:+.4f} nats a token on average ({num_random} drawn at random), "
        f"{cost['worst_nats']:+.4f} at worst ({worst['key']})",
    ]


def proof_lines(proof: Mapping[str, Any]) -> list[str]:
    """Format a proof for a terminal."""
    expected = sum(layer["rows_expected"] for layer in proof["layers"])
    zero = sum(layer["rows_zero"] for layer in proof["layers"])
    checkpoint = proof["checkpoint"]
    return [
        f"erased: {zero:,} of {expected:,} rows of the pool are zero in {proof['weights']}; all else is unchanged",
        f"  weights {proof['weights_sha256']['before'][:16]} -> {proof['weights_sha256']['after'][:16]}",
        f"  checkpoint with the same rows zero, moments and steps too: {checkpoint['after']}"
        if checkpoint
        else f"  no checkpoint was erased: {proof['checkpoint_reason']}",
    ]
