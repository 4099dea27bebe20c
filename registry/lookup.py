"""Look up the sources that a snapshot holds by URL, title, ISBN, key or id.

A query is turned into candidates (`registry.identity.candidates`), each of which names a source id or an alias; ids are
read from `sources`, aliases from `aliases`. Both files are sorted, so a lookup reads a few row groups however large the
snapshot is: about 15 ms, 0.4 s with the start of Python. All matches are returned, the narrowest first.

Many queries at once (`lookup_all`, `resolve_all`) get the same answers, and each file is read once for all of them:
10,000 in 2 s.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import heapq
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from registry import ids
from registry.errors import NotFoundError, NullsError, UsageError
from registry.identity import Candidate, WebSource, candidates, canonical_title, fold_title
from registry.ids import SourceId
from registry.messages.shown import listed
from registry.schema import AliasKind, Kind
from registry.snapshot import Snapshot
from registry.storage.parquet import int64_array

_NUM_SUGGESTIONS = 5
_MAX_COMPARED = 20_000  # titles compared letter by letter for suggestions: about 0.5 s
MAX_SUGGESTED = 100
"""Of many queries that name nothing, as many get suggestions: each compares itself with all titles."""


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


class Problem(enum.StrEnum):
    """Why a query names no one source."""

    NOT_FOUND = "not-found"  # nothing that it could mean is in the snapshot
    ONLY_ITS_SITE = "only-its-site"  # the snapshot has the site of this URL, and not the page
    AMBIGUOUS = "ambiguous"  # several sources have that title


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unresolved:
    """A query that names no one source; `message` is one sentence, `suggestions` are titles or keys to try."""

    query: str
    problem: Problem
    message: str
    suggestions: tuple[str, ...] = ()

    def error(self) -> NullsError:
        """Return the error that `resolve` raises."""
        kind = UsageError if self.problem is Problem.AMBIGUOUS else NotFoundError
        hint = "; did you mean: " + listed(self.suggestions) if self.suggestions else ""
        return kind(self.message + (hint if self.problem is Problem.NOT_FOUND else ""))


def lookup(snapshot: Snapshot, query: str) -> Answer:
    """Find the sources of a snapshot that `query` names."""
    return lookup_all(snapshot, [query])[0]


def lookup_all(snapshot: Snapshot, queries: Sequence[str], *, max_suggested: int = MAX_SUGGESTED) -> list[Answer]:
    """Return the answer of `lookup` for each query; of those that name nothing, the first have suggestions."""
    meant = {query: candidates(query, snapshot.wikis, snapshot.web_source) for query in queries}
    aliases = _read_aliases(snapshot, itertools.chain.from_iterable(meant.values()))
    hits: dict[str, dict[SourceId, str]] = {}
    notes: dict[str, list[str]] = {query: [] for query in meant}
    for query, meanings in meant.items():
        found = hits.setdefault(query, {})
        for candidate in meanings:
            if candidate.source_id is not None:
                found.setdefault(candidate.source_id, candidate.matched_by)
            else:
                for source_id, how in _alias_hits(aliases, candidate, notes[query]):
                    found.setdefault(source_id, how)
    known = read_sources(snapshot, set().union(*hits.values()))
    unknown = [query for query, found in hits.items() if known.keys().isdisjoint(found)]
    removed = {int(entry["source_id"], 16): entry["key"] for entry in snapshot.removed} if unknown else {}
    suggested = _suggest(snapshot, unknown[:max_suggested])
    answers: dict[str, Answer] = {}
    for query, found in hits.items():
        matches = tuple(Match(source=known[n], matched_by=how) for n, how in found.items() if n in known)
        if matches:
            answers[query] = Answer(query=query, matches=matches)
            continue
        gone = [removed[c.source_id] for c in meant[query] if c.source_id in removed]
        said = [*notes[query], *(f"{key} was removed from this registry" for key in gone)]
        suggestions = suggested.get(query, ())
        answers[query] = Answer(query=query, suggestions=suggestions, notes=tuple(dict.fromkeys(said)))
    return [answers[query] for query in queries]


def resolve(snapshot: Snapshot, query: str) -> Source:
    """Return the one source that `query` names: the narrowest, if a URL names an article and its site.

    The URL of an article or a book that the snapshot does not hold never means the site that it is on: a request to
    remove one article must not remove a whole site.

    Raises:
        NotFoundError: there is no such source, or only the site; the message has suggestions.
        UsageError: several sources have that title.
    """
    (found,) = resolve_all(snapshot, [query])
    if isinstance(found, Unresolved):
        raise found.error()
    return found


def resolve_all(
    snapshot: Snapshot, queries: Sequence[str], *, max_suggested: int = MAX_SUGGESTED
) -> list[Source | Unresolved]:
    """Return for each query what `resolve` returns, or why it raises; see `lookup_all` for suggestions."""
    return [_resolved(snapshot, answer) for answer in lookup_all(snapshot, queries, max_suggested=max_suggested)]


def _resolved(snapshot: Snapshot, answer: Answer) -> Source | Unresolved:
    query = answer.query
    if not answer.found:
        notes = "".join(f"; {note}" for note in answer.notes)
        message = f"no source {query!r} in snapshot {snapshot.id[:12]}{notes}"
        return Unresolved(query=query, problem=Problem.NOT_FOUND, message=message, suggestions=answer.suggestions)
    first = answer.matches[0]
    rivals = tuple(m.source.key for m in answer.matches if m.matched_by == first.matched_by)
    if len(rivals) > 1 and first.matched_by != "url":
        message = f"{query!r} is ambiguous: {listed(rivals)}; name one of these keys"
        return Unresolved(query=query, problem=Problem.AMBIGUOUS, message=message, suggestions=rivals)
    if _is_only_its_site(snapshot, query, first.source):
        key = first.source.key
        message = (
            f"snapshot {snapshot.id[:12]} has no source for {query!r}, only the whole site; "
            f"if you mean the site, name it: {key}"
        )
        return Unresolved(query=query, problem=Problem.ONLY_ITS_SITE, message=message, suggestions=(key,))
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
    asked = set(source_ids)
    partners: dict[SourceId, set[SourceId]] = {}
    for group, owned in _owned(owners.filter(pc.is_in(owners["source_id"], value_set=groups.unique()))).items():
        for source_id in (owned | {group}) & asked:
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


def _read_aliases(snapshot: Snapshot, meanings: Iterable[Candidate]) -> dict[int, list[dict[str, Any]]]:
    """Return the rows of the alias table that these candidates can mean, by alias hash."""
    hashes = {ids.alias_hash(fold_title(meaning.alias)) for meaning in meanings if meaning.alias is not None}
    rows = snapshot.where("aliases", "alias_hash", sorted(hashes)).to_pylist() if hashes else []
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["alias_hash"], []).append(row)
    return found


def _alias_hits(
    aliases: Mapping[int, Sequence[dict[str, Any]]], candidate: Candidate, notes: list[str]
) -> list[tuple[SourceId, str]]:
    """Return (source id, how it matched) for an alias: exact spellings, else those that differ in case or form."""
    assert candidate.alias is not None
    rows = aliases.get(ids.alias_hash(fold_title(candidate.alias)), ())
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


@dataclasses.dataclass
class _Suggestions:
    """Titles close to one query, gathered over the pieces of the alias table."""

    folded: str
    near: dict[str, str] = dataclasses.field(default_factory=dict)
    containing: list[str] = dataclasses.field(default_factory=list)

    def add(self, aliases: pa.Array, lowered: pa.Array) -> None:
        if len(self.folded) >= 3:
            self.containing += aliases.filter(_holds_words(lowered, self.folded)).to_pylist()
            self.containing = heapq.nsmallest(_NUM_SUGGESTIONS, set(self.containing), key=_shortest_first)
        alike = aliases.filter(_spelled_alike(lowered, self.folded)).to_pylist()
        self.near |= {fold_title(alias): alias for alias in alike}

    def best(self) -> tuple[str, ...]:
        """Return close spellings first, then titles that contain the query's words, the shortest first."""
        import difflib

        compared = list(self.near)[:_MAX_COMPARED]
        close = difflib.get_close_matches(self.folded, compared, n=_NUM_SUGGESTIONS, cutoff=0.75)
        ranked = [self.near[key] for key in close] + self.containing
        return tuple(dict.fromkeys(ranked))[:_NUM_SUGGESTIONS]


def _suggest(snapshot: Snapshot, queries: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return titles close to each query, in one pass over the alias table."""
    gathered = {query: _Suggestions(folded) for query in queries if (folded := fold_title(query))}
    for batch in snapshot.batches("aliases", ["alias", "source_id"]) if gathered else ():
        aliases = batch["alias"].filter(pc.is_valid(batch["source_id"]))
        lowered = pc.utf8_lower(aliases)
        for suggestions in gathered.values():
            suggestions.add(aliases, lowered)
    return {query: suggestions.best() for query, suggestions in gathered.items()}


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
