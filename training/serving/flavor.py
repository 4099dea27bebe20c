"""The MLflow flavour: register a model version, derive one with more sources revoked, and load versions.

A version is a small pointer to weights, the corpus that they saw, and the sources that are revoked:

    MLmodel ...    for MLflow, so that `mlflow models serve -m models:/NAME/VERSION` works (`training.serving.mlmodel`)
    nulls.json     the pointer (`training.serving.version`); weights are in it by reference, with their digest

Unlearning by revocation makes a new version with the same weights and a larger revoked set: a few kilobytes and about
half a second at any model size. A served model refuses a revoked source's sinks, whoever asks, in whichever version of
the weights (`training.serving.in_force`). Registered versions have the tags `nulls.snapshot`, `nulls.sinks`,
`nulls.weights`, `nulls.weights_id`, `nulls.lineage` (ids of weights that these were made from), `nulls.pointer`,
`nulls.revoked`, `nulls.logged_model` and `nulls.request`.

Run: ``load("models:/wiki/latest", tracking_uri=...).generate("Who founded anarchism?")``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from registry import ids
from registry.catalog.revocations import set_digest
from registry.errors import DamagedError
from registry.snapshot import Registry
from training.serving import places
from training.serving.version import (
    DIGEST,
    EXPORTED,
    POINTER,
    ROUTER_FILE,
    ModelVersion,
    pointer_digest,
    read_pointer,
    weights_digest,
    weights_id,
)
from training.serving.versions import describe, made_by, versions
from training.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from training.serving.served_model import ServedModel

__all__ = [
    "POINTER",
    "ROUTER_FILE",
    "ModelVersion",
    "derive",
    "describe",
    "load",
    "made_by",
    "register",
    "versions",
]


def register(
    weights_dir: Path,
    *,
    model_name: str,
    run_id: str,
    tracking_uri: str,
    revoked: Collection[int] = (),
    lineage: Sequence[str] = (),
    registry: str | None = None,
    keep_copy: Callable[[Path], str] | None = None,
) -> str:
    """Register exported weights as a new version of `model_name`; do nothing if the run registered them before.

    Args:
        weights_dir: a Hugging Face directory with `nulls.json`; its router is built here if it has none.
        model_name: the registered model, created if there is none.
        run_id: the MLflow run that the version belongs to.
        tracking_uri: the MLflow store.
        revoked: sources that are revoked from the start.
        lineage: ids of the weights that these were made from, the nearest first; what is revoked in those stays off.
        registry: the registry that holds the snapshot; by default the one that `nulls.json` names.
        keep_copy: stores a remote copy of that directory, and returns its URI (`RemoteRun.put_weights`).

    Returns:
        `models:/NAME/VERSION`.
    """
    pointer = {key: value for key, value in read_pointer(weights_dir).items() if key not in (DIGEST, EXPORTED)}
    weights_at = places.relative(str(weights_dir.absolute()), tracking_uri)
    pointer |= {"weights": weights_at, "weights_sha256": weights_digest(weights_dir)}
    pointer["weights_id"] = weights_id(pointer["weights_sha256"], pointer["layout"])
    pointer["revoked"] = [ids.format_id(source_id) for source_id in sorted(revoked)]
    ancestors = [ancestor for ancestor in lineage if ancestor != pointer["weights_id"]]
    if ancestors:
        pointer["lineage"] = ancestors
    if registry:
        pointer["registry"] = registry
    if not (weights_dir / ROUTER_FILE).exists():
        _build_router(weights_dir, pointer)
    if keep_copy is not None:
        pointer["weights_copy"] = keep_copy(weights_dir)
    pointer["registry"] = places.relative(pointer.get("registry", ""), tracking_uri)
    connection = store.client(tracking_uri)
    for version in versions(model_name, tracking_uri=tracking_uri):
        # A run that was cut off after it registered, and is now resumed, has its version already.
        if (version.run_id, version.weights_digest) == (run_id, pointer["weights_sha256"]) and not version.request_id:
            return version.uri
    with store.translated(tracking_uri):
        experiment_id = connection.get_run(run_id).info.experiment_id
        _create_name(connection, model_name)
        return _add_version(connection, tracking_uri, model_name, pointer, run_id=run_id, experiment_id=experiment_id)


def derive(base: ModelVersion, *, revoked: Collection[int], request_id: str, by_request: Collection[int] = ()) -> str:
    """Add a version with the weights of `base` and this revoked set; only one for each `request_id`.

    Args:
        base: a version of the weights.
        revoked: all sources that are revoked in the new version.
        request_id: the request of the ledger.
        by_request: those of them that this request revokes.

    Returns:
        `models:/NAME/VERSION`.
    """
    made = made_by(request_id, tracking_uri=base.tracking_uri)
    if made is not None:
        return made.uri
    pointer = base.pointer | {
        "weights_id": base.weights_id,
        "revoked": [ids.format_id(source_id) for source_id in sorted(revoked)],
        "revoked_by_request": [ids.format_id(source_id) for source_id in sorted(by_request)],
    }
    with store.translated(base.tracking_uri):
        return _add_version(
            store.client(base.tracking_uri),
            base.tracking_uri,
            base.name,
            pointer,
            run_id=base.run_id,
            experiment_id=base.experiment_id,
            tags={"nulls.request": request_id, "nulls.derived_from": base.uri},
        )


def load(model_uri: str, *, tracking_uri: str, catalog: str | None = None, offline: bool = False) -> ServedModel:
    """Load a version for use, with all revocations of its weights in force.

    Args:
        model_uri: `models:/NAME/VERSION`, `models:/NAME/latest` or `models:/NAME@ALIAS`.
        tracking_uri: the MLflow store.
        catalog: the catalogue's URL; by default NULLS_CATALOG, else the one in the registry of the model's training.
        offline: whether the version's own list is enough where the catalogue cannot be asked.

    Raises:
        NotFoundError, UsageError, ServiceError: see `describe`.
        RefusedError: the catalogue cannot be asked what is revoked.
        DamagedError: the weights or the pointer are missing, or are not those that were registered.
    """
    from training.serving.in_force import in_force
    from training.serving.served_model import ServedModel

    version = describe(model_uri, tracking_uri=tracking_uri)
    return ServedModel.load(version, in_force(version, catalog=catalog, offline=offline))


def _load_pyfunc(path: str) -> Any:
    """Load a version for MLflow's pyfunc, which calls this by name; `path` is the directory that holds the pointer."""
    from mlflow.models import Model

    from training.serving.in_force import in_force
    from training.serving.pyfunc import PythonModel, guard
    from training.serving.served_model import ServedModel

    folder = Path(path)
    pointer = read_pointer(folder)
    model = Model.load(str(folder / "MLmodel"))
    recorded = model.flavors.get("nulls", {})
    if recorded.get("pointer", pointer_digest(pointer)) != pointer_digest(pointer):
        raise DamagedError(f"{folder / POINTER} was altered after it was registered; restore it from a copy")
    name, number = _registered_as(folder)
    version = ModelVersion(
        uri=f"models:/{name}/{number}" if name else path,
        name=name,
        version=number,
        run_id=None,
        request_id=None,
        experiment_id="",
        tracking_uri=store.known_tracking_uri() if name else "",
        pointer=pointer,
        folder=folder,
    )
    guard()
    served = ServedModel.load(version, in_force(version))
    return PythonModel(served, version.uri if name or not model.model_id else f"models:/{model.model_id}")


