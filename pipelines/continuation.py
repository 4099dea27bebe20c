"""Decide which snapshot an ingest continues, and which inputs it holds already, from manifests.

A registry's newest snapshot is the parent of the next. Inputs that it holds are not read again; a configuration that
differs from the parent's is refused, since the same text would be treated differently in two parts of one snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.inputs import Input
from registry.errors import DamagedError, NotFoundError, UsageError
from registry.snapshot import Registry, Snapshot


def parent_of(registry: Registry, inputs: Sequence[Input]) -> Snapshot | None:
    """Return the newest snapshot, if there is one.

    If it holds all of `inputs` and is damaged, its parent is returned instead, so that ingesting again repairs it.

    Raises:
        DamagedError: its manifest cannot be read.
    """
    try:
        newest = registry.snapshot()
    except NotFoundError:
        return None
    if is_covered(inputs, newest):
        try:
            newest.verify()
        except DamagedError:
            return registry.snapshot(newest.parent) if newest.parent else None
    return newest


def is_covered(inputs: Sequence[Input], snapshot: Snapshot) -> bool:
    """Return whether `snapshot` holds all of `inputs`."""
    return not new_inputs(inputs, snapshot)


def new_inputs(inputs: Sequence[Input], snapshot: Snapshot | None) -> list[Input]:
    """Return the `inputs` that `snapshot` does not hold, by name and content."""
    held = {(entry["name"], entry["sha256"]) for entry in snapshot.manifest["inputs"]} if snapshot else set()
    return [file for file in inputs if (file.name, file.sha256) not in held]


def check_configuration(snapshot: Snapshot, configuration: Mapping[str, Any]) -> None:
    """Check that `configuration` is that of the snapshot to continue.

    Raises:
        UsageError: it is not; the message names each field that differs.
    """
    theirs, ours = dict(_flat(snapshot.manifest["configuration"])), dict(_flat(configuration))
    differing = [
        f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if differing:
        raise UsageError(
            f"snapshot {snapshot.id[:12]} was made with another configuration ({'; '.join(differing)}); "
            "use the same, or ingest into a fresh registry with --registry"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
