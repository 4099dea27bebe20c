"""What a model version still knows of sources, whether they are unlearned or not: the same measurements as evidence.

For a source that is not revoked the off states tell what an unlearn would leave. With an oracle (a model trained
without the sources) its losses are the never-trained ones, else those of the held-out sources.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestration.settings import Settings
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
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures sources under a model version.

    Args:
        settings: where things are; the snapshot is the one that the model saw.
        model_uri: `models:/NAME/VERSION`.
        queries: which sources; by default the revoked ones, or eight trained ones if none is revoked.
        oracle_uri: a model version that was trained without them.
        progress: called with what is going on.

    Returns:
        The shape of the command line's JSON.

    Raises:
        NotFoundError, UsageError: as for `nulls lookup`; a source that was not trained cannot be audited.
    """
    from training.evaluate.ablation import Examiner
    from training.serving import flavor

    version = flavor.describe(model_uri, tracking_uri=settings.tracking_uri)
    snapshot = snapshot_of(settings, version)
    if not snapshot.shards():
        raise UsageError(
            f"{version.uri} was imported: registry {version.registry} has its titles and no text, and without "
            "a source's text nothing can be measured"
        )
    sources = _chosen(snapshot, version, queries)
    progress("loading the model")
    examined = [source.source_id for source in sources]
    examiner = Examiner(flavor.load(model_uri, tracking_uri=settings.tracking_uri), snapshot, examined, progress)
    oracle = None
    if oracle_uri:
        served = flavor.load(oracle_uri, tracking_uri=settings.tracking_uri)
        oracle = Examiner(served, snapshot_of(settings, served.version), [], progress)
    heldout = examiner.yardstick().to_dict()
    rows = [
        examiner.examine(source, oracle=oracle).to_dict()
        | {"heldout": heldout, "revoked": source.source_id in version.revoked}
        for source in sources
    ]
    return {"model_uri": version.uri, "snapshot": snapshot.id, "sources": rows, "summary": summarise(rows)}


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the audited sources; `closure` is the placebo's, `closure_by_state` has all three."""
    by_state: dict[str, float | None] = {}
    for state in ("closest", "placebo", "backbone"):
        known = [row["closure"][state] for row in rows if row["closure"][state] is not None]
        by_state[state] = statistics.fmean(known) if known else None
    weak = [f"{row['key']}: {reason}" for row in rows if row["revoked"] for reason in row["weaknesses"]]
    return {
        "closure": by_state["placebo"],
        "closure_by_state": by_state,
        "unseen_loss": rows[0]["heldout"] if rows else None,
        "num_sources": len(rows),
        "weaknesses": weak,
    }


def _chosen(snapshot: Snapshot, version: ModelVersion, queries: Sequence[str]) -> list[Source]:
    if queries:
        sources = [resolve(snapshot, query) for query in queries]
    else:
        sources = [s for s in revoked_sources(snapshot, version) if s.num_documents] or _sample(
            snapshot, version, NUM_DEFAULT
        )
    for source in sources:
        if source.source_id in version.heldout:
            raise UsageError(f"{source.key} was held out of training: it is part of the yardstick, not of the audit")
        if source.num_documents == 0:
            raise UsageError(f"nothing of {source.key} was trained; `nulls explain` tells what became of it")
    return sources


def sample(snapshot: Snapshot, settings: Settings, model_uri: str, num_sources: int) -> list[Source]:
    """Trained sources that are not revoked, with the lowest ids; ids are hashes, so as good as drawn at random."""
    from training.serving import flavor

    return _sample(snapshot, flavor.describe(model_uri, tracking_uri=settings.tracking_uri), num_sources)


def _sample(snapshot: Snapshot, version: ModelVersion, num_sources: int) -> list[Source]:
    chosen: list[Source] = []
    excluded = version.heldout | version.revoked
    for batch in snapshot.batches("sources", ["source_id", "num_documents"]):
        numbers = [row["source_id"] for row in batch.to_pylist() if row["num_documents"]]
        known = read_sources(snapshot, [n for n in numbers if n not in excluded][: num_sources - len(chosen)])
        chosen += [known[number] for number in sorted(known)]
        if len(chosen) >= num_sources:
            break
    return chosen
