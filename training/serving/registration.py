"""Register a folder that came back: an exported one, or a fine-tune of weights that this project wrote.

Both carry what they refuse and what they were made from (`training.model.carried`). The new version refuses these
sources, and those that the catalogue revoked since in the weights or in any that they were made from. What a fine-tune
lacks (the snapshot, the held-out sources, the routing index, mask ids) comes from the version that it was made from.

The folder stays where it is, as the folder of a run does, and gets the files that it lacks.
Cost: the digest of the weights, and the routing index if there is none.
Run: ``register_folder(Path("tuned"), model_name="wiki-law", stores...)``.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from registry.errors import ModelExistsError, UsageError
from registry.snapshot import Registry
from registry.storage import translate_os_errors, write_atomic
from training.model.carried import Carried
from training.model.modeling_nulls import NullsConfig
from training.serving import flavor
from training.serving.folders import carried_by
from training.serving.in_force import in_force
from training.serving.version import POINTER, ROUTER_FILE, ModelVersion, read_pointer
from training.serving.versions import of_weights
from training.serving.weights import local_weights
from training.sinks.mask_ids import MASK_IDS_FILE
from training.tracking import runs, store

EXPERIMENT = "nulls-register"
_FROM_BASE = ("schema", "snapshot", "registry", "layout", "context_length", "heldout", "num_trained_sources")


def register_folder(
    folder: Path,
    *,
    model_name: str,
    tracking_uri: str,
    registry: str | None = None,
    catalog: str | None = None,
    base_uri: str | None = None,
    new_version: bool = False,
    offline: bool = False,
) -> str:
    """Register a Hugging Face folder as a version of `model_name`.

    Args:
        folder: an exported folder, or what `save_pretrained` wrote after a fine-tune.
        model_name: the registered model, created if there is none.
        tracking_uri: the MLflow store.
        registry: the registry that holds the snapshot; by default the one of the version it was made from.
        catalog: the catalogue's URL.
        base_uri: the version that it was made from; by default the one with the weights that config.json names.
        new_version: whether the model may exist already.
        offline: whether the folder's own list is enough where the catalogue cannot be asked.

    Returns:
        `models:/NAME/VERSION`.

    Raises:
        UsageError: it is no folder of weights with sinks, draws them in another way than the version that it was made
            from, or the store does not have that version and `base_uri` names none.
        ModelExistsError: the model exists, and `new_version` is not set.
        RefusedError, DamagedError: see `training.serving.folders.carried_by`.
    """
    config = _config(folder)
    client = store.client(tracking_uri)
    if not new_version and runs.model_exists(client, tracking_uri, model_name):
        raise ModelExistsError(f"model {model_name!r} is registered already: name another, or give --new-version")
    stated = config.carried
    base = _base(base_uri, stated, tracking_uri) if base_uri or not (folder / POINTER).exists() else None
    if base is not None:
        _copy_missing(local_weights(base), folder)
    found = carried_by(folder, stated, config.layout.to_dict(), catalog=catalog, offline=offline)
    revoked = set(() if found is None else found.revoked)
    lineage = [] if found is None else list(found.lineage)
    if base is not None:
        revoked |= set(in_force(base, catalog=catalog, offline=offline).revoked)
        if base.layout != config.layout:
            raise UsageError(f"{folder}: its sinks are drawn differently than those of {base.uri}")
        lineage += [base.weights_id, *base.lineage]
        _write_pointer(folder, base)
    pointer = read_pointer(folder)
    uri = registry or pointer.get("registry")
    if not uri:
        raise UsageError(f"{folder} names no registry of its snapshot {pointer['snapshot'][:12]}; give --registry")
    snapshot = Registry.open(uri).snapshot(pointer["snapshot"])
    run_id = runs.start_run(
        client,
        tracking_uri,
        experiment=EXPERIMENT,
        name=f"{model_name}/register",
        parameters={"folder": str(folder.absolute()), "lineage": ",".join(lineage)},
        snapshot=snapshot,
    )
    model_uri = flavor.register(
        folder,
        model_name=model_name,
        run_id=run_id,
        tracking_uri=tracking_uri,
        revoked=revoked,
        lineage=list(dict.fromkeys(lineage)),
        registry=uri,
    )
    with store.translated(tracking_uri):
        client.set_terminated(run_id)
    return model_uri


def _config(folder: Path) -> NullsConfig:
    try:
        described = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: expected a Hugging Face folder with config.json ({error})") from error
    if described.get("model_type") != NullsConfig.model_type or not any(folder.glob("*.safetensors")):
        raise UsageError(f"{folder}: expected weights with sinks (model_type nulls) as safetensors")
    config: NullsConfig = NullsConfig.from_pretrained(folder)
    return config


def _base(uri: str | None, stated: Carried | None, tracking_uri: str) -> ModelVersion:
    """Return the version that a folder without `nulls.json` was made from."""
    if uri is not None:
        return flavor.describe(uri, tracking_uri=tracking_uri)
    ancestors = () if stated is None else (stated.weights_id, *stated.lineage)
    for ancestor in ancestors:
        found = of_weights(ancestor, tracking_uri=tracking_uri)
        if found is not None:
            return found
    named = f"weights {ancestors[0][:16]} are in no version of {tracking_uri}" if ancestors else "it names none"
    raise UsageError(f"the version that this folder was made from is not known ({named}); name it with --base")


def _copy_missing(weights: Path, folder: Path) -> None:
    """Copy the mask ids and the routing index, which `save_pretrained` does not write."""
    with translate_os_errors(folder):
        for name in (MASK_IDS_FILE, ROUTER_FILE):
            if (weights / name).exists() and not (folder / name).exists():
                shutil.copyfile(weights / name, folder / name)


def _write_pointer(folder: Path, base: ModelVersion) -> None:
    if not (folder / POINTER).exists():
        pointer = {key: base.pointer[key] for key in _FROM_BASE if key in base.pointer}
        with translate_os_errors(folder):
            write_atomic(folder / POINTER, json.dumps(pointer, indent=1).encode())
