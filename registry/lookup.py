"""Look up the sources that a snapshot holds by URL, title, ISBN, key or id.

A query is turned into candidates (`registry.identity.candidates`), each of which names a source id or an alias; ids are
read from `sources`, aliases from `aliases`. Both files are sorted, so a lookup reads a few row groups however large the
snapshot is: about 15 ms, 0.4 s with the start of Python. All matches are returned, the narrowest first.
"""

from __future__ import annotations

import dataclasses
import functools
import heapq
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from registry import ids
from registry.errors import NotFoundError, UsageError
from registry.identity import Candidate, WebSource, candidates, canonical_title, fold_title
from registry.ids import SourceId
from registry.schema import AliasKind, Kind
from registry.shown import listed
from registry.snapshot import Snapshot
from registry.storage.parquet import int64_array

_NUM_SUGGESTIONS = 5
_MAX_COMPARED = 20_000  # titles compared letter by letter for suggestions: about 0.5 s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A source in a snapshot; `num_documents` and `num_bytes` (UTF-8) count the text that is trained under it."""

    source_id: SourceId
    key: str
    kind: str
    title: str | None
    num_documents: int
    num_bytes: int
    shared_with: tuple[str, ...] = ()  # keys of sources that own text with it; for a shared source: its owners


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """A source that a query names, and the form that matched."""

    source: Source
    matched_by: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as the command line's JSON has it."""
        fields = dataclasses.asdict(self.source) | {"source_id": ids.format_id(self.source.source_id)}
        fields["shared_with"] = list(self.source.shared_with)
        return {**fields, "matched_by": self.matched_by}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of a lookup. `notes` explain a query without matches: a removed source, a redirect to no source."""

    query: str
    matches: tuple[Match, ...] = ()
    suggestions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether the snapshot holds a source that the query names."""
        return bool(self.matches)

    def to_dict(self) -> dict[str, Any]:
        """Return it as the command line's JSON has it."""
        return {
            "query": self.query,
            "found": self.found,
            "matches": [match.to_dict() for match in self.matches],
            "suggestions": list(self.suggestions),
            "notes": list(self.notes),
        }


def lookup(snapshot: Snapshot, query: str) -> Answer:
    """Find the sources of a snapshot that `query` names."""
    hits: dict[SourceId, str] = {}
    notes: list[str] = []
    for candidate in candidates(query, snapshot.wikis, snapshot.web_source):
        if candidate.source_id is not None:
            hits.setdefault(candidate.source_id, candidate.matched_by)
        else:
            for source_id, how in _alias_hits(snapshot, candidate, notes):
                hits.setdefault(source_id, how)
    known = read_sources(snapshot, hits)
    matches = tuple(Match(source=known[n], matched_by=how) for n, how in hits.items() if n in known)
    if matches:
        return Answer(query=query, matches=matches)
    notes += _removals(snapshot, [c.source_id for c in candidates(query, snapshot.wikis, snapshot.web_source)])
    return Answer(query=query, suggestions=_suggest(snapshot, query), notes=tuple(dict.fromkeys(notes)))


def _removals(snapshot: Snapshot, wanted: list[SourceId | None]) -> list[str]:
    removed = {int(entry["source_id"], 16): entry["key"] for entry in snapshot.removed}
    return [f"{removed[source_id]} was removed from this registry" for source_id in wanted if source_id in removed]


def resolve(snapshot: Snapshot, query: str) -> Source:
    """Return the one source that `query` names: the narrowest, if a URL names an article and its site.

    The URL of an article or a book that the snapshot does not hold never means the site that it is on: a request to
    remove one article must not remove a whole site.

    Raises:
        NotFoundError: there is no such source, or only the site; the message has suggestions.
        UsageError: several sources have that title.
    """
    answer = lookup(snapshot, query)
    if not answer.found:
        hint = "; did you mean: " + listed(answer.suggestions) if answer.suggestions else ""
        notes = "".join(f"; {note}" for note in answer.notes)
        raise NotFoundError(f"no source {query!r} in snapshot {snapshot.id[:12]}{notes}{hint}")
    first = answer.matches[0]
    rivals = [m.source.key for m in answer.matches if m.matched_by == first.matched_by]
    if len(rivals) > 1 and first.matched_by != "url":
        raise UsageError(f"{query!r} is ambiguous: {listed(rivals)}; name one of these keys")
    if _is_only_its_site(snapshot, query, first.source):
        raise NotFoundError(
            f"snapshot {snapshot.id[:12]} has no source for {query!r}, only the whole site; "
            f"if you mean the site, name it: {first.source.key}"
        )
    return first.source


def _is_only_its_site(snapshot: Snapshot, query: str, found: Source) -> bool:
    if found.kind != Kind.WEB or snapshot.web_source is WebSource.PAGE:
        return False
    meant = candidates(query, snapshot.wikis, snapshot.web_source)
    narrowest = next((candidate for candidate in meant if candidate.matched_by == "url"), None)
    return narrowest is not None and narrowest.source_id != found.source_id


def read_sources(snapshot: Snapshot, source_ids: Iterable[int]) -> dict[int, Source]:
    """Return those of the sources with these ids that the snapshot holds, by id."""
    wanted = list(source_ids)
    if not wanted:
        return {}
    rows = snapshot.where("sources", "source_id", wanted).drop_columns(["placements"]).to_pylist()
    partners = shared_with(snapshot, [row["source_id"] for row in rows])
    return {row["source_id"]: Source(**row, shared_with=partners.get(row["source_id"], ())) for row in rows}


