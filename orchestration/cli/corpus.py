"""What the commands about the corpus print: ingest, lookup, explain, sources, snapshots."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from orchestration.output import Output, size, table
from orchestration.settings import Settings
from registry import ids
from registry.errors import UsageError
from registry.schema import Kind

_MAX_LINES = 20  # of a kind; --json has all

Choice = TypeVar("Choice", bound=enum.StrEnum)


def ingest(
    output: Output,
    settings: Settings,
    *,
    inputs: Mapping[str, Sequence[str]],
    shaping: Mapping[str, Any],
    executor: Mapping[str, Any],
    engine: Mapping[str, Any],
    workers: int,
    dry_run: bool,
) -> None:
    """`nulls ingest`; each mapping holds the flags of one subject, as they were given."""
    if not any(inputs.values()):
        raise UsageError("nothing to ingest; name inputs with --wikipedia P, --web P or --books P")
    if workers > 1 and executor["kind"] == "local" and not dry_run:
        from pipelines.stage import fork_server

        fork_server.warm_up()  # before this process imports as much
    from pipelines.filters.rules import FilterConfig, FilterLevel
    from pipelines.ingest import IngestConfig
    from pipelines.ingest import ingest as run
    from pipelines.resolve.engines import Engine
    from pipelines.stage.executors import Execution, ExecutorKind
    from pipelines.text.extract import HtmlExtractor

    config = IngestConfig(
        wikipedia=tuple(inputs["wikipedia"]),
        web=tuple(inputs["web"]),
        books=tuple(inputs["books"]),
        web_source=shaping["web_source"],
        html=_one_of(HtmlExtractor, shaping["html"], "--html"),
        filters=FilterConfig(
            level=_one_of(FilterLevel, shaping["filters"], "--filters"), languages=tuple(shaping["languages"])
        ),
    )
    execution = Execution(
        kind=_one_of(ExecutorKind, executor["kind"], "--executor"),
        ray_address=executor["ray_address"],
        slurm_options=tuple(executor["slurm_options"]),
    )
    with output.progress("ingest") as update:
        report = run(
            config,
            registry_uri=settings.registry_uri,
            workers=workers,
            execution=execution,
            engine=Engine(**{**engine, "runner_options": tuple(engine["runner_options"])}),
            on_progress=update,
            dry_run=dry_run,
        )
    if report.snapshot:
        _record(settings, report.snapshot)
    output.result(report.to_dict(), report.lines)


def remove(output: Output, settings: Settings, queries: list[str], *, workers: int, dry_run: bool) -> None:
    """`nulls remove`."""
    from pipelines.removal.remove import remove as run

    with output.progress("remove") as update:
        report = run(queries, registry_uri=settings.registry_uri, workers=workers, on_progress=update, dry_run=dry_run)
    if report.snapshot:
        _record(settings, report.snapshot)
    output.result(report.to_dict(), report.lines)


def _record(settings: Settings, snapshot_id: str) -> None:
    """Notes a snapshot in the catalogue; a registry at s3:// can do without one."""
    registry = settings.open_registry()
    snapshot, catalog = registry.snapshot(snapshot_id), settings.find_catalog(registry)
    if catalog is not None:
        catalog.record_snapshot(snapshot.id, registry=str(registry.root), parent=snapshot.parent)


def _one_of(choices: type[Choice], text: str, flag: str) -> Choice:
    try:
        return choices(text)
    except ValueError:
        raise UsageError(f"{flag} {text!r}: expected one of {', '.join(choices)}") from None


def lookup(output: Output, settings: Settings, queries: list[str]) -> None:
    """`nulls lookup`."""
    import typer

    from registry.lookup import lookup as find

    snapshot = settings.open_snapshot()
    answers = [find(snapshot, query) for query in queries]

    def lines() -> list[str]:
        found: list[str] = []
        for answer in answers:
            found += [_match_line(match.to_dict()) for match in answer.matches]
            if not answer.found:
                found.append(f"{answer.query}: not found" + "".join(f"; {note}" for note in answer.notes))
                found += [f"  did you mean: {', '.join(answer.suggestions)}"] if answer.suggestions else []
        return found

    output.result([answer.to_dict() for answer in answers], lines)
    if not all(answer.found for answer in answers):
        raise typer.Exit(1)


