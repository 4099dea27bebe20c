"""Which document stands for which: the decisions of deduplication, as pure functions over small records.

    newest           several captures of one document      -> the one that counts
    exact_group      documents of equal text               -> one representative, and who owns the text
    star_clusters    verified near-duplicate pairs         -> members, each within the threshold of its survivor

An engine (`pipelines.resolve.duckdb.engine`) finds the groups and carries the decisions out; it decides nothing itself, so
that engines cannot differ. None of it depends on the order of its input. Clusters are stars, not connected components:
of the documents that transitive clusters remove, about half are under the threshold of their survivor. Cost: a few
microseconds a record; `star_clusters` holds the members found so far, 60 bytes each.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterable, Iterator

from pipelines.document import NO_CAPTURE
from registry import ids
from registry.schema import Status

EXACT, NEAR, NEWER_CAPTURE = "exact", "near", "newer-capture"


@dataclasses.dataclass(frozen=True, slots=True)
class Capture:
    """One reading of a document.

    Attributes:
        row: what the engine knows it by.
        captured: ISO 8601 UTC; "" (not known) is older than any.
        text_sha256: "" if it has no text.
        input_file, input_offset: where it was read.
    """

    row: int
    captured: str
    text_sha256: str
    input_file: str
    input_offset: int


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """One of several documents of equal text.

    Attributes:
        row: what the engine knows it by.
        doc_id: its id.
        origin_id: the source that published it.
        num_bytes: of its text.
        settled: it was kept in the parent snapshot, so it stays if it can.
    """

    row: int
    doc_id: int
    origin_id: int
    num_bytes: int
    settled: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ExactGroup:
    """Equal text: kept once, by `representative`, under `source_id`.

    Attributes:
        representative: its row.
        source_id: the shared source of all owners; the only owner itself if there is but one.
        source_key: of a shared source, else None.
        owners: every source that published the text, ascending.
    """

    representative: int
    source_id: int
    source_key: str | None
    owners: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Edge:
    """Two documents, by their place in the order of preference (`preference`), and their true Jaccard similarity."""

    preferred: int
    other: int
    jaccard: float


def competes(status: str, reason: str | None) -> bool:
    """Whether a reading says what its document's text is now, so that of several the newest counts.

    A failed one does not, nor an answer without text (`pipelines.document.NO_CAPTURE`); and what was superseded in a
    parent snapshot stays so.
    """
    return status not in (Status.FAILED, Status.SUPERSEDED) and reason not in NO_CAPTURE


def newest(captures: Iterable[Capture]) -> Capture:
    """The capture that counts: the latest; then by text hash; then the first in the inputs."""
    captures = list(captures)
    latest = max((c.captured, c.text_sha256) for c in captures)
    equal = [c for c in captures if (c.captured, c.text_sha256) == latest]
    return min(equal, key=lambda c: (c.input_file, c.input_offset, c.row))


def preference(*, settled: bool, num_owners: int, num_bytes: int, doc_id: int) -> tuple[bool, int, int, int]:
    """A sort key, the preferred first: kept before, published by more sources, longer, lower id."""
    return (not settled, -num_owners, -num_bytes, doc_id)


def exact_group(members: Iterable[Member]) -> ExactGroup:
    """Who stands for documents of equal text, and who owns it."""
    members = list(members)
    first = min(
        members,
        key=lambda m: preference(settled=m.settled, num_owners=1, num_bytes=m.num_bytes, doc_id=m.doc_id),
    )
    owners = tuple(sorted({member.origin_id for member in members}))
    key = ids.shared_key(owners) if len(owners) > 1 else None
    return ExactGroup(first.row, ids.source_id(key) if key else owners[0], key, owners)


def star_clusters(edges: Iterable[Edge]) -> Iterator[Edge]:
    """Each member with its survivor, as an edge (survivor, member, Jaccard).

    A document survives unless a more preferred survivor is near it; a member goes to the nearest of those.

    Args:
        edges: verified, that is at or over the threshold; sorted by `other`.
    """
    members: set[int] = set()
    for other, group in itertools.groupby(edges, key=operator.attrgetter("other")):
        near = [edge for edge in group if edge.preferred not in members]
        if near:
            members.add(other)
            yield max(near, key=lambda edge: (edge.jaccard, -edge.preferred))
