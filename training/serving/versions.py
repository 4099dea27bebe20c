"""Find model versions in MLflow: by URI, by name, by their weights; each with its pointer, checked against its tags.

A copy of a version (MLflow's `copy_model_version`, for promotion) has the tags of the original, and its artifacts.

Run: ``describe("models:/wiki/latest", tracking_uri=...)``. Cost: two requests and a small file a version.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from registry.catalog.revocations import set_digest
from registry.errors import DamagedError
from registry.ids import SourceId
from training.serving.version import POINTER, ModelVersion, pointer_digest, read_pointer
from training.tracking import store

_PAGE = 20


def describe(model_uri: str, *, tracking_uri: str) -> ModelVersion:
    """Return a version by its URI; loads no weights and imports no torch.

    Raises:
        NotFoundError, UsageError, ServiceError: see `training.tracking.store.model_version`.
        DamagedError: it is not a version of this flavour, or its pointer is missing or was altered.
    """
    connection = store.client(tracking_uri)
    return _described(connection, store.model_version(connection, tracking_uri, model_uri), tracking_uri)


def versions(name: str, *, tracking_uri: str) -> list[ModelVersion]:
    """Return all versions of a registered model that are of this flavour, the oldest first."""
    connection = store.client(tracking_uri)
    with store.translated(tracking_uri):
        found = store.all_versions(connection, name)
    return [_described(connection, version, tracking_uri) for version in found if "nulls.weights" in version.tags]


def made_by(request_id: str, *, tracking_uri: str) -> ModelVersion | None:
    """Return the version that an unlearn request made, if it is in the store; a copy of it does not count."""
    connection = store.client(tracking_uri)
    for version in _search(connection, tracking_uri, f"tags.`nulls.request` = '{request_id}'"):
        if not _is_copy(version):
            return _described(connection, version, tracking_uri)
    return None


def revoked_by_others(version: ModelVersion, known: Collection[int] = ()) -> frozenset[SourceId]:
    """Return what the other versions of the same weights in the store revoke, whatever their names.

    A version that an unlearn made has the revocations of all versions before it, so the newest such version is enough,
    and what was registered after it: the cost does not grow with the number of versions. A version that revokes just
    what is `known` already is not read.
    """
    connection = store.client(version.tracking_uri)
    found: frozenset[SourceId] = frozenset()
    seen: set[str] = {set_digest(()), set_digest(version.revoked), set_digest(known)}
    for other in _search(connection, version.tracking_uri, _same_weights(version)):
        tag = other.tags.get("nulls.revoked", "")
        if tag not in seen:
            seen.add(tag)
            found |= _described(connection, other, version.tracking_uri).revoked
        if "nulls.request" in other.tags and not _is_copy(other):
            break
    return found


def same_weights(version: ModelVersion) -> list[Any]:
    """Return MLflow's entries of all versions of the same weights, under any name, copies included; newest first."""
    connection = store.client(version.tracking_uri)
    return list(_search(connection, version.tracking_uri, _same_weights(version)))


def _same_weights(version: ModelVersion) -> str:
    if "weights_id" in version.pointer:
        return f"tags.`nulls.weights_id` = '{version.weights_id}'"
    # Registered by an earlier release, which tagged the path alone; later versions have this tag too.
    path = str(version.pointer["weights"]).replace("'", "''")
    return f"tags.`nulls.weights` = '{path}'"


def _search(connection: Any, tracking_uri: str, query: str) -> Iterator[Any]:
    token = None
    while True:
        with store.translated(tracking_uri):
            page = connection.search_model_versions(
                query,
                max_results=_PAGE,
                order_by=["creation_timestamp DESC", "version_number DESC"],
                page_token=token,
            )
        yield from page
        token = page.token
        if not token:
            return


def _is_copy(version: Any) -> bool:
    return str(version.source).startswith("models:/")


def _described(connection: Any, version: Any, tracking_uri: str) -> ModelVersion:
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = f"models:/{version.name}/{version.version}"
    try:
        source = version.source
        if _is_copy(version):  # the original may be gone; its artifacts are not
            source = connection.get_model_version_download_uri(version.name, version.version)
        path = mlflow.artifacts.download_artifacts(artifact_uri=f"{source}/{POINTER}", tracking_uri=tracking_uri)
        pointer = read_pointer(Path(path).parent)
    except (MlflowException, OSError, ValueError) as error:
        raise DamagedError(
            f"{uri}: no readable {POINTER} at {version.source}: not a NULLs model, or damaged"
        ) from error
    _check(uri, pointer, version.tags)
    return ModelVersion(
        uri=uri,
        name=version.name,
        version=int(version.version),
        run_id=version.run_id or None,
        request_id=version.tags.get("nulls.request"),
        experiment_id=version.tags["nulls.experiment"],
        tracking_uri=tracking_uri,
        pointer=pointer,
    )


def _check(uri: str, pointer: dict[str, Any], tags: dict[str, str]) -> None:
    """Compare a pointer with its version's tags; versions of earlier releases have only two of them."""
    try:
        differing = [
            name
            for name, value in {
                "nulls.pointer": pointer_digest(pointer),
                "nulls.revoked": set_digest(int(text, 16) for text in pointer["revoked"]),
                "nulls.sinks": json.dumps(pointer["layout"], sort_keys=True),
            }.items()
            if tags.get(name, value) != value
        ]
        if "weights_id" in pointer and "nulls.pointer" not in tags:
            differing.append("nulls.pointer")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedError(f"{uri}: its {POINTER} is not whole; restore it from a copy") from error
    if differing:
        raise DamagedError(
            f"{uri}: its {POINTER} was altered after it was registered: it differs from the tag {differing[0]}; "
            "restore it from a copy"
        )
