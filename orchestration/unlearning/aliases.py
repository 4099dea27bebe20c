"""Take aliases along to the version that an unlearn made (`nulls unlearn --move-aliases`).

An alias moves if it points to an earlier version of the same weights. Under another name (a copy, made for promotion)
there is no later version to move to, so the new version is copied there first. Each step can be repeated: a request
that was cut off finds the copies that it made, and the aliases that it moved, by its recorded plan.

Cost: a request an alias, and two more for each other name.
Run: ``move_aliases(ledger, base, "models:/wiki/2", request_id)``.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from registry.catalog.ledger import Ledger
from registry.catalog.states import State

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from training.serving.by_weights import Entry
    from training.serving.version import ModelVersion

KEY = "aliases_moved"
"""Of the event's detail: [{"model", "alias", "from", "to"}], with the URIs of versions."""


def move_aliases(ledger: Ledger, base: ModelVersion, after_uri: str, request_id: str) -> list[dict[str, str]]:
    """Move the aliases of all earlier versions of the same weights, record it, and return what was moved.

    Args:
        ledger: records the event.
        base: a version of the weights.
        after_uri: the version that the request made.
        request_id: the request, whose act is done.

    Raises:
        ServiceError: the store cannot be reached; the same call continues.
    """
    from training.serving.versions import describe
    from training.tracking import store

    with ledger.catalog.exclusive(f"weights:{base.weights_id}") as transaction:
        request = ledger.request(request_id, within=transaction)
        if KEY in request.detail or request.state is not State.APPLIED:
            return list(request.detail.get(KEY, []))
        after = describe(after_uri, tracking_uri=base.tracking_uri)
        connection = store.client(base.tracking_uri)
        moved = _moved(connection, after, request_id, request.detail.get("elsewhere", []))
        ledger.append(request_id, State.APPLIED, model_after=after_uri, detail={KEY: moved}, within=transaction)
    return moved


def planned_moves(elsewhere: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the aliases that would move, each as `NAME@ALIAS`."""
    return [
        f"{_name_of(place['model_uri'])}@{alias}"
        for place in elsewhere
        if place["same_weights"]
        for alias in place["aliases"]
    ]


def _moved(
    connection: MlflowClient, after: ModelVersion, request_id: str, elsewhere: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    from training.serving import by_weights
    from training.tracking import store

    uri = after.tracking_uri
    # Some may have been moved before an interruption: the plan has where they pointed.
    before = {
        (_name_of(place["model_uri"]), alias): str(place["model_uri"])
        for place in elsewhere
        if place["same_weights"]
        for alias in place["aliases"]
    }
    moved: dict[tuple[str, str], dict[str, str]] = {}
    for entry in by_weights.groups_of(connection, uri, by_weights.weights_of(connection, after)):
        for alias in entry.aliases if _is_earlier(entry, after) else ():
            target = after.version if entry.name == after.name else _copied(connection, after, entry.name, request_id)
            with store.translated(uri):
                connection.set_registered_model_alias(entry.name, alias, str(target))
            moved[entry.name, alias] = _move(entry.name, alias, entry.uri, target)
        for alias in entry.aliases:
            origin = before.get((entry.name, alias))
            if entry.request_id == request_id and origin not in (None, entry.uri):
                moved[entry.name, alias] = _move(entry.name, alias, str(origin), entry.first)
    return [moved[key] for key in sorted(moved)]


def _move(name: str, alias: str, origin: str, target: int) -> dict[str, str]:
    return {"model": name, "alias": alias, "from": origin, "to": f"models:/{name}/{target}"}


def _name_of(model_uri: str) -> str:
    return model_uri.removeprefix("models:/").rpartition("/")[0]


def _is_earlier(entry: Entry, after: ModelVersion) -> bool:
    """Return whether a version was made before `after`, so that an alias on it is to move; never one on a later."""
    if entry.name == after.name:
        return entry.first < after.version
    origin = entry.copy_of or ""
    return _name_of(origin) != after.name or int(origin.rpartition("/")[2]) < after.version


def _copied(connection: MlflowClient, after: ModelVersion, name: str, request_id: str) -> int:
    """Return the version under another name that is a copy of `after`; make it if there is none."""
    from training.serving import by_weights
    from training.tracking import store

    with store.translated(after.tracking_uri):
        mine = f"name = '{name}' AND {by_weights.condition('nulls.request', request_id)}"
        for version in connection.search_model_versions(mine, max_results=10):
            if version.source == after.uri:
                return int(version.version)
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow prints what it copies
            return int(connection.copy_model_version(after.uri, name).version)
