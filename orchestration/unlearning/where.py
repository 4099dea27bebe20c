"""Who else still has it: every model version, alias, copy and derived model that was trained on a source.

Weights were trained on a source if the snapshot that they saw holds text of it and it was not held out, or if they were
made from such weights. A source has one state in weights, whatever the number of their versions, so the question is
asked once for each set of weights: by `nulls where`, and by an unlearn, which names what had the source before it.

Cost: about 0.1 s a set of weights, at any number of versions; one pointer is read for each set.
Run: ``nulls where Anarchism --json``.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestration.settings import Settings
from registry import ids
from registry.corpus import with_text
from registry.errors import DamagedError, NotFoundError, UsageError
from registry.ids import SourceId
from registry.lookup import Source, resolve
from registry.snapshot import Registry, Snapshot

if TYPE_CHECKING:
    from registry.catalog.database import Catalog
    from training.serving.by_weights import Entry, Weights
    from training.serving.version import ModelVersion


class Standing(enum.StrEnum):
    """What a source is in some weights now."""

    ANSWERS = "answers"
    REVOKED = "revoked"
    ERASED = "erased"
    HELD_OUT = "held out"
    UNKNOWN = "unknown"  # the snapshot that the weights saw is not here
    DAMAGED = "damaged"  # what describes the weights was altered


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a source was revoked: a model version, and the request if the ledger has it."""

    model_uri: str
    request_id: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """Weights that were trained on at least one of the sources.

    Attributes:
        entries: their versions.
        standing: what each source is in them.
        weights_id: their id; "" if they cannot be described.
        snapshot: the id of the snapshot that they saw.
        lineage: ids of the weights that they were made from.
        since: for a revoked source, where it was revoked.
        why: the reason why they cannot be described.
    """

    entries: Sequence[Entry]
    standing: Mapping[SourceId, Standing]
    weights_id: str = ""
    snapshot: str = ""
    lineage: tuple[str, ...] = ()
    since: Mapping[SourceId, Place] = dataclasses.field(default_factory=dict)
    why: str | None = None

    @property
    def answers(self) -> bool:
        """Whether one of the sources is in force, as far as is known."""
        return not {Standing.ERASED, Standing.REVOKED, Standing.HELD_OUT}.issuperset(self.standing.values())

    def joined(self, before: Holder) -> Holder:
        """Return this together with what is known of other sources in the same weights."""
        return dataclasses.replace(
            self,
            standing={**before.standing, **self.standing},
            since={**before.since, **self.since},
        )


class _Snapshots:
    """Opens snapshots by id, each once, in the registry of the settings, else in that of a model's training."""

    def __init__(self, registry: str) -> None:
        self._registry = registry
        self._opened: dict[tuple[str, str], Snapshot | None] = {}

    def get(self, snapshot_id: str, registry: str | None = None) -> Snapshot | None:
        """Return a snapshot, or None if neither registry has it."""
        for uri in filter(None, (self._registry, registry)):
            if (uri, snapshot_id) not in self._opened:
                self._opened[uri, snapshot_id] = _opened(uri, snapshot_id)
            if found := self._opened[uri, snapshot_id]:
                return found
        return None


def _opened(registry: str, snapshot_id: str | None) -> Snapshot | None:
    try:
        return Registry.open(registry).snapshot(snapshot_id)
    except (NotFoundError, UsageError):
        return None


def where(settings: Settings, queries: Sequence[str], *, name: str | None = None) -> list[dict[str, Any]]:
    """Return who has each source, as the JSON of `nulls where`.

    Args:
        settings: the stores.
        queries: URLs, titles, ISBNs, keys or ids; looked up in the newest snapshot, then in those that models saw.
        name: only versions of this registered model.

    Raises:
        NotFoundError: a source that no snapshot holds, or there is no model of that name.
        UsageError: an ambiguous title.
        RefusedError: the catalogue cannot be asked what is revoked.
    """
    from training.serving.in_force import open_catalog
    from training.tracking import runs, store

    if not queries:
        raise UsageError("name at least one source: a URL, title, ISBN, key or id")
    finder = Finder(
        settings.tracking_uri, settings.registry_uri, lambda version: open_catalog(version, settings.catalog_url())
    )
    if name is not None and not runs.model_exists(store.client(finder.tracking_uri), finder.tracking_uri, name):
        raise NotFoundError(f"no model {name!r} in MLflow at {finder.tracking_uri}")
    sources = [finder.resolve(query) for query in queries]
    holders = finder.find({source.source_id for source in sources})
    return [_answer(query, source, holders, name) for query, source in zip(queries, sources, strict=True)]


