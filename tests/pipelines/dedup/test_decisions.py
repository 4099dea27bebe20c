"""Decisions do not depend on order, members are near their survivor, and no document is lost."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pipelines.dedup.decisions import Capture, Edge, Member, exact_group, newest, preference, star_clusters
from registry import ids


def capture(row: int, captured: str = "2020-01-01T00:00:00Z", text: str = "a", file: str = "f") -> Capture:
    return Capture(row=row, captured=captured, text_sha256=text, input_file=file, input_offset=row)


def in_order(edges: list[Edge]) -> list[Edge]:
    return sorted(edges, key=lambda edge: (edge.other, edge.preferred))


captures = st.lists(
    st.tuples(st.sampled_from(["", "2016-01-01T00:00:00Z", "2020-01-01T00:00:00Z"]), st.sampled_from("ab")),
    min_size=1,
    max_size=12,
).map(lambda found: [capture(row, captured, text) for row, (captured, text) in enumerate(found)])
edges = st.dictionaries(
    st.tuples(st.integers(0, 14), st.integers(0, 14)).filter(lambda pair: pair[0] < pair[1]),
    st.floats(0.75, 1.0),
    max_size=40,
).map(lambda found: [Edge(a, b, jaccard) for (a, b), jaccard in found.items()])


@given(captures, st.randoms())
def test_the_newest_capture_wins_in_any_order(found: list[Capture], chooser: random.Random) -> None:
    shuffled = list(found)
    chooser.shuffle(shuffled)
    winner = newest(found)
    assert newest(shuffled) == winner
    assert all(other.captured <= winner.captured for other in found)


def test_between_captures_of_one_time_the_text_hash_decides_and_then_the_file() -> None:
    assert newest([capture(1, text="a"), capture(2, text="b")]).row == 2
    assert newest([capture(2, file="b"), capture(9, file="a")]).row == 9
    assert newest([capture(1, captured=""), capture(2, captured="1999-01-01T00:00:00Z")]).row == 2


def test_equal_text_of_two_sources_is_shared_by_all_of_them() -> None:
    members = [Member(row=i, doc_id=100 - i, origin_id=origin, num_bytes=10) for i, origin in enumerate([7, 3, 7])]
    group = exact_group(members)
    assert group.owners == (3, 7)
    assert group.source_key == ids.shared_key([3, 7])
    assert group.source_id == ids.source_id(ids.shared_key([3, 7]))
    assert group.representative == 2  # equal lengths, so the lowest id


def test_equal_text_within_a_source_stays_its_own() -> None:
    group = exact_group([Member(row=1, doc_id=1, origin_id=5, num_bytes=3), Member(2, 2, 5, 4)])
    assert (group.source_id, group.source_key, group.owners, group.representative) == (5, None, (5,), 2)


def test_a_settled_document_stays_the_representative_of_its_equals() -> None:
    old = Member(row=1, doc_id=9, origin_id=5, num_bytes=3, settled=True)
    assert exact_group([old, Member(row=2, doc_id=1, origin_id=6, num_bytes=400)]).representative == 1


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=9), st.randoms())
def test_an_exact_group_does_not_depend_on_order(found: list[tuple[int, int]], chooser: random.Random) -> None:
    members = [Member(row, row, origin, size) for row, (origin, size) in enumerate(found)]
    shuffled = list(members)
    chooser.shuffle(shuffled)
    assert exact_group(shuffled) == exact_group(members)


def test_the_order_of_preference() -> None:
    plain = {"settled": False, "num_owners": 1, "num_bytes": 5, "doc_id": 9}
    better = [{"settled": True}, {"num_owners": 2}, {"num_bytes": 6}, {"doc_id": 8}]
    keys = [preference(**{**plain, **change}) for change in better]  # type: ignore[arg-type]
    assert [*keys, preference(**plain)] == sorted([preference(**plain), *keys])  # type: ignore[arg-type]


@given(edges)
def test_clusters_are_stars_of_verified_edges(found: list[Edge]) -> None:
    members = {edge.other: edge for edge in star_clusters(in_order(found))}
    documents = {end for edge in found for end in (edge.preferred, edge.other)}
    survivors = documents - members.keys()
    for edge in members.values():
        assert edge in found  # so its Jaccard is verified: no chains
        assert edge.preferred in survivors
    for edge in found:
        assert not (edge.preferred in survivors and edge.other in survivors)  # no two survivors are near copies
    for member, edge in members.items():
        near = [e for e in found if e.other == member and e.preferred in survivors]
        assert edge.jaccard == max(e.jaccard for e in near)
    assert len(members) + len(survivors) == len(documents)


@given(edges, st.randoms())
def test_clusters_do_not_depend_on_the_order_of_edges(found: list[Edge], chooser: random.Random) -> None:
    shuffled = list(found)
    chooser.shuffle(shuffled)
    shuffled.sort(key=lambda edge: edge.other)
    assert list(star_clusters(shuffled)) == list(star_clusters(in_order(found)))


def test_a_chain_is_cut_where_a_member_would_be_far_from_its_survivor() -> None:
    chain = [Edge(0, 1, 0.8), Edge(1, 2, 0.8), Edge(2, 3, 0.8)]
    assert [(e.preferred, e.other) for e in star_clusters(in_order(chain))] == [(0, 1), (2, 3)]


def test_a_member_goes_to_the_nearest_survivor() -> None:
    found = [Edge(0, 5, 0.76), Edge(4, 5, 0.9), Edge(1, 2, 0.8)]
    assert next(e for e in star_clusters(in_order(found)) if e.other == 5).preferred == 4
