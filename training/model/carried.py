"""What travels with weights in their own config.json: the sources that they refuse, their id, and their lineage.

Weights leave the stores that know what is revoked in them: as an exported folder, as a fine-tune, as a copy. So these
facts are fields of the configuration, which `save_pretrained` keeps, with a digest over all of them: a list that was
shortened by hand is damage. Whoever removes the fields and the digest together makes other weights of them, which this
cannot prevent: the sinks of a revoked source stay in the tensors until they are erased.

Run: ``Carried.of_config(json.loads(text))``. Cost: microseconds, and 20 bytes of config.json a revoked source.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from registry import ids
from registry.errors import DamagedError
from registry.ids import SourceId

FIELDS = ("nulls_weights_id", "nulls_lineage", "nulls_revoked", "nulls_revoked_masks", "nulls_digest")
_WEIGHTS_ID = re.compile(r"[0-9a-f]{64}")
NO_MASK = -1
"""In place of the mask id of a source that an imported model was not trained on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Carried:
    """What travels with weights.

    Attributes:
        weights_id: the weights that the list was in force in (`training.serving.version.weights_id`); after a fine-tune
            those that it started from.
        lineage: ids of the weights that those were made from, the nearest first.
        revoked: the refused sources, in the order of their ids.
        masks: for an imported model the mask id of each of them, else NO_MASK; None for a model trained here, whose
            mask ids are its source ids.
    """

    weights_id: str
    lineage: tuple[str, ...] = ()
    revoked: tuple[SourceId, ...] = ()
    masks: tuple[int, ...] | None = None

    def to_config(self) -> dict[str, Any]:
        """Return the fields of config.json, with the digest over the others."""
        fields = {
            "nulls_weights_id": self.weights_id,
            "nulls_lineage": list(self.lineage),
            "nulls_revoked": [ids.format_id(source_id) for source_id in self.revoked],
            "nulls_revoked_masks": None if self.masks is None else list(self.masks),
        }
        return fields | {"nulls_digest": _digest(fields)}

    @classmethod
    def of_config(cls, config: Mapping[str, Any], *, where: str = "config.json") -> Carried | None:
        """Read the fields of a configuration; None if it has none of them.

        Args:
            config: with these fields among others.
            where: for the message.

        Raises:
            DamagedError: the fields are not what was written.
        """
        fields: dict[str, Any] = {name: config.get(name) for name in FIELDS}
        if all(value is None for value in fields.values()):
            return None
        stated = fields.pop("nulls_digest")
        try:
            found = cls(
                weights_id=fields["nulls_weights_id"],
                lineage=tuple(fields["nulls_lineage"]),
                revoked=tuple(SourceId(int(text, 16)) for text in fields["nulls_revoked"]),
                masks=None if fields["nulls_revoked_masks"] is None else tuple(fields["nulls_revoked_masks"]),
            )
            is_whole = _digest(fields) == stated and found._is_right()
        except (TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise DamagedError(
                f"{where}: what these weights refuse (nulls_revoked) was altered after it was written; restore it from "
                "a copy"
            )
        return found

    def _is_right(self) -> bool:
        has_masks = self.masks is None or len(self.masks) == len(self.revoked)
        return has_masks and all(_WEIGHTS_ID.fullmatch(one) for one in (self.weights_id, *self.lineage))


def _digest(fields: Mapping[str, Any]) -> str:
    text = json.dumps(dict(fields), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
