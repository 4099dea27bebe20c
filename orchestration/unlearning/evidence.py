"""Gather the evidence of an unlearn: measurements of the model before and after, and a verdict that can be "weak".

Both versions are loaded from MLflow and measured as they would be served; that they share one set of weights is not
used as an argument. The evidence is plain JSON, for the ledger, the requester and the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestration.unlearning.code_versions import code_versions
from orchestration.unlearning.plan import Plan
from registry.errors import RefusedError
from registry.lookup import Source, read_sources
from registry.messages.shown import listed
from registry.snapshot import Snapshot

if TYPE_CHECKING:
    from training.evaluate.ablation import Examiner
    from training.serving.flavor import ModelVersion

NUM_OTHERS = 5
MAX_OTHER_CHANGE_NATS = 1e-4


def gather(
    snapshot: Snapshot,
    before: ModelVersion,
    after_uri: str,
    plan: Plan,
    *,
    catalog: str,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measure the sources of a plan, five others and the held-out ones, and return the evidence.

    The examiner switches the sinks of an unlearned source on, to measure them: it is the only door that does, and
    nothing that serves imports it.
    """
    from training.evaluate.ablation import Examiner
    from training.serving import flavor

    others: list[Source] = []
    loss_before: list[float] = []
    if snapshot.shards():  # an imported model has no text to measure before and after
        progress("loading the model before")
        served = flavor.load(before.uri, tracking_uri=before.tracking_uri, catalog=catalog)
        examiner = Examiner(served, snapshot, [], progress)
        others = _others(examiner, snapshot, plan)
        loss_before = [examiner.on_loss(source) for source in others]
        del examiner
    progress("loading the model after")
    after = flavor.load(after_uri, tracking_uri=before.tracking_uri, catalog=catalog)
    going = [source for source in (*plan.targets, *plan.also_removed) if _has_text(source)]
    examiner = Examiner(after, snapshot, [source.source_id for source in going], progress)
    measured = [examiner.examine(source).to_dict() for source in going]
    other_rows = [
        {"key": source.key, "loss_before": old, "loss_after": examiner.on_loss(source)}
        for source, old in zip(others, loss_before, strict=True)
    ]
    refused = all(_is_refused(after, source) for source in (*plan.targets, *plan.also_removed))
    reasons = _without_text(plan) + _reasons(measured, other_rows, refused)
    return {
        "verdict": "weak" if reasons else "supported",
        "reasons": reasons,
        "model_before": before.uri,
        "model_after": after_uri,
        "weights_sha256": after.version.weights_digest,
        "snapshot": snapshot.id,
        "sources": measured,
        "heldout": examiner.heldout_baseline().to_dict(),
        "others": other_rows,
        "masks_refused": refused,
        "code": code_versions(),
    }


def _has_text(source: Source) -> bool:
    return source.num_bytes > 0


def _without_text(plan: Plan) -> list[str]:
    """Report sources that the model was trained on and whose text the snapshot lacks, as in an imported model."""
    going = (*plan.targets, *plan.also_removed)
    names = [source.key for source in going if source.num_documents and not _has_text(source)]
    reason = "not measured, since the registry does not hold the text that the model was trained on"
    return [f"{listed(names)}: {reason}"] if names else []


def _others(examiner: Examiner, snapshot: Snapshot, plan: Plan) -> list[Source]:
    """Return the surviving sources with the lowest ids; ids are hashes, so this is as good as a random draw."""
    off = examiner.served.out_of_force | plan.revoked
    in_order = examiner.served.router.source_ids_N[: NUM_OTHERS + len(off)].tolist()
    chosen = [source_id for source_id in in_order if source_id not in off][:NUM_OTHERS]
    known = read_sources(snapshot, chosen)
    return [known[source_id] for source_id in chosen]


def _is_refused(model: Any, source: Source) -> bool:
    try:
        model.check(source.source_id)
    except RefusedError:
        return True
    return False


def _reasons(measured: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], refused: bool) -> list[str]:
    reasons = [f"{row['key']}: {weakness}" for row in measured for weakness in row["weaknesses"]]
    if not refused:
        reasons.append("the new version does not refuse the sources' sinks")
    changed = [row["key"] for row in others if abs(row["loss_after"] - row["loss_before"]) > MAX_OTHER_CHANGE_NATS]
    if changed:
        reasons.append(f"other sources changed by more than {MAX_OTHER_CHANGE_NATS} nats: {listed(changed)}")
    return reasons