def shared_with(snapshot: Snapshot, source_ids: Sequence[int]) -> dict[SourceId, tuple[str, ...]]:
    """Return, by source id, the keys of sources that own text together with it (for a shared source: its owners)."""
    wanted = int64_array(source_ids)
    owners = snapshot.table("owners")
    groups = owners.filter(pc.is_in(owners["owner_id"], value_set=wanted))["source_id"]
    groups = pa.chunked_array([*groups.chunks, wanted])
    partners: dict[SourceId, set[SourceId]] = {}
    for group, owned in _owned(owners.filter(pc.is_in(owners["source_id"], value_set=groups.unique()))).items():
        for source_id in owned.intersection(source_ids) | {group}.intersection(source_ids):
            partners.setdefault(source_id, set()).update(owned - {source_id})
    everyone = sorted(set().union(*partners.values()))
    rows = snapshot.where("sources", "source_id", everyone).select(["source_id", "key"]).to_pylist() if everyone else []
    keys = {row["source_id"]: row["key"] for row in rows}
    return {
        source_id: tuple(sorted(keys[member] for member in members if member in keys))
        for source_id, members in partners.items()
    }


def _owned(owners: pa.Table) -> dict[SourceId, set[SourceId]]:
    groups: dict[SourceId, set[SourceId]] = {}
    for row in owners.to_pylist():
        groups.setdefault(row["source_id"], set()).add(row["owner_id"])
    return groups


def list_sources(
    snapshot: Snapshot, *, kind: str | None = None, match: str | None = None, limit: int | None = None
) -> list[Source]:
    """Return sources in id order: those of `kind`, whose key or title contains `match` in any case, at most `limit`."""
    wanted = None if match is None else match.casefold()
    columns = ["source_id", "key", "kind", "title", "num_documents", "num_bytes"]
    rows = (row for batch in snapshot.batches("sources", columns) for row in batch.to_pylist())
    found = (row for row in rows if kind in (None, row["kind"]) and _mentions(row, wanted))
    return [Source(**row) for row in itertools.islice(found, limit)]


def _mentions(row: dict[str, Any], folded: str | None) -> bool:
    return folded is None or folded in f"{row['key']}\n{row['title'] or ''}".casefold()


def _alias_hits(snapshot: Snapshot, candidate: Candidate, notes: list[str]) -> list[tuple[SourceId, str]]:
    """Return (source id, how it matched) for an alias: exact spellings, else those that differ in case or form."""
    assert candidate.alias is not None
    rows = snapshot.where("aliases", "alias_hash", [ids.alias_hash(fold_title(candidate.alias))]).to_pylist()
    rows = [row for row in rows if candidate.scope in (None, row["scope"])]
    title = canonical_title(candidate.alias)
    exact = [row for row in rows if canonical_title(row["alias"]) == title]
    for row in exact or rows:
        if row["source_id"] is None:
            notes.append(f"{row['alias']!r} redirects to {row['target']!r}, which is not in this snapshot")
    held = [[row for row in found if row["source_id"] is not None] for found in (exact, rows)]
    best = sorted(held[0] or held[1], key=lambda row: row["kind"] == AliasKind.REDIRECT)
    by_title = candidate.matched_by == "title"
    return [(row["source_id"], row["kind"] if by_title else candidate.matched_by) for row in best]


def _suggest(snapshot: Snapshot, query: str) -> tuple[str, ...]:
    """Return titles close to `query`: close spellings first, then titles that contain its words, the shortest first."""
    import difflib

    folded = fold_title(query)
    if not folded:
        return ()
    near: dict[str, str] = {}
    containing: list[str] = []
    for batch in snapshot.batches("aliases", ["alias", "source_id"]):
        aliases = batch["alias"].filter(pc.is_valid(batch["source_id"]))
        lowered = pc.utf8_lower(aliases)
        if len(folded) >= 3:
            containing += aliases.filter(_holds_words(lowered, folded)).to_pylist()
            containing = heapq.nsmallest(_NUM_SUGGESTIONS, set(containing), key=_shortest_first)
        near |= {fold_title(alias): alias for alias in aliases.filter(_spelled_alike(lowered, folded)).to_pylist()}
    close = difflib.get_close_matches(folded, list(near)[:_MAX_COMPARED], n=_NUM_SUGGESTIONS, cutoff=0.75)
    ranked = [near[key] for key in close] + containing
    return tuple(dict.fromkeys(ranked))[:_NUM_SUGGESTIONS]


def _shortest_first(title: str) -> tuple[int, str]:
    return len(title), title


def _holds_words(lowered: pa.Array, folded: str) -> pa.Array:
    masks = [pc.match_substring(lowered, word) for word in folded.split()]
    return functools.reduce(pc.and_, masks)


def _spelled_alike(lowered: pa.Array, folded: str) -> pa.Array:
    """Select the titles to compare letter by letter: similar length, the same first two or last three letters."""
    length, margin = len(folded), max(1, len(folded) // 3)
    sizes = pc.utf8_length(lowered)
    low, high = int64_array([length - margin, length + margin])  # as Arrow scalars: see int64_array
    like = pc.and_(pc.greater_equal(sizes, low), pc.less_equal(sizes, high))
    return pc.and_(like, pc.or_(pc.starts_with(lowered, folded[:2]), pc.ends_with(lowered, folded[-3:])))
