"""What changed between two snapshots: sources in, out and changed, inputs, configuration.

A source has changed if other documents, or other texts, are trained under it: compared by a digest of each source over
the ids and hashes of its kept documents, whatever their order. One pass over `documents` and `sources` of each
snapshot; memory is a few hundred bytes a source.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from registry.ids import format_id
from registry.schema import Status
from registry.snapshot import Snapshot

_MASK = (1 << 64) - 1
_COLUMNS = ["source_id", "key", "title", "num_documents", "num_bytes"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two snapshots; sources as {"source_id" (hex), "key", "title", "num_documents", "num_bytes"}.

    Attributes:
        before, after: their ids.
        added, gone: sources that only the one or the other has.
        changed: sources of both with {"before", "after"}: num_documents and num_bytes of each.
        num_same: sources of both that are as they were.
        inputs_added, inputs_gone: names.
        configuration: {"field", "before", "after"} of what differs.
    """

    before: str
    after: str
    added: tuple[dict[str, Any], ...]
    gone: tuple[dict[str, Any], ...]
    changed: tuple[dict[str, Any], ...]
    num_same: int
    inputs_added: tuple[str, ...]
    inputs_gone: tuple[str, ...]
    configuration: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """The shape of the command line's JSON."""
        return {
            "from": self.before,
            "to": self.after,
            "in": list(self.added),
            "out": list(self.gone),
            "changed": list(self.changed),
            "counts": {
                "in": len(self.added),
                "out": len(self.gone),
                "changed": len(self.changed),
                "same": self.num_same,
            },
            "inputs": {"added": list(self.inputs_added), "gone": list(self.inputs_gone)},
            "configuration": list(self.configuration),
        }


def diff(before: Snapshot, after: Snapshot) -> Difference:
    """Compares two snapshots, of one registry or of two.

    Raises:
        DamagedError: a table of one cannot be read.
    """
    one, two = _sources(before), _sources(after)
    digests = [_digests(snapshot) for snapshot in (before, after)]
    common = [number for number in two if number in one]
    changed = [n for n in common if digests[0].get(n) != digests[1].get(n)]
    inputs = [{(e["name"], e["sha256"]) for e in snapshot.manifest["inputs"]} for snapshot in (before, after)]
    return Difference(
        before=before.id,
        after=after.id,
        added=tuple(two[n] for n in two if n not in one),
        gone=tuple(one[n] for n in one if n not in two),
        changed=tuple(_change(one[n], two[n]) for n in changed),
        num_same=len(common) - len(changed),
        inputs_added=tuple(sorted(name for name, _ in inputs[1] - inputs[0])),
        inputs_gone=tuple(sorted(name for name, _ in inputs[0] - inputs[1])),
        configuration=tuple(_fields(before.manifest["configuration"], after.manifest["configuration"])),
    )


def _sources(snapshot: Snapshot) -> dict[int, dict[str, Any]]:
    rows = (row for batch in snapshot.batches("sources", _COLUMNS) for row in batch.to_pylist())
    return {row["source_id"]: {**row, "source_id": format_id(row["source_id"])} for row in rows}


def _digests(snapshot: Snapshot) -> dict[int, int]:
    """Source -> sum modulo 2^64 of the hashes of what is trained under it."""
    found: dict[int, int] = {}
    for batch in snapshot.batches("documents", ["source_id", "doc_id", "text_sha256", "status"]):
        kept = batch.filter(pc.equal(batch["status"], Status.KEPT.value))
        columns = (kept[name].to_pylist() for name in ("source_id", "doc_id", "text_sha256"))
        for source_id, doc_id, sha256 in zip(*columns, strict=True):
            value = hashlib.blake2b(f"{doc_id} {sha256}".encode(), digest_size=8).digest()
            found[source_id] = (found.get(source_id, 0) + int.from_bytes(value, "big")) & _MASK
    return found


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    sizes = ("num_documents", "num_bytes")
    return {
        **{name: after[name] for name in ("source_id", "key", "title")},
        "before": {name: before[name] for name in sizes},
        "after": {name: after[name] for name in sizes},
    }


def _fields(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[dict[str, Any]]:
    for name in sorted(before.keys() | after.keys()):
        one, two = before.get(name), after.get(name)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            yield from _fields(one, two, f"{prefix}{name}.")
        elif one != two:
            yield {"field": prefix + name, "before": one, "after": two}
