"""Model versions in MLflow by their weights: which weights saw a snapshot, and every version, alias and copy of them.

An unlearn adds a version to the same weights, so weights can have thousands of versions. Nothing here reads them one by
one: MLflow is asked for the first version whose weights are not known yet, until there is none; of many versions of one
name only the first, the last and those with an alias are named. No pointer is read.

Cost: two requests a snapshot, about six a set of weights, at any number of versions: 10 ms each with 1,000 versions.
Run: ``for group in groups_of(connection, uri, condition("nulls.weights_id", weights_id)): ...``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from training.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from training.serving.version import ModelVersion

MOST_LISTED = 10
"""Versions of the same weights and name that are named one by one."""
_MOST_EXCLUDED = 40  # conditions in one request: servers limit the length of a URL to 4 or 8 kB
_OLDEST, _NEWEST = "creation_timestamp ASC", "version_number DESC"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A model version, or several successive ones, as MLflow has them."""

    name: str
    first: int
    last: int
    aliases: tuple[str, ...] = ()
    copy_of: str | None = None
    """The version that it is a copy of (MLflow's `copy_model_version`)."""
    request_id: str | None = None
    """The unlearn request that made it."""

    @property
    def uri(self) -> str:
        """`models:/NAME/VERSION`, or `models:/NAME/FIRST to LAST`."""
        return f"models:/{self.name}/{self.first}" + (f" to {self.last}" if self.last > self.first else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that are registered.

    Attributes:
        conditions: MLflow filters, of which each of their versions meets one.
        example: `models:/NAME/VERSION` of one of their versions; its pointer describes the weights.
    """

    conditions: tuple[str, ...]
    example: str


def condition(tag: str, value: str, comparator: str = "=") -> str:
    """Return the MLflow filter for a tag's value."""
    quoted = value.replace("'", "''")
    return f"tags.`{tag}` {comparator} '{quoted}'"


def snapshots_in_use(connection: MlflowClient, uri: str) -> list[str]:
    """Return the ids of the snapshots that registered models were trained on."""
    return [version.tags["nulls.snapshot"] for version in _distinct(connection, uri, "nulls.snapshot", ())]


def weights_trained_on(connection: MlflowClient, uri: str, snapshot_id: str) -> list[Weights]:
    """Return all weights whose versions say that they were trained on a snapshot, the oldest first."""
    where = (condition("nulls.snapshot", snapshot_id),)
    return [*_with_id(connection, uri, where), *_without_id(connection, uri, where)]


def weights_of_name(connection: MlflowClient, uri: str, name: str) -> list[Weights]:
    """Return all weights that have a version under this name of a registered model."""
    where = (_named(name),)
    return [*_with_id(connection, uri, where), *_without_id(connection, uri, where)]


def weights_of(connection: MlflowClient, version: ModelVersion) -> Weights:
    """Return the weights of a version."""
    path = condition("nulls.weights", str(version.pointer["weights"]))
    earlier = any(_without_id(connection, version.tracking_uri, (path,)))
    conditions = (condition("nulls.weights_id", version.weights_id), *([path] if earlier else []))
    return Weights(conditions=conditions, example=version.uri)


def weights_made_from(connection: MlflowClient, uri: str, weights_id: str) -> list[Weights]:
    """Return all weights that were made from these, by erasing, converting or training on: their versions say so."""
    return list(_with_id(connection, uri, (condition("nulls.lineage", f"%{weights_id}%", "LIKE"),)))


def groups_of(connection: MlflowClient, uri: str, weights: Weights) -> list[Entry]:
    """Return the versions of some weights under all names: copies, renamed models and aliases included.

    Returns:
        One entry a version, oldest first under each name; where a name has more than `MOST_LISTED`, one for all of
        them, after one for each that has an alias.
    """
    found: dict[str, list[Entry]] = {}
    for where in weights.conditions:
        for newest in _distinct_names(connection, uri, where):
            if newest.name not in found:
                found[newest.name] = list(_entries(connection, uri, weights.conditions, newest.name))
    return [entry for name in sorted(found) for entry in found[name]]


def _entries(connection: MlflowClient, uri: str, conditions: Sequence[str], name: str) -> Iterator[Entry]:
    versions: dict[int, Any] = {}
    is_all = True
    for where in conditions:
        query = f"{_named(name)} AND {where}"
        page = _search(connection, uri, query, _NEWEST, MOST_LISTED + 1)
        is_all = is_all and len(page) <= MOST_LISTED
        versions |= {int(version.version): version for version in page}
        if len(page) > MOST_LISTED:
            first = _search(connection, uri, query, "version_number ASC", 1)[0]
            versions[int(first.version)] = first
    aliases = aliases_of(connection, uri, name)
    if is_all:
        yield from (_entry(versions[number], aliases) for number in sorted(versions))
        return
    for number in sorted(set(aliases.values())):
        with store.translated(uri):
            version = versions.get(number) or connection.get_model_version(name, str(number))
        if any(meets(version, where) for where in conditions):
            yield _entry(version, aliases)
    yield Entry(name=name, first=min(versions), last=max(versions))


def meets(version: Any, where: str) -> bool:
    """Return whether a version's tags meet a filter that `condition` returned."""
    return any(condition(tag, value) == where for tag, value in version.tags.items())


def aliases_of(connection: MlflowClient, uri: str, name: str) -> dict[str, int]:
    """Return the aliases of a registered model: alias -> version."""
    with store.translated(uri):
        found = connection.search_registered_models(filter_string=_named(name), max_results=1)
    return {alias: int(version) for model in found for alias, version in model.aliases.items()}


def _entry(version: Any, aliases: dict[str, int]) -> Entry:
    number, source = int(version.version), str(version.source)
    return Entry(
        name=version.name,
        first=number,
        last=number,
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        copy_of=source if source.startswith("models:/") else None,
        request_id=version.tags.get("nulls.request"),
    )


def _with_id(connection: MlflowClient, uri: str, where: Sequence[str]) -> Iterator[Weights]:
    for version in _distinct(connection, uri, "nulls.weights_id", where):
        conditions = (condition("nulls.weights_id", version.tags["nulls.weights_id"]),)
        yield Weights(conditions=conditions, example=f"models:/{version.name}/{version.version}")


def _without_id(connection: MlflowClient, uri: str, where: Sequence[str]) -> Iterator[Weights]:
    """Yield weights whose first version was registered by an earlier release, which tagged only their path."""
    for version in _distinct(connection, uri, "nulls.weights", where):
        if "nulls.weights_id" not in version.tags:
            conditions = (condition("nulls.weights", version.tags["nulls.weights"]),)
            yield Weights(conditions=conditions, example=f"models:/{version.name}/{version.version}")


def _distinct(connection: MlflowClient, uri: str, tag: str, where: Sequence[str]) -> Iterator[Any]:
    """Yield the oldest version for each value of a tag."""
    known: list[str] = []
    while len(known) < _MOST_EXCLUDED:
        others = [condition(tag, value, "!=") for value in known] or [condition(tag, "%", "LIKE")]
        found = _search(connection, uri, " AND ".join([*where, *others]), _OLDEST, 1)
        if not found:
            return
        known.append(found[0].tags[tag])
        yield found[0]
    for version in _all(connection, uri, " AND ".join([*where, condition(tag, "%", "LIKE")])):
        if version.tags[tag] not in known:
            known.append(version.tags[tag])
            yield version


def _distinct_names(connection: MlflowClient, uri: str, where: str) -> Iterator[Any]:
    """Yield the newest version under each name."""
    known: list[str] = []
    while len(known) < _MOST_EXCLUDED:
        found = _search(connection, uri, " AND ".join([where, *(_named(name, "!=") for name in known)]), _NEWEST, 1)
        if not found:
            return
        known.append(found[0].name)
        yield found[0]
    for version in _all(connection, uri, where):
        if version.name not in known:
            known.append(version.name)
            yield version


def _all(connection: MlflowClient, uri: str, query: str) -> Iterator[Any]:
    token = None
    while True:
        with store.translated(uri):
            page = connection.search_model_versions(query, max_results=1000, order_by=[_OLDEST], page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _search(connection: MlflowClient, uri: str, query: str, order: str, most: int) -> list[Any]:
    with store.translated(uri):
        return list(connection.search_model_versions(query, max_results=most, order_by=[order]))


def _named(name: str, comparator: str = "=") -> str:
    quoted = name.replace("'", "''")
    return f"name {comparator} '{quoted}'"
