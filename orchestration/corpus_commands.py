"""What the commands about the corpus print: ingest, lookup, explain, sources, snapshots."""

from __future__ import annotations

from typing import Any

from orchestration.output import Output, size, table
from orchestration.settings import Settings
from registry import ids
from registry.errors import UsageError
from registry.schema import Kind


def ingest(
    output: Output,
    settings: Settings,
    *,
    wikipedia: list[str],
    workers: int,
    engine: str,
    runner: str,
    runner_options: list[str],
    dry_run: bool,
) -> None:
    """`nulls ingest`."""
    from pipelines.ingest import IngestConfig
    from pipelines.ingest import ingest as run

    if not wikipedia:
        raise UsageError("nothing to ingest; name dumps with --wikipedia P")
    config = IngestConfig(wikipedia=tuple(wikipedia))
    with output.progress("ingest") as update:
        report = run(
            config,
            registry_uri=settings.registry_uri,
            workers=workers,
            engine=engine,
            runner=runner,
            runner_options=runner_options,
            on_progress=update,
            dry_run=dry_run,
        )
    if not dry_run:
        snapshot = settings.open_registry().snapshot(report.snapshot)
        settings.open_catalog().record_snapshot(
            snapshot.id, registry=str(settings.open_registry().root), parent=snapshot.parent
        )
    output.result(report.to_dict(), report.lines)


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
    newest = registry.snapshot().id if registry.ids() else None
    times = settings.open_catalog(registry.root).snapshot_times()
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


def _match_line(match: dict[str, Any]) -> str:
    shared = f"; shares text with {', '.join(match['shared_with'])}" if match["shared_with"] else ""
    title = f"  {match['title']!r}" if match["title"] else ""
    return (
        f"{match['source_id']}  {match['key']}{title}  "
        f"(by {match['matched_by']}; {match['num_documents']} documents, {size(match['num_bytes'])}{shared})"
    )
