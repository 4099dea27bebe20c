"""The decisions of deduplication, as pure functions over small records: which document represents which.

    newest           several captures of one document      -> the one to keep
    exact_group      documents of equal text               -> one representative, and the owners of the text
    star_clusters    verified near-duplicate pairs         -> members, each within the threshold of its survivor

An engine (`pipelines.resolve.keyed_stage`) finds the groups and carries the decisions out; it decides nothing itself,
so that engines cannot differ. No decision depends on the order of its input. Clusters are stars, not connected
components: of the documents that transitive clusters remove, about half are under the threshold of their survivor.
Cost: a few microseconds a record; `star_clusters` holds the members found so far, 60 bytes each.
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
        row: the engine's key of it.
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
        row: the engine's key of it.
        doc_id: its id.
        origin_id: the source that published it.
        num_bytes: size of its text.
        settled: it was kept in the parent snapshot, so it is preferred.
    """

    row: int
    doc_id: ids.DocId
    origin_id: ids.SourceId
    num_bytes: int
    settled: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class ExactGroup:
    """Documents of equal text: the text is kept once, as that of `representative`, under `source_id`.

    Attributes:
        representative: its row.
        source_id: the shared source of all owners, or the owner if there is only one.
        source_key: of a shared source, else None.
        owners: every source that published the text, ascending.
    """

    representative: int
    source_id: ids.SourceId
    source_key: str | None
    owners: tuple[ids.SourceId, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Edge:
    """Two documents, as ranks in the order of `preference`, and their true Jaccard similarity."""

    preferred: int
    other: int
    jaccard: float


def competes(status: str, reason: str | None) -> bool:
    """Return whether a reading shows its document's text, so that it supersedes older ones.

    A failed reading does not, nor an answer without text (`pipelines.document.NO_CAPTURE`); a reading that was
    superseded in a parent snapshot stays superseded.
    """
    return status not in (Status.FAILED, Status.SUPERSEDED) and reason not in NO_CAPTURE


def newest(captures: Iterable[Capture]) -> Capture:
    """Return the capture to keep: the latest; of equally late ones by text hash, then the first in the inputs."""
    captures = list(captures)
    latest = max((c.captured, c.text_sha256) for c in captures)
    equal = [c for c in captures if (c.captured, c.text_sha256) == latest]
    return min(equal, key=lambda c: (c.input_file, c.input_offset, c.row))


def preference(*, settled: bool, num_owners: int, num_bytes: int, doc_id: ids.DocId) -> tuple[bool, int, int, int]:
    """Return a sort key that puts the preferred first: kept before, then more owners, longer, lower id."""
    return (not settled, -num_owners, -num_bytes, doc_id)


def exact_group(members: Iterable[Member]) -> ExactGroup:
    """Decide which of several documents of equal text represents them, and who owns the text."""
    members = list(members)
    first = min(
        members,
        key=lambda m: preference(settled=m.settled, num_owners=1, num_bytes=m.num_bytes, doc_id=m.doc_id),
    )
    owners = tuple(sorted({member.origin_id for member in members}))
    key = ids.shared_key(owners) if len(owners) > 1 else None
    source_id = ids.SourceId(ids.source_id(key)) if key else owners[0]
    return ExactGroup(first.row, source_id, key, owners)


def star_clusters(edges: Iterable[Edge]) -> Iterator[Edge]:
    """Yield each member of a cluster with its survivor, as an edge (survivor, member, Jaccard).

    A document survives unless a more preferred survivor is near it; a member goes to the nearest of those.

    Args:
        edges: verified, so at or over the threshold; sorted by `other`.
    """
    members: set[int] = set()
    for other, group in itertools.groupby(edges, key=operator.attrgetter("other")):
        near = [edge for edge in group if edge.preferred not in members]
        if near:
            members.add(other)
            yield max(near, key=lambda edge: (edge.jaccard, -edge.preferred))
