"""`nulls lookup`, `explain` and `sources`: read a snapshot. Each starts in half a second."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import JsonOption, RegistryOption, SnapshotOption
from orchestration.output import Output, size, table
from orchestration.settings import Settings
from registry import ids
from registry.messages.shown import listed
from registry.schema import Kind

_SUGGESTION_CHARS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookupRequest:
    """The parameters of `nulls lookup`."""

    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="URL, title, ISBN, key or id.")]
    registry: RegistryOption = None
    snapshot: SnapshotOption = None
    as_json: JsonOption = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainRequest:
    """The parameters of `nulls explain`."""

    document: Annotated[str, typer.Argument(metavar="URL|DOC_ID", help="A URL, a title or a document id.")]
    registry: RegistryOption = None
    snapshot: SnapshotOption = None
    as_json: JsonOption = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourcesRequest:
    """The parameters of `nulls sources`."""

    kind: Annotated[Kind | None, typer.Option("--kind", help="Only of this kind.")] = None
    match: Annotated[str | None, typer.Option("--match", metavar="TEXT", help="Key or title contains it.")] = None
    limit: Annotated[int | None, typer.Option("--limit", min=0, metavar="N", help="At most this many; 0: all.")] = 0
    registry: RegistryOption = None
    snapshot: SnapshotOption = None
    as_json: JsonOption = False


def lookup(request: LookupRequest, settings: Settings, output: Output) -> None:
    """Find the source that a URL, title, ISBN, key or id names; exit 1 if one of them names none."""
    from registry.lookup import lookup as find

    snapshot = settings.open_snapshot()
    answers = [find(snapshot, query) for query in request.queries]

    def lines() -> list[str]:
        found: list[str] = []
        for answer in answers:
            found += [_match_line(match.to_dict()) for match in answer.matches]
            if not answer.found:
                found.append(f"{answer.query}: not found" + "".join(f"; {note}" for note in answer.notes))
                found += (
                    [f"  did you mean: {listed(answer.suggestions, most_chars=_SUGGESTION_CHARS)}"]
                    if answer.suggestions
                    else []
                )
        return found

    output.result([answer.to_dict() for answer in answers], lines)
    if not all(answer.found for answer in answers):
        raise typer.Exit(1)


def explain(request: ExplainRequest, settings: Settings, output: Output) -> None:
    """Show what happened to one document: its status, the file it was read from, the shard that holds it."""
    from orchestration.explain import explain as find

    found = find(settings.open_snapshot(), request.document)

    def lines() -> list[str]:
        fields = [(name, value) for name, value in found.items() if name != "captures" and value is not None]
        text = [f"{name:<13} {value}" for name, value in fields]
        for capture in found["captures"]:
            ending = f"{capture['status']}, {capture['reason']}" if capture["reason"] else capture["status"]
            text.append(
                f"also captured {capture['captured']} in {capture['input_file']} at {capture['input_offset']}: {ending}"
            )
        return text

    output.result(found, lines)


def sources(request: SourcesRequest, settings: Settings, output: Output) -> None:
    """List the sources of a snapshot."""
    from registry.lookup import list_sources

    kind = request.kind.value if request.kind else None
    found = list_sources(settings.open_snapshot(), kind=kind, match=request.match, limit=request.limit or None)
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
        cells = [(d["source_id"], d["key"], d["num_documents"], d["num_bytes"], d["title"] or "") for d in data]
        return table(cells, header) if cells else ["no such source"]

    output.result(data, lines)


def _match_line(match: dict[str, Any]) -> str:
    shared = f"; shares text with {listed(match['shared_with'])}" if match["shared_with"] else ""
    title = f"  {match['title']!r}" if match["title"] else ""
    return (
        f"{match['source_id']}  {match['key']}{title}  "
        f"(by {match['matched_by']}; {match['num_documents']} documents, {size(match['num_bytes'])}{shared})"
    )