class Finder:
    """Finds the weights that were trained on sources.

    Args:
        tracking_uri: the MLflow store.
        registry: the URI of the registry to look for snapshots in, before that of a model's training.
        catalog_of: opens the catalogue that is asked what is revoked in a version.
    """

    def __init__(self, tracking_uri: str, registry: str, catalog_of: Callable[[ModelVersion], Catalog]) -> None:
        from training.tracking import store

        self.tracking_uri = tracking_uri
        self._connection = store.client(tracking_uri)
        self._registry = registry
        self._snapshots = _Snapshots(registry)
        self._catalog_of = catalog_of
        self._versions: dict[str, ModelVersion | DamagedError] = {}

    def resolve(self, query: str) -> Source:
        """Return the source that a query names in the newest snapshot, else in one that a model saw."""
        first: NotFoundError | None = None
        newest = _opened(self._registry, None)
        for snapshot in itertools.chain([newest], (snapshot for snapshot, _ in self._corpora())):
            try:
                if snapshot is not None:
                    return resolve(snapshot, query)
            except NotFoundError as error:
                first = first or error
        raise first or NotFoundError(f"no source {query!r}: there is no snapshot in {self._registry}")

    def find(self, source_ids: Collection[int]) -> list[Holder]:
        """Return all weights that were trained on one of the sources."""
        from training.serving import by_weights

        found: dict[str, Holder] = {}
        trained: dict[str, frozenset[SourceId]] = {}
        for snapshot, all_weights in self._corpora():
            held = frozenset(with_text(snapshot, source_ids)) if snapshot else frozenset(map(SourceId, source_ids))
            for weights in all_weights if held else ():
                holder = self._holder(weights, held, is_known=snapshot is not None)
                found[holder.weights_id or weights.example] = holder
                if holder.weights_id:
                    trained[holder.weights_id] = held
        for weights_id, held in trained.items():
            for weights in by_weights.weights_made_from(self._connection, self.tracking_uri, weights_id):
                holder = self._holder(weights, held, inherits=True)
                before = found.get(holder.weights_id)
                found[holder.weights_id or weights.example] = holder.joined(before) if before else holder
        return list(found.values())

    def _corpora(self) -> Iterator[tuple[Snapshot | None, list[Weights]]]:
        """Yield each snapshot that a registered model saw, with all weights that saw it."""
        from training.serving import by_weights

        for snapshot_id in by_weights.snapshots_in_use(self._connection, self.tracking_uri):
            all_weights = by_weights.weights_trained_on(self._connection, self.tracking_uri, snapshot_id)
            snapshot = self._snapshots.get(snapshot_id)
            for version in map(self._describe, all_weights if snapshot is None else ()):
                if snapshot is None and not isinstance(version, DamagedError):
                    snapshot = self._snapshots.get(snapshot_id, version.registry)
            yield snapshot, all_weights

    def _describe(self, weights: Weights) -> ModelVersion | DamagedError:
        from training.serving.versions import describe

        if weights.example not in self._versions:
            try:
                self._versions[weights.example] = describe(weights.example, tracking_uri=self.tracking_uri)
            except DamagedError as error:
                self._versions[weights.example] = error
        return self._versions[weights.example]

    def _holder(
        self, weights: Weights, held: frozenset[SourceId], *, is_known: bool = True, inherits: bool = False
    ) -> Holder:
        """Return what the sources `held` are in some weights.

        Args:
            weights: registered weights.
            held: sources whose text they saw.
            is_known: whether the snapshot that they saw is here.
            inherits: whether it was weights that they were made from which saw the text.
        """
        from training.serving import by_weights

        entries = by_weights.groups_of(self._connection, self.tracking_uri, weights)
        try:
            version = self._describe(weights)
            if isinstance(version, DamagedError):
                raise version
            if is_known:
                return self._described(version, entries, held, () if inherits else version.heldout)
            standing, why = Standing.UNKNOWN, f"snapshot {version.snapshot[:12]} is not here"
        except DamagedError as error:
            standing, why = Standing.DAMAGED, str(error)
        return Holder(entries=entries, standing=dict.fromkeys(sorted(held), standing), why=why)

    def _described(
        self,
        version: ModelVersion,
        entries: Sequence[Entry],
        held: frozenset[SourceId],
        heldout: Collection[SourceId],
    ) -> Holder:
        from registry.catalog.revocations import requests_of
        from training.serving import in_force

        with self._catalog_of(version).read() as transaction:
            revoked = in_force.within(transaction, version).revoked
            requests = requests_of(transaction, [version.weights_id, *version.lineage], held)
        erased = {int(text, 16) for text in version.pointer.get("erased", ())}
        return Holder(
            weights_id=version.weights_id,
            snapshot=version.snapshot,
            lineage=version.lineage,
            entries=entries,
            standing={source_id: _standing(source_id, erased, revoked, heldout) for source_id in sorted(held)},
            since={
                source_id: Place(model_uri=revoked[source_id], request_id=requests.get(source_id))
                for source_id in sorted(held & revoked.keys())
            },
        )


