"""Decide what an unlearn will do, before anything is done: pure functions of the snapshot and the model.

A source's own text is removed with it. Text that several sources published belongs to a shared source: under
`all-owners` it is removed with its last owner (a model retrained without one of them would still have read it at
another), under `any-owner` with the first. Near copies are listed in both directions and change nothing: they are
other documents.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestration.unlearning.request.wrong import Kind, Wrong, error_of
from registry import ids
from registry.ids import SourceId
from registry.lookup import Source, read_sources
from registry.schema import Status
from registry.snapshot import Snapshot

MAX_NAMED = 50  # near copies listed in each direction; the others are only counted


class Policy(enum.StrEnum):
    """When text with several owners is removed."""

    ALL_OWNERS = "all-owners"
    ANY_OWNER = "any-owner"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The sources that an unlearn revokes, those that stay, and near copies that it does not reach.

    Attributes:
        targets: the requested sources.
        also_removed: shared sources that are removed with them.
        kept_by_other_owners: shared sources that stay, with the owners that keep them.
        lives_on: documents of a target of which a near copy remains at another source.
        goes_with: documents of others that a target's text displaced: their wording is not in the model either.
        num_lives_on: the number of such documents; `lives_on` lists the closest.
        num_goes_with: likewise for `goes_with`.
        same_sinks: in an imported model, keys of sources that have the same sinks, and so lose them too.
        num_same_sinks: the number of such sources.
    """

    targets: Sequence[Source]
    also_removed: Sequence[Source]
    kept_by_other_owners: Sequence[Source]
    lives_on: Sequence[Mapping[str, Any]]
    goes_with: Sequence[Mapping[str, Any]]
    num_lives_on: int
    num_goes_with: int
    same_sinks: Sequence[str] = ()
    num_same_sinks: int = 0

    @property
    def with_text(self) -> frozenset[int]:
        """Those of the source ids that the model has text of, and so trained sinks."""
        return frozenset(source.source_id for source in (*self.targets, *self.also_removed) if source.num_documents)

    @property
    def revoked(self) -> frozenset[int]:
        """The source ids that this plan adds to the revoked ones."""
        return frozenset(source.source_id for source in (*self.targets, *self.also_removed))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan's part of the JSON of `nulls unlearn`."""
        return {
            "sources": [source.key for source in self.targets],
            "also_removed": [source.key for source in self.also_removed],
            "kept_by_other_owners": [
                {"key": source.key, "owners": list(source.shared_with)} for source in self.kept_by_other_owners
            ],
            "collateral": {
                "lives_on_as_near_copy": list(self.lives_on),
                "displaced_by_these_sources": list(self.goes_with),
                "num_lives_on_as_near_copy": self.num_lives_on,
                "num_displaced_by_these_sources": self.num_goes_with,
                "with_the_same_sinks": list(self.same_sinks),
                "num_with_the_same_sinks": self.num_same_sinks,
            },
        }


def refusal(
    source: Source, *, heldout: Collection[int], revoked: Mapping[SourceId, str], owns_shared: bool
) -> Wrong | None:
    """Say why a source cannot be unlearned, or return None if it can.

    Args:
        heldout: sources that were never trained.
        revoked: for each source id, the model version in which it is unlearned already.
        owns_shared: whether it owns text together with others.
    """
    key = source.key
    if source.source_id in revoked:
        kind, why = Kind.GONE, f"{key} is unlearned already, in {revoked[source.source_id]}"
    elif source.source_id in heldout:
        kind = Kind.HELD_OUT
        why = f"{key} was held out of training: the model never saw it, so there is nothing to unlearn"
    elif source.num_documents == 0 and not owns_shared:
        kind, why = Kind.NEVER_TRAINED, f"nothing of {key} was trained: `nulls explain` shows what happened to it"
    else:
        return None
    return Wrong(query=key, key=key, kind=kind, message=why)