def explain(output: Output, settings: Settings, document: str) -> None:
    """`nulls explain`."""
    from orchestration.explain import explain as find

    found = find(settings.open_snapshot(), document)

    def lines() -> list[str]:
        rows = [(name, value) for name, value in found.items() if name != "captures" and value is not None]
        text = [f"{name:<13} {value}" for name, value in rows]
        for capture in found["captures"]:
            words = f"{capture['status']}, {capture['reason']}" if capture["reason"] else capture["status"]
            text.append(
                f"also captured {capture['captured']} in {capture['input_file']} at {capture['input_offset']}: {words}"
            )
        return text

    output.result(found, lines)


def sources(output: Output, settings: Settings, *, kind: Kind | None, match: str | None, limit: int | None) -> None:
    """`nulls sources`."""
    from registry.lookup import list_sources

    found = list_sources(settings.open_snapshot(), kind=kind.value if kind else None, match=match, limit=limit)
    data = [
        {
            "source_id": ids.format_id(source.source_id),
            "key": source.key,
            "kind": source.kind,
            "title": source.title,
            "num_documents": source.num_documents,
            "num_bytes": source.num_bytes,
        }
        for source in found
    ]
    header = ("source id", "key", "documents", "bytes", "title")

    def lines() -> list[str]:
        rows = [(d["source_id"], d["key"], d["num_documents"], d["num_bytes"], d["title"] or "") for d in data]
        return table(rows, header) if rows else ["no such source"]

    output.result(data, lines)


def snapshots(output: Output, settings: Settings) -> None:
    """`nulls snapshots`."""
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
    data.sort(key=lambda row: row["created_at"] or "")

    def lines() -> list[str]:
        rows = [
            (
                row["snapshot"][:16] + (" *" if row["newest"] else ""),
                (row["parent"] or "-")[:16],
                row["created_at"] or "-",
                row["inputs"],
                (row["counts"] or {}).get("kept", "-"),
            )
            for row in data
        ]
        return table(rows, ("snapshot", "parent", "created", "inputs", "kept")) if rows else ["no snapshot yet"]

    output.result(data, lines)


def verify(output: Output, settings: Settings) -> None:
    """`nulls snapshots verify`."""
    snapshot = settings.open_snapshot()
    num_bytes = snapshot.verify()
    num_files = len(snapshot.manifest["files"])
    data = {"snapshot": snapshot.id, "ok": True, "files": num_files, "bytes": num_bytes}
    output.result(data, lambda: [f"{snapshot.id}: {num_files} files, {size(num_bytes)}, all as written"])


def diff(output: Output, settings: Settings, before: str | None, after: str | None) -> None:
    """`nulls snapshots diff`."""
    from registry.diff import diff as compare

    registry = settings.open_registry()
    newer = registry.snapshot(after)
    if before is None and newer.parent is None:
        raise UsageError(f"snapshot {newer.id[:12]} has no parent; name the snapshot to compare it with")
    found = compare(registry.snapshot(before or newer.parent), newer)

    def lines() -> list[str]:
        counts = found.to_dict()["counts"]
        text = [f"{found.before[:16]} -> {found.after[:16]}", ", ".join(f"{n} {name}" for name, n in counts.items())]
        for words, entries in (("in", found.added), ("out", found.gone), ("changed", found.changed)):
            text += _first([f"  {words:<8} {_change_line(entry)}" for entry in entries[: _MAX_LINES + 1]], len(entries))
        for words, names in (("input in", found.inputs_added), ("input out", found.inputs_gone)):
            text += _first([f"  {words:<9} {name}" for name in names], len(names))
        fields = [f"  {e['field']}: {e['from']!r} -> {e['to']!r}" for e in found.configuration]
        return text + _first(fields, len(fields))

    output.result(found.to_dict(), lines)


def _first(lines: list[str], count: int) -> list[str]:
    """The first of `count` lines of a kind, and how many more there are."""
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


def _match_line(match: dict[str, Any]) -> str:
    shared = f"; shares text with {', '.join(match['shared_with'])}" if match["shared_with"] else ""
    title = f"  {match['title']!r}" if match["title"] else ""
    return (
        f"{match['source_id']}  {match['key']}{title}  "
        f"(by {match['matched_by']}; {match['num_documents']} documents, {size(match['num_bytes'])}{shared})"
    )
