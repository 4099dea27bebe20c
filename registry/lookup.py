"""URL | title | ISBN | key | id -> the sources that a snapshot holds.

A query is turned into candidates (`registry.identity.candidates`), each of which names a source id or an alias; ids are
read from `sources`, aliases from `aliases`, both sorted files, so a lookup touches a few row groups however large the
snapshot is: about 20 ms, and under a second with the start of Python. All matches are returned, the narrowest first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow.compute as pc

from registry import ids
from registry.errors import NotFoundError, UsageError
from registry.identity import Candidate, candidates, canonical_title, fold_title
from registry.schema import AliasKind
from registry.snapshot import Snapshot

_NUM_SUGGESTIONS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A source as a snapshot knows it; `num_*` count what is trained under it."""

    source_id: int
    key: str
    kind: str
    title: str | None
    num_documents: int
    num_bytes: int
    shared_with: tuple[str, ...] = ()  # of a source: keys that own text with it; of a shared source: its owners


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """A source that a query names, and how."""

    source: Source
    matched_by: str

    def to_dict(self) -> dict[str, Any]:
        """The shape of the command line's JSON."""
        fields = dataclasses.asdict(self.source) | {"source_id": ids.format_id(self.source.source_id)}
        fields["shared_with"] = list(self.source.shared_with)
        return {**fields, "matched_by": self.matched_by}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a query came to. `notes` say what is known where nothing was found."""

    query: str
    matches: tuple[Match, ...] = ()
    suggestions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether the snapshot holds a source of that name."""
        return bool(self.matches)

    def to_dict(self) -> dict[str, Any]:
        """The shape of the command line's JSON."""
        return {
            "query": self.query,
            "found": self.found,
            "matches": [match.to_dict() for match in self.matches],
            "suggestions": list(self.suggestions),
            "notes": list(self.notes),
        }


def lookup(snapshot: Snapshot, query: str) -> Answer:
    """Resolves one query against a snapshot."""
    hits: dict[int, str] = {}
    notes: list[str] = []
    for candidate in candidates(query, snapshot.wikis):
        if candidate.source_id is not None:
            hits.setdefault(candidate.source_id, candidate.matched_by)
        else:
            for number, how in _alias_hits(snapshot, candidate, notes):
                hits.setdefault(number, how)
    known = read_sources(snapshot, hits)
    matches = tuple(Match(source=known[n], matched_by=how) for n, how in hits.items() if n in known)
    if matches:
        return Answer(query=query, matches=matches)
    return Answer(query=query, suggestions=_suggest(snapshot, query), notes=tuple(dict.fromkeys(notes)))


def resolve(snapshot: Snapshot, query: str) -> Source:
    """The one source that `query` names: the narrowest, where a URL names an article and its site.

    Raises:
        NotFoundError: none; the message has suggestions.
        UsageError: a title that several sources have.
    """
    answer = lookup(snapshot, query)
    if not answer.found:
        hint = "; did you mean: " + ", ".join(answer.suggestions) if answer.suggestions else ""
        notes = "".join(f"; {note}" for note in answer.notes)
        raise NotFoundError(f"no source {query!r} in snapshot {snapshot.id[:12]}{notes}{hint}")
    first = answer.matches[0]
    rivals = [m.source.key for m in answer.matches if m.matched_by == first.matched_by]
    if len(rivals) > 1 and first.matched_by != "url":
        raise UsageError(f"{query!r} is ambiguous: {', '.join(rivals)}; name one of these keys")
    return first.source


def read_sources(snapshot: Snapshot, source_ids: Iterable[int]) -> dict[int, Source]:
    """The sources with these ids that the snapshot holds."""
    wanted = list(source_ids)
    if not wanted:
        return {}
    rows = snapshot.where("sources", "source_id", wanted).drop_columns(["placements"]).to_pylist()
    partners = shared_with(snapshot, [row["source_id"] for row in rows])
    return {row["source_id"]: Source(**row, shared_with=partners.get(row["source_id"], ())) for row in rows}


def shared_with(snapshot: Snapshot, source_ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Source id -> the keys of the sources that own text together with it (its owners, for a shared source)."""
    owners = snapshot.table("owners")
    wanted = set(source_ids)
    groups: dict[int, list[int]] = {}
    for row in owners.to_pylist():
        groups.setdefault(row["source_id"], []).append(row["owner_id"])
    partners: dict[int, set[int]] = {}
    for group, members in groups.items():
        if group in wanted:
            partners.setdefault(group, set()).update(members)
        for member in wanted.intersection(members):
            partners.setdefault(member, set()).update(set(members) - {member})
    everyone = sorted(set().union(*partners.values())) if partners else []
    rows = snapshot.where("sources", "source_id", everyone).select(["source_id", "key"]).to_pylist() if everyone else []
    keys = {row["source_id"]: row["key"] for row in rows}
    return {number: tuple(sorted(keys[m] for m in members if m in keys)) for number, members in partners.items()}


def list_sources(
    snapshot: Snapshot, *, kind: str | None = None, match: str | None = None, limit: int | None = None
) -> list[Source]:
    """Sources in id order, of a kind, whose key or title contains `match` (any case)."""
    found: list[Source] = []
    for batch in snapshot.batches("sources", ["source_id", "key", "kind", "title", "num_documents", "num_bytes"]):
        mask = pc.equal(batch["kind"], kind) if kind else None
        rows = (batch.filter(mask) if mask is not None else batch).to_pylist()
        for row in rows:
            text = f"{row['key']}\n{row['title'] or ''}".casefold()
            if match is None or match.casefold() in text:
                found.append(Source(**row))
                if limit is not None and len(found) >= limit:
                    return found
    return found


def _alias_hits(snapshot: Snapshot, candidate: Candidate, notes: list[str]) -> list[tuple[int, str]]:
    assert candidate.alias is not None
    rows = snapshot.where("aliases", "alias_hash", [ids.alias_hash(fold_title(candidate.alias))]).to_pylist()
    if candidate.scope:
        rows = [row for row in rows if row["scope"] == candidate.scope]
    exact = [row for row in rows if canonical_title(row["alias"]) == canonical_title(candidate.alias)]
    hits = []
    for row in exact or rows:
        if row["source_id"] is None:
            notes.append(f"{row['alias']!r} redirects to {row['target']!r}, which is not in this snapshot")
        else:
            how = row["kind"] if candidate.matched_by == "title" else candidate.matched_by
            hits.append((row["source_id"], how))
    return sorted(hits, key=lambda hit: hit[1] == AliasKind.REDIRECT)


def _suggest(snapshot: Snapshot, query: str) -> tuple[str, ...]:
    """Titles close to `query`: the same words first, then a close spelling."""
    import difflib

    folded = fold_title(query)
    titles: dict[str, str] = {}
    for batch in snapshot.batches("aliases", ["alias", "source_id"]):
        for row in batch.to_pylist():
            if row["source_id"] is not None:
                titles.setdefault(fold_title(row["alias"]), row["alias"])
    words = set(folded.split())
    containing = [
        title for key, title in titles.items() if len(folded) >= 3 and (folded in key or words < set(key.split()))
    ]
    close = [titles[key] for key in difflib.get_close_matches(folded, titles, n=_NUM_SUGGESTIONS, cutoff=0.75)]
    ranked = close + sorted(containing, key=lambda title: (len(title), title))
    return tuple(dict.fromkeys(ranked))[:_NUM_SUGGESTIONS]