def refusals(
    snapshot: Snapshot, targets: Sequence[Source], *, heldout: Collection[int], revoked: Mapping[SourceId, str]
) -> dict[SourceId, Wrong]:
    """Return why sources cannot be unlearned, by source id, for those that cannot."""
    shared = shared_of(snapshot, [source.source_id for source in targets])
    return _refusals(shared, targets, heldout, revoked)


def _refusals(
    shared: Mapping[int, Collection[int]],
    targets: Sequence[Source],
    heldout: Collection[int],
    revoked: Mapping[SourceId, str],
) -> dict[SourceId, Wrong]:
    owning = {owner for owners in shared.values() for owner in owners}
    reasons = {
        source.source_id: refusal(source, heldout=heldout, revoked=revoked, owns_shared=source.source_id in owning)
        for source in targets
    }
    return {source_id: wrong for source_id, wrong in reasons.items() if wrong is not None}


def make_plan(
    snapshot: Snapshot,
    targets: Sequence[Source],
    *,
    policy: Policy,
    heldout: Collection[int],
    revoked: Mapping[SourceId, str],
    also_gone: Collection[int] = (),
) -> Plan:
    """Decide what unlearning `targets` revokes.

    Args:
        snapshot: the one that the model was trained on.
        targets: the requested sources.
        policy: when text with several owners is removed.
        heldout: sources that were never trained.
        revoked: for each source that is unlearned already, the model version in which it is.
        also_gone: sources that are out of force, and that the request may still name: an erasure takes revoked ones.

    Raises:
        RefusedError: a target cannot be unlearned; none of them is then. Its `facts` name all that cannot.
    """
    shared = shared_of(snapshot, [source.source_id for source in targets])
    refused = _refusals(shared, targets, heldout, revoked)
    if refused:
        raise error_of(list(refused.values()), len(targets))
    gone = {source.source_id for source in targets} | set(revoked) | (set(also_gone) - shared.keys())
    removed, kept = split_shared(shared, gone=gone, policy=policy)
    known = read_sources(snapshot, [*removed, *kept])
    lives_on, goes_with = _near_copies(snapshot, {source.source_id for source in targets} | set(removed))
    return Plan(
        targets=tuple(targets),
        also_removed=tuple(known[source_id] for source_id in removed),
        kept_by_other_owners=tuple(known[source_id] for source_id in kept),
        lives_on=_named(snapshot, lives_on),
        goes_with=_named(snapshot, goes_with),
        num_lives_on=lives_on.num_rows,
        num_goes_with=goes_with.num_rows,
    )


def recorded_plan(snapshot: Snapshot, recorded: Mapping[str, Any]) -> Plan:
    """Return the plan that `Plan.to_dict` described, with its sources as the snapshot has them."""

    def sources(keys: Sequence[str]) -> tuple[Source, ...]:
        known = read_sources(snapshot, [ids.source_id(key) for key in keys])
        return tuple(known[ids.source_id(key)] for key in keys)

    collateral = recorded["collateral"]
    return Plan(
        targets=sources(recorded["sources"]),
        also_removed=sources(recorded["also_removed"]),
        kept_by_other_owners=sources([kept["key"] for kept in recorded["kept_by_other_owners"]]),
        lives_on=collateral["lives_on_as_near_copy"],
        goes_with=collateral["displaced_by_these_sources"],
        num_lives_on=collateral["num_lives_on_as_near_copy"],
        num_goes_with=collateral["num_displaced_by_these_sources"],
        same_sinks=collateral["with_the_same_sinks"],
        num_same_sinks=collateral["num_with_the_same_sinks"],
    )


def split_shared(
    shared: Mapping[int, Collection[int]], *, gone: Collection[int], policy: Policy
) -> tuple[list[int], list[int]]:
    """Split the shared sources (id: owners) that are not gone yet into removed ones and ones that owners keep."""
    removed: list[int] = []
    kept: list[int] = []
    for source_id, owners in sorted(shared.items()):
        if source_id in gone:
            continue
        goes = policy is Policy.ANY_OWNER or set(owners) <= set(gone)
        (removed if goes else kept).append(source_id)
    return removed, kept


