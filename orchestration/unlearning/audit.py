"""Measure what a model version knows of sources, unlearned or not, with the same measurements as the evidence.

For a source that is not revoked, the ablations (sinks off) show what an unlearn would leave. The never-trained losses
are those of an oracle (a model trained without the sources) if one is given, else those of the held-out baseline.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from orchestration.settings import Settings
from orchestration.unlearning.code_versions import code_versions
from orchestration.unlearning.unlearn import revoked_sources, snapshot_of
from registry.errors import UsageError
from registry.lookup import Source, read_sources, resolve
from registry.snapshot import Snapshot

if TYPE_CHECKING:
    from training.serving.flavor import ModelVersion

NUM_DEFAULT = 8


def audit(
    settings: Settings,
    model_uri: str,
    queries: Sequence[str] = (),
    *,
    oracle_uri: str | None = None,
    offline: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure sources under a model version.

    Args:
        settings: the stores; the snapshot is the one that the model was trained on.
        model_uri: `models:/NAME/VERSION`.
        queries: sources by URL, title, ISBN, key or id; by default the revoked ones, or eight trained ones.
        oracle_uri: a model version that was trained without them.
        offline: whether what the version itself revokes is enough where the catalogue cannot be asked.
        progress: called with a message at each step.

    Returns:
        The JSON of `nulls audit`.

    Raises:
        NotFoundError, UsageError: as for `nulls lookup`, or a source was not trained.
    """
    from training.evaluate.ablation import Examiner
    from training.serving import flavor
    from training.serving.in_force import in_force

    version = flavor.describe(model_uri, tracking_uri=settings.tracking_uri)
    snapshot = snapshot_of(settings, version)
    if not snapshot.shards():
        raise UsageError(
            f"{version.uri} was imported: registry {version.registry} has its titles and no text, and without "
            "a source's text nothing can be measured"
        )
    catalog = settings.catalog_url()
    revoked = in_force(version, catalog=catalog, offline=offline).revoked
    sources = _chosen(snapshot, version, queries, revoked)
    progress("loading the model")
    examined = [source.source_id for source in sources]
    served = flavor.load(model_uri, tracking_uri=settings.tracking_uri, catalog=catalog, offline=offline)
    examiner = Examiner(served, snapshot, examined, progress)
    oracle = None
    if oracle_uri:
        served = flavor.load(oracle_uri, tracking_uri=settings.tracking_uri, catalog=catalog, offline=offline)
        oracle = Examiner(served, snapshot_of(settings, served.version), [], progress)
    heldout = examiner.heldout_baseline().to_dict()
    measured = [
        examiner.examine(source, oracle=oracle).to_dict() | {"heldout": heldout, "revoked": source.source_id in revoked}
        for source in sources
    ]
    return {
        "model_uri": version.uri,
        "weights_sha256": version.weights_digest,
        "snapshot": snapshot.id,
        "oracle_uri": oracle_uri,
        "sources": measured,
        "summary": summarise(measured),
        "code": code_versions(),
    }


def summarise(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Average over the audited sources; `closure` is that under the placebo, `closure_by_state` has all ablations."""
    by_ablation: dict[str, float | None] = {}
    for ablation in ("closest", "placebo", "backbone"):
        known = [source["closure"][ablation] for source in measured if source["closure"][ablation] is not None]
        by_ablation[ablation] = statistics.fmean(known) if known else None
    weak = [f"{source['key']}: {why}" for source in measured if source["revoked"] for why in source["weaknesses"]]
    return {
        "closure": by_ablation["placebo"],
        "closure_by_state": by_ablation,
        "unseen_loss": measured[0]["heldout"] if measured else None,
        "num_sources": len(measured),
        "weaknesses": weak,
    }


def _chosen(
    snapshot: Snapshot, version: ModelVersion, queries: Sequence[str], revoked: Collection[int]
) -> list[Source]:
    if queries:
        sources = [resolve(snapshot, query) for query in queries]
    else:
        sources = [s for s in revoked_sources(snapshot, revoked) if s.num_documents] or _sample(
            snapshot, version, revoked, NUM_DEFAULT
        )
    for source in sources:
        if source.source_id in version.heldout:
            raise UsageError(
                f"{source.key} was held out of training: it is part of the held-out baseline and cannot be audited"
            )
        if source.num_documents == 0:
            raise UsageError(f"nothing of {source.key} was trained; `nulls explain` shows what happened to it")
    return sources


def sample(snapshot: Snapshot, settings: Settings, model_uri: str, num_sources: int) -> list[Source]:
    """Return trained sources, not revoked, with the lowest ids: as good as a random draw, since ids are hashes."""
    from training.serving import flavor
    from training.serving.in_force import in_force

    version = flavor.describe(model_uri, tracking_uri=settings.tracking_uri)
    return _sample(snapshot, version, in_force(version, catalog=settings.catalog_url()).revoked, num_sources)


def _sample(snapshot: Snapshot, version: ModelVersion, revoked: Collection[int], num_sources: int) -> list[Source]:
    chosen: list[Source] = []
    excluded = version.heldout.union(revoked)
    for batch in snapshot.batches("sources", ["source_id", "num_documents"]):
        trained = [row["source_id"] for row in batch.to_pylist() if row["num_documents"]]
        known = read_sources(snapshot, [i for i in trained if i not in excluded][: num_sources - len(chosen)])
        chosen += [known[source_id] for source_id in sorted(known)]
        if len(chosen) >= num_sources:
            break
    return chosen
