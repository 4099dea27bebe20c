"""The plan of an unlearn: what is revoked, what stays, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.unlearning.plan import Policy, make_plan, refusal, split_shared
from registry import ids
from registry.errors import RefusedError
from registry.lookup import Source, resolve
from registry.snapshot import Snapshot
from tests.orchestration.corpus import NEAR_DOC, SHARED, key


def source(source_id: int, num_documents: int = 1) -> Source:
    return Source(
        source_id=source_id,
        key=f"wiki:x:{source_id}",
        kind="wiki",
        title=None,
        num_documents=num_documents,
        num_bytes=1,
    )


def test_shared_text_goes_with_its_last_owner_or_with_any() -> None:
    shared = {10: [1, 2], 11: [2, 3], 12: [1]}
    assert split_shared(shared, gone={1}, policy=Policy.ALL_OWNERS) == ([12], [10, 11])
    assert split_shared(shared, gone={1, 2}, policy=Policy.ALL_OWNERS) == ([10, 12], [11])
    assert split_shared(shared, gone={1}, policy=Policy.ANY_OWNER) == ([10, 11, 12], [])
    assert split_shared(shared, gone={1, 10}, policy=Policy.ANY_OWNER) == ([11, 12], [])


@given(
    st.dictionaries(st.integers(100, 120), st.sets(st.integers(0, 9), min_size=2), max_size=8),
    st.sets(st.integers(0, 9)),
)
def test_every_shared_source_goes_or_stays(shared: dict[int, set[int]], gone: set[int]) -> None:
    removed, kept = split_shared(shared, gone=gone, policy=Policy.ALL_OWNERS)
    assert sorted(removed + kept) == sorted(shared)
    assert all(shared[source_id] - gone for source_id in kept)
    assert not any(shared[source_id] - gone for source_id in removed)


def test_refusals_say_why() -> None:
    nothing: dict[int, str] = {}
    assert refusal(source(1), heldout=(), revoked=nothing, owns_shared=False) is None
    assert "held out" in str(refusal(source(1), heldout={1}, revoked=nothing, owns_shared=False))
    assert "models:/m/2" in str(refusal(source(1), heldout=(), revoked={1: "models:/m/2"}, owns_shared=False))
    assert "nothing of" in str(refusal(source(1, 0), heldout=(), revoked=nothing, owns_shared=False))
    assert refusal(source(1, 0), heldout=(), revoked=nothing, owns_shared=True) is None


def test_plan_keeps_text_that_another_owner_published(snapshot: Snapshot) -> None:
    one, two = resolve(snapshot, key(1)), resolve(snapshot, key(2))
    alone = make_plan(snapshot, [one], policy=Policy.ALL_OWNERS, heldout=(), revoked={})
    assert [s.key for s in alone.kept_by_other_owners] == [SHARED]
    assert alone.revoked == {one.source_id}
    both = make_plan(snapshot, [one, two], policy=Policy.ALL_OWNERS, heldout=(), revoked={})
    assert [s.key for s in both.also_removed] == [SHARED]
    assert both.revoked == {one.source_id, two.source_id, ids.source_id(SHARED)}
    after = make_plan(snapshot, [two], policy=Policy.ALL_OWNERS, heldout=(), revoked={one.source_id: "models:/m/2"})
    assert [s.key for s in after.also_removed] == [SHARED]
    any_owner = make_plan(snapshot, [one], policy=Policy.ANY_OWNER, heldout=(), revoked={})
    assert [s.key for s in any_owner.also_removed] == [SHARED]


def test_plan_names_near_copies_in_both_directions(snapshot: Snapshot) -> None:
    survivor = make_plan(
        snapshot, [resolve(snapshot, "web:a.example")], policy=Policy.ALL_OWNERS, heldout=(), revoked={}
    )
    assert (survivor.num_goes_with, survivor.num_lives_on) == (1, 0)
    (copy,) = survivor.goes_with
    assert copy["published_by"] == "web:b.example"
    assert copy["doc_id"] == ids.format_id(NEAR_DOC)
    assert copy["jaccard"] == pytest.approx(0.9)
    with pytest.raises(RefusedError, match=r"nothing of web:b\.example"):
        make_plan(snapshot, [resolve(snapshot, "web:b.example")], policy=Policy.ALL_OWNERS, heldout=(), revoked={})


def test_one_refusal_refuses_all(snapshot: Snapshot) -> None:
    targets = [resolve(snapshot, key(3)), resolve(snapshot, key(4))]
    with pytest.raises(RefusedError, match="held out"):
        make_plan(snapshot, targets, policy=Policy.ALL_OWNERS, heldout={targets[1].source_id}, revoked={})