def _standing(
    source_id: SourceId, erased: Collection[int], revoked: Collection[int], heldout: Collection[int]
) -> Standing:
    if source_id in erased:
        return Standing.ERASED
    if source_id in revoked:
        return Standing.REVOKED
    return Standing.HELD_OUT if source_id in heldout else Standing.ANSWERS


def surroundings(
    catalog: Catalog, snapshot: Snapshot, base: ModelVersion, source_ids: Collection[int], request_id: str | None = None
) -> dict[str, Any]:
    """Return what an unlearn says beside its plan: `elsewhere` and `corpus_holds`, each under its name."""
    return {
        "elsewhere": elsewhere(catalog, snapshot, base, source_ids, request_id),
        "corpus_holds": corpus_holds(snapshot, source_ids),
    }


def elsewhere(
    catalog: Catalog, snapshot: Snapshot, base: ModelVersion, source_ids: Collection[int], request_id: str | None
) -> list[dict[str, Any]]:
    """Return all versions, beside `base`, in which sources are in force before they are taken out of `base`.

    Args:
        catalog: says what is revoked.
        snapshot: the one that `base` was trained on.
        base: the version that an unlearn starts from.
        source_ids: the sources that it takes out.
        request_id: the request; what it made itself does not count.

    Returns:
        `{"model_uri", "aliases", "relation", "same_weights", "still_answers"}` each. Versions of the same weights, and
        weights that were made from these, do not answer after the unlearn; others do. `base` is among them only if an
        alias points to it.
    """
    finder = Finder(base.tracking_uri, registry_of(snapshot), lambda _: catalog)
    holders = finder.find(source_ids)
    places = []
    for holder in holders:
        is_same = holder.weights_id == base.weights_id
        for entry in holder.entries if is_same or holder.answers else ():
            if entry.request_id == request_id is not None or (entry.uri == base.uri and not entry.aliases):
                continue
            places.append(
                {
                    "model_uri": entry.uri,
                    "aliases": list(entry.aliases),
                    "relation": relation_of(entry, holder, holders),
                    "same_weights": is_same,
                    "still_answers": not is_same and base.weights_id not in holder.lineage,
                }
            )
    return places


def corpus_holds(snapshot: Snapshot, source_ids: Collection[int]) -> dict[str, Any] | None:
    """Say which of the sources the newest snapshot of a registry still holds text of, for a training would read it.

    Returns:
        `{"snapshot", "keys"}`, or None if it holds none of them.
    """
    newest = _opened(registry_of(snapshot), None)
    keys = list(with_text(newest, source_ids).values()) if newest else []
    return {"snapshot": newest.id, "keys": keys} if newest and keys else None


def registry_of(snapshot: Snapshot) -> str:
    """Return the URI of the registry that a snapshot was opened in."""
    return str(snapshot.path).rpartition("/snapshots/")[0]


def relation_of(entry: Entry, holder: Holder, holders: Collection[Holder]) -> str:
    """Say how a version came to have the source: trained, a copy, a later version, or derived weights."""
    if holder.why:
        return holder.why
    if entry.copy_of:
        return f"copy of {entry.copy_of}"
    if holder.lineage:
        origin = next((other for other in holders if other.weights_id == holder.lineage[0]), None)
        return f"derived from {origin.entries[0].uri if origin else f'weights {holder.lineage[0][:16]}'}"
    return "same weights" if entry.request_id or entry.last > entry.first else "trained"


def _answer(query: str, source: Source, holders: Sequence[Holder], name: str | None) -> dict[str, Any]:
    models = [
        {
            "model_uri": entry.uri,
            "aliases": list(entry.aliases),
            "weights": holder.weights_id,
            "snapshot": holder.snapshot,
            "relation": relation_of(entry, holder, holders),
            "state": holder.standing[source.source_id].value,
            "since": dataclasses.asdict(since) if (since := holder.since.get(source.source_id)) else None,
        }
        for holder in holders
        if source.source_id in holder.standing
        for entry in holder.entries
        if name in (None, entry.name)
    ]
    return {
        "query": query,
        "source_id": ids.format_id(source.source_id),
        "key": source.key,
        "title": source.title,
        "models": models,
    }
