"""Export a model version as a self-contained Hugging Face folder, published whole.

    model.safetensors, tokenizer, generation_config.json, router.npz    as training wrote them, byte for byte
    mask-ids.safetensors                                                 of an imported model
    config.json    with the sources that the weights refuse, their id and lineage (`training.model.carried`); no code
    nulls.json     the pointer without the paths of this machine, with the same facts and what was exported
    README.md      the model card

The folder needs no store of ours. Loaded with `import training`, it refuses what was in force when it was exported. Its
tensors are those of the version: sinks of a revoked source are in them, unless they were erased.

Cost: the weights are read twice and written once. Run: ``export_version(version, found, Path("out"))``.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from registry import ids
from registry.errors import DamagedError, NullsError, UsageError
from registry.ids import SourceId
from registry.lookup import Source, read_sources
from registry.snapshot import Registry
from registry.storage import is_remote, new_directory, write_atomic
from training.model.carried import NO_MASK, Carried
from training.serving.export import model_card
from training.serving.in_force import InForce
from training.serving.version import (
    DIGEST,
    EXPORTED,
    POINTER,
    ROUTER_FILE,
    ModelVersion,
    pointer_digest,
    weights_digest,
)
from training.serving.weights import local_weights
from training.sinks.layout import KEYED
from training.sinks.mask_ids import MASK_IDS_FILE, MaskIds

CARD = "README.md"
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.*",
)
_COPIED = ("*.safetensors", "*.safetensors.index.json", "generation_config.json", ROUTER_FILE, *TOKENIZER_FILES)
# Of the pointer, what means something elsewhere: not the paths and addresses of this installation.
_KEPT = ("schema", "snapshot", "layout", "context_length", "heldout", "num_trained_sources", "imported")

Progress = Callable[[str, float | None], None]


def export_version(
    version: ModelVersion,
    found: InForce,
    directory: Path,
    *,
    registry: str | None = None,
    progress: Progress = lambda _message, _share: None,
) -> dict[str, Any]:
    """Write a version's folder, completely or not at all.

    Args:
        version: the version.
        found: what is revoked in it, from `training.serving.in_force.in_force`.
        directory: the new folder; an empty one may exist.
        registry: where the model card finds the names of sources; by default where the version was trained.
        progress: called with a message, and the share done if known.

    Returns:
        Facts of the export, as `nulls.json` has them under `exported`, with `num_revoked` and `directory`.

    Raises:
        UsageError: `directory` exists and is not empty.
        DamagedError: the weights, or their configuration, are not those that were registered.
        ServiceError: the disk is full, or cannot be written.
    """
    directory = target_of(directory)
    progress("comparing the weights with what was registered", None)
    weights = local_weights(version)
    config = read_config(weights, version)
    carried = carried_of(version, found, weights)
    facts = facts_of(version, found)
    with published(directory) as staging:
        files = sorted({path for pattern in _COPIED for path in weights.glob(pattern) if path.is_file()})
        for number, path in enumerate(files):
            progress(f"copying {path.name}", number / len(files))
            shutil.copyfile(path, staging / path.name)
        if weights_digest(staging) != version.weights_digest:
            raise DamagedError(f"{weights}: the weights changed while they were copied; export again")
        _write_json(staging / "config.json", config | carried.to_config())
        pointer = {key: version.pointer[key] for key in _KEPT if key in version.pointer}
        pointer |= {"weights_sha256": version.weights_digest, "weights_id": version.weights_id}
        pointer |= {"lineage": list(version.lineage), "revoked": [ids.format_id(one) for one in carried.revoked]}
        pointer |= {EXPORTED: facts}
        _write_json(staging / POINTER, pointer | {DIGEST: pointer_digest(pointer)})
        names = names_of(version, found.revoked, registry)
        card = model_card.of_version(version, carried, facts, names)
        write_atomic(staging / CARD, card.encode())
    return facts | {"directory": str(directory), "num_revoked": len(carried.revoked)}


def target_of(directory: Path) -> Path:
    """Return the absolute path of a folder to export to.

    Raises:
        UsageError: it is a file, a folder that is not empty, or not local.
    """
    if is_remote(directory) or str(directory).startswith("s3:/"):
        raise UsageError(f"{directory}: expected a local directory; export to one, and copy it")
    directory = directory.expanduser().absolute()
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: expected a directory, found a file; name another")
    if directory.is_dir() and any(directory.iterdir()):
        raise UsageError(f"{directory}: expected a new or an empty directory, and it holds files; name another")
    return directory


def read_config(weights: Path, version: ModelVersion) -> dict[str, Any]:
    """Return the config.json of weights, without code.

    Raises:
        DamagedError: it cannot be read, or draws sinks differently than the version was registered with.
    """
    from training.model.modeling_nulls import NullsConfig

    try:
        config: dict[str, Any] = json.loads((weights / "config.json").read_text())
        layout = NullsConfig.from_pretrained(weights).layout
    except (OSError, ValueError) as error:
        raise DamagedError(f"{weights / 'config.json'}: cannot be read ({error}); restore it from a copy") from error
    if layout != version.layout:
        raise DamagedError(
            f"{version.uri}: {weights}/config.json draws sinks differently than the version was registered with; "
            "restore it from a copy"
        )
    return {key: value for key, value in config.items() if key != "auto_map"}


def carried_of(version: ModelVersion, found: InForce, weights: Path) -> Carried:
    """Return what travels with a version's weights."""
    revoked = tuple(sorted(found.revoked))
    masks = None
    if version.layout.scheme != KEYED:
        table = MaskIds.load(weights)
        if table is None:
            raise DamagedError(f"{version.uri}: {weights} lacks {MASK_IDS_FILE}; restore it from a copy")
        known = table.of_sources(revoked)
        masks = tuple(known.get(source_id, NO_MASK) for source_id in revoked)
    return Carried(weights_id=version.weights_id, lineage=version.lineage, revoked=revoked, masks=masks)


def facts_of(version: ModelVersion, found: InForce) -> dict[str, Any]:
    """Return what was exported, and when, for `nulls.json` and the model card."""
    return {
        "model_uri": version.uri,
        "snapshot": version.snapshot,
        "weights_id": version.weights_id,
        "run_id": version.run_id,
        "revocations": "checked" if found.checked else "offline",
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def names_of(version: ModelVersion, revoked: Mapping[SourceId, str], registry: str | None) -> dict[int, Source]:
    """Return the sources that the registry knows; none where it cannot be read, since ids are enough to refuse."""
    uri = registry or version.registry
    try:
        return read_sources(Registry.open(uri).snapshot(version.snapshot), revoked) if uri else {}
    except NullsError:
        return {}


@contextlib.contextmanager
def published(directory: Path) -> Iterator[Path]:
    """Yield a staging directory, and publish it at the end, unless somebody has filled `directory` meanwhile."""
    with new_directory(directory, keep=lambda path: any(path.iterdir())) as staging:
        inode = staging.stat().st_ino
        yield staging
    if directory.stat().st_ino != inode:
        raise UsageError(f"{directory}: another program has filled it meanwhile; name another")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2) + "\n").encode())
