"""What the weights in a folder refuse: the question that `from_pretrained` asks, which knows a folder and no version.

    a folder that training or an import wrote    nulls.json names its registry: the catalogue is asked, as for a version
    an exported folder (`nulls export`)          its list, in config.json and in nulls.json, each with a digest
    a fine-tune of either (`save_pretrained`)    its list in config.json; the weights it is made from are its lineage
    any other                                    nothing: it loads as transformers loads it

Where a catalogue is configured (NULLS_CATALOG), the last two are asked there too, for what was revoked since.
Cost: the digest of the weights, about 2 s for each GB.
Run: ``carried_by(folder, config.carried, config.layout.to_dict())``.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from registry import ids
from registry.errors import DamagedError, RefusedError
from registry.ids import SourceId
from training.model.carried import NO_MASK, Carried
from training.serving.in_force import in_force
from training.serving.version import (
    DIGEST,
    EXPORTED,
    POINTER,
    ModelVersion,
    pointer_digest,
    read_pointer,
    weights_digest,
    weights_id,
)
from training.sinks.layout import KEYED
from training.sinks.mask_ids import MaskIds


def carried_by(
    folder: Path,
    stated: Carried | None,
    layout: dict[str, Any],
    *,
    catalog: str | None = None,
    offline: bool = False,
) -> Carried | None:
    """Return what the weights in a folder refuse now, under the id that they have now.

    Args:
        folder: a Hugging Face folder.
        stated: what its config.json says, from `NullsConfig.carried`.
        layout: how its config.json draws sinks, `SinkLayout.to_dict()`.
        catalog: the catalogue's URL; by default NULLS_CATALOG, else that in the registry that nulls.json names.
        offline: whether the folder's own list is enough.

    Returns:
        None for a folder that this project did not write.

    Raises:
        RefusedError: the catalogue cannot be asked, or it revokes a source whose mask id is not known.
        DamagedError: the list, the pointer or the weights are not those that were written.
    """
    pointer = _pointer(folder)
    if stated is None and pointer is None:
        return None
    tensors = weights_digest(folder)
    own_id = weights_id(tensors, layout)
    if pointer is not None:
        _check_pointer(folder, pointer, stated, layout, own_id)
    version = _version(folder, pointer or {}, stated, layout, tensors)
    configured = catalog or os.environ.get("NULLS_CATALOG")
    revoked: Collection[SourceId] = version.revoked
    if configured or (pointer is not None and EXPORTED not in pointer):
        revoked = in_force(version, catalog=configured, offline=offline).revoked.keys()
    in_order = tuple(sorted(revoked))
    masks = None if layout["scheme"] == KEYED else _masks(folder, in_order, stated)
    return Carried(weights_id=own_id, lineage=version.lineage, revoked=in_order, masks=masks)


def _pointer(folder: Path) -> dict[str, Any] | None:
    if not (folder / POINTER).exists():
        return None
    try:
        pointer = read_pointer(folder)
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder / POINTER}: cannot be read ({error}); restore it from a copy") from error
    if not isinstance(pointer, dict):
        raise DamagedError(f"{folder / POINTER}: expected an object; restore it from a copy")
    return pointer


def _check_pointer(
    folder: Path, pointer: dict[str, Any], stated: Carried | None, layout: dict[str, Any], own_id: str
) -> None:
    if pointer.get("layout", layout) != layout:
        raise DamagedError(
            f"{folder}: config.json draws sinks differently than {POINTER} says; restore them from a copy"
        )
    if EXPORTED not in pointer:
        return
    if pointer_digest({key: value for key, value in pointer.items() if key != DIGEST}) != pointer.get(DIGEST):
        raise DamagedError(f"{folder / POINTER} was altered after it was written; restore it from a copy")
    revoked = [] if stated is None else [ids.format_id(source_id) for source_id in stated.revoked]
    if stated is None or revoked != pointer["revoked"] or list(stated.lineage) != pointer["lineage"]:
        raise DamagedError(
            f"{folder}: config.json and {POINTER} differ in what these weights refuse; restore them from a copy"
        )
    if own_id != stated.weights_id:
        raise DamagedError(
            f"{folder}: the weights are not those that were exported; restore them from a copy. If you trained them "
            "further, save them to a folder of their own"
        )


def _version(
    folder: Path, pointer: dict[str, Any], stated: Carried | None, layout: dict[str, Any], tensors: str
) -> ModelVersion:
    """Return the folder as a version of no name, for the catalogue."""
    ancestors = list(pointer.get("lineage", ()))
    revoked = set(pointer.get("revoked", ()))
    if stated is not None:
        ancestors += [stated.weights_id, *stated.lineage]
        revoked |= set(map(ids.format_id, stated.revoked))
    own_id = weights_id(tensors, layout)
    return ModelVersion(
        uri=str(folder),
        name="",
        version=0,
        run_id=None,
        request_id=None,
        experiment_id="",
        tracking_uri="",
        pointer=pointer
        | {
            "layout": layout,
            "weights_sha256": tensors,
            "lineage": [ancestor for ancestor in dict.fromkeys(ancestors) if ancestor != own_id],
            "revoked": sorted(revoked),
        },
    )


def _masks(folder: Path, revoked: tuple[SourceId, ...], stated: Carried | None) -> tuple[int, ...]:
    """Return the mask ids of an imported model's revoked sources: from its table, else from its own list."""
    table = MaskIds.load(folder)
    if table is not None:
        known = table.of_sources(revoked)
        return tuple(known.get(source_id, NO_MASK) for source_id in revoked)
    said = {} if stated is None else dict(zip(stated.revoked, stated.masks or (), strict=False))
    unknown = [source_id for source_id in revoked if source_id not in said]
    if unknown:
        raise RefusedError(
            f"{folder}: source {ids.format_id(unknown[0])} was unlearned since, and the folder lacks the table of mask "
            "ids that says which sinks are its own; copy mask-ids.safetensors from the folder that it was made from"
        )
    return tuple(said[source_id] for source_id in revoked)