def shared_of(snapshot: Snapshot, source_ids: Collection[int]) -> dict[int, list[int]]:
    """Return the shared sources that one of these sources owns, each with all its owners."""
    owners = snapshot.table("owners")
    wanted = pa.array(sorted(source_ids), pa.int64())
    touched = owners.filter(pc.is_in(owners["owner_id"], value_set=wanted))["source_id"].combine_chunks().unique()
    groups: dict[int, list[int]] = {}
    for row in owners.filter(pc.is_in(owners["source_id"], value_set=touched)).to_pylist():
        groups.setdefault(row["source_id"], []).append(row["owner_id"])
    return groups


def _near_copies(snapshot: Snapshot, going: Collection[int]) -> tuple[pa.Table, pa.Table]:
    """Return near copies that remain elsewhere, and lost ones: rows of `documents` with the survivor's source.

    Two passes over the compact columns of `documents`; only rows of the removed sources are held in memory.
    """
    wanted = pa.array(sorted(going), pa.int64())
    lives_on = _documents(snapshot, lambda rows: pc.and_(_is_near(rows), pc.is_in(rows["origin_id"], wanted)))
    kept = _documents(
        snapshot, lambda rows: pc.and_(pc.equal(rows["status"], Status.KEPT), pc.is_in(rows["source_id"], wanted))
    )
    survivors = kept["doc_id"].combine_chunks()
    goes_with = _documents(snapshot, lambda rows: pc.and_(_is_near(rows), pc.is_in(rows["survivor_id"], survivors)))
    lives_on, goes_with = (_with_survivor_source(snapshot, rows) for rows in (lives_on, goes_with))
    return (
        lives_on.filter(pc.invert(pc.is_in(lives_on["survivor_source"], wanted))),
        goes_with.filter(pc.invert(pc.is_in(goes_with["origin_id"], wanted))),
    )


def _documents(snapshot: Snapshot, keep: Callable[[pa.RecordBatch], pa.Array]) -> pa.Table:
    columns = ["doc_id", "source_id", "origin_id", "url", "title", "survivor_id", "jaccard", "status", "reason"]
    pieces = [batch.filter(keep(batch)) for batch in snapshot.batches("documents", columns)]
    return pa.Table.from_batches(pieces) if pieces else snapshot.table("documents").select(columns)


def _is_near(rows: pa.RecordBatch) -> pa.Array:
    return pc.and_(pc.equal(rows["status"], Status.DUPLICATE), pc.equal(pc.fill_null(rows["reason"], ""), "near"))


def _with_survivor_source(snapshot: Snapshot, rows: pa.Table) -> pa.Table:
    survivors = snapshot.where("documents", "doc_id", rows["survivor_id"].to_pylist()).to_pylist()
    source_of = {row["doc_id"]: row["source_id"] for row in survivors if row["status"] == Status.KEPT}
    column = pa.array([source_of.get(doc_id) for doc_id in rows["survivor_id"].to_pylist()], pa.int64())
    return rows.append_column("survivor_source", column)


def _named(snapshot: Snapshot, rows: pa.Table) -> list[dict[str, Any]]:
    chosen = rows.sort_by([("jaccard", "descending"), ("doc_id", "ascending")]).slice(0, MAX_NAMED).to_pylist()
    known = read_sources(snapshot, {row[name] for row in chosen for name in ("origin_id", "survivor_source")})
    return [
        {
            "doc_id": ids.format_id(row["doc_id"]),
            "title": row["title"] or row["url"],
            "published_by": known[row["origin_id"]].key,
            "near_copy_of": ids.format_id(row["survivor_id"]),
            "at": known[row["survivor_source"]].key,
            "jaccard": round(row["jaccard"], 4),
        }
        for row in chosen
    ]