def _registered_as(folder: Path) -> tuple[str, int]:
    """Return the name and number of a version, which MLflow writes beside what it loads or downloads; else "" and 0."""
    import yaml

    try:
        found = yaml.safe_load((folder / "registered_model_meta").read_text())
        return str(found["model_name"] or ""), int(found["model_version"])
    except (OSError, TypeError, ValueError, KeyError, yaml.YAMLError):
        return "", 0


def _add_version(
    connection: MlflowClient,
    tracking_uri: str,
    name: str,
    pointer: dict[str, Any],
    *,
    run_id: str | None,
    experiment_id: str,
    tags: dict[str, str] | None = None,
) -> str:
    from training.serving import mlmodel

    tags = {
        "nulls.snapshot": pointer["snapshot"],
        "nulls.sinks": json.dumps(pointer["layout"], sort_keys=True),
        "nulls.weights": pointer["weights"],
        "nulls.weights_id": pointer["weights_id"],
        "nulls.pointer": pointer_digest(pointer),
        "nulls.revoked": set_digest(int(text, 16) for text in pointer["revoked"]),
        "nulls.experiment": experiment_id,
        **({"nulls.lineage": ",".join(pointer["lineage"])} if pointer.get("lineage") else {}),
        **(tags or {}),
    }
    logged = connection.create_logged_model(experiment_id, name=name, source_run_id=run_id, tags=tags)
    tags[store.LOGGED_MODEL_TAG] = logged.model_id
    root = connection.get_experiment(experiment_id).artifact_location
    location = places.own_artifacts(logged.artifact_location, root, tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        mlmodel.write(Path(folder), pointer, logged.model_id, run_id)
        if location == logged.artifact_location:
            connection.log_model_artifacts(logged.model_id, folder)
        else:
            shutil.copytree(folder, unquote(urlsplit(location).path))
    connection.finalize_logged_model(logged.model_id, "READY")
    version = connection.create_model_version(name, source=location, run_id=run_id, model_id=logged.model_id, tags=tags)
    return f"models:/{name}/{version.version}"


def _create_name(connection: MlflowClient, name: str) -> None:
    """Create a registered model, unless there is one of that name."""
    from mlflow.exceptions import MlflowException

    try:
        connection.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _build_router(weights_dir: Path, pointer: dict[str, Any]) -> None:
    from training.serving.router import Router

    snapshot = Registry.open(pointer["registry"]).snapshot(pointer["snapshot"])
    heldout = {int(text, 16) for text in pointer["heldout"]}
    texts: dict[int, list[str]] = {}
    for batch in snapshot.shard_batches():
        for row in batch.select(["source_id", "text"]).to_pylist():
            if row["source_id"] not in heldout:
                texts.setdefault(row["source_id"], []).append(row["text"])
    Router.build((source_id, "\n".join(parts)) for source_id, parts in texts.items()).save(weights_dir / ROUTER_FILE)
