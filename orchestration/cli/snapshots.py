"""`nulls snapshots [verify|diff]`: list a registry's snapshots, verify one, compare two."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import JsonOption, RegistryOption
from orchestration.output import Output, size, table
from orchestration.settings import Settings
from registry.errors import UsageError

_MAX_LINES = 20  # of each kind of change; --json has all of them


@dataclasses.dataclass(frozen=True, kw_only=True)
class SnapshotsRequest:
    """The parameters of `nulls snapshots`."""

    registry: RegistryOption = None
    as_json: JsonOption = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """The parameters of `nulls snapshots verify`."""

    snapshot: Annotated[str | None, typer.Argument(metavar="ID", help="By default the newest.")] = None
    registry: RegistryOption = None
    as_json: JsonOption = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffRequest:
    """The parameters of `nulls snapshots diff`."""

    before: Annotated[
        str | None, typer.Argument(metavar="A", help="Id, or its beginning; by default the parent of B.")
    ] = None
    after: Annotated[str | None, typer.Argument(metavar="B", help="By default the newest.")] = None
    registry: RegistryOption = None
    as_json: JsonOption = False


def list_snapshots(request: SnapshotsRequest, settings: Settings, output: Output) -> None:
    """List the registry's snapshots, verify one, or compare two."""
    registry = settings.open_registry()
    newest = registry.newest_id()
    catalog = settings.find_catalog(registry)
    times = catalog.snapshot_times() if catalog else {name: registry.committed_at(name) for name in registry.ids()}
    data: list[dict[str, Any]] = []
    for snapshot_id in registry.ids():
        snapshot = registry.snapshot(snapshot_id)
        data.append(
            {
                "snapshot": snapshot.id,
                "parent": snapshot.parent,
                "created_at": times.get(snapshot.id),
                "newest": snapshot.id == newest,
                "inputs": len(snapshot.manifest["inputs"]),
                "counts": snapshot.manifest.get("counts"),
            }
        )
    data.sort(key=lambda entry: entry["created_at"] or "")

    def lines() -> list[str]:
        cells = [
            (
                entry["snapshot"][:16] + (" *" if entry["newest"] else ""),
                (entry["parent"] or "-")[:16],
                entry["created_at"] or "-",
                entry["inputs"],
                (entry["counts"] or {}).get("kept", "-"),
            )
            for entry in data
        ]
        return table(cells, ("snapshot", "parent", "created", "inputs", "kept")) if cells else ["no snapshot yet"]

    output.result(data, lines)


def verify(request: VerifyRequest, settings: Settings, output: Output) -> None:
    """Read every file of a snapshot and compare its hash; exit 3 naming each that is damaged."""
    snapshot = settings.open_snapshot()
    num_bytes = snapshot.verify()
    num_files = len(snapshot.manifest["files"])
    data = {"snapshot": snapshot.id, "ok": True, "files": num_files, "bytes": num_bytes}
    output.result(data, lambda: [f"{snapshot.id}: {num_files} files, {size(num_bytes)}, all as written"])


def diff(request: DiffRequest, settings: Settings, output: Output) -> None:
    """Show which sources are in, out and changed from A to B; exit 0 whether or not they differ."""
    from registry.diff import diff as compare

    registry = settings.open_registry()
    newer = registry.snapshot(request.after)
    if request.before is None and newer.parent is None:
        raise UsageError(f"snapshot {newer.id[:12]} has no parent; name the snapshot to compare it with")
    found = compare(registry.snapshot(request.before or newer.parent), newer)

    def lines() -> list[str]:
        counts = found.to_dict()["counts"]
        text = [f"{found.before[:16]} -> {found.after[:16]}", ", ".join(f"{n} {name}" for name, n in counts.items())]
        for label, entries in (("in", found.added), ("out", found.gone), ("changed", found.changed)):
            text += _first([f"  {label:<8} {_change_line(entry)}" for entry in entries[: _MAX_LINES + 1]], len(entries))
        for label, names in (("input in", found.inputs_added), ("input out", found.inputs_gone)):
            text += _first([f"  {label:<9} {name}" for name in names], len(names))
        fields = [f"  {e['field']}: {e['from']!r} -> {e['to']!r}" for e in found.configuration]
        return text + _first(fields, len(fields))

    output.result(found.to_dict(), lines)


def _first(lines: list[str], count: int) -> list[str]:
    """Return the first of `count` lines, and a line that says how many more there are."""
    more = count - _MAX_LINES
    return lines[:_MAX_LINES] + ([f"  ... and {more} more; --json has all"] if more > 0 else [])


def _change_line(entry: Mapping[str, Any]) -> str:
    title = f"  {entry['title']!r}" if entry["title"] else ""
    if "before" not in entry:
        return f"{entry['key']}{title}: {entry['num_documents']} documents, {size(entry['num_bytes'])}"
    one, two = entry["before"], entry["after"]
    return (
        f"{entry['key']}{title}: {one['num_documents']} documents, {size(one['num_bytes'])} -> "
        f"{two['num_documents']} documents, {size(two['num_bytes'])}"
    )
