"""The choice of held-out sources: a pure function that never chooses text that other sources are trained on."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import ids, schema
from registry.errors import UsageError
from registry.snapshot import Snapshot
from tests.training.conftest import OWNERS, SHARED
from training.data.heldout import choose_heldout


def sources(sizes: dict[int, int], kind: str = "wiki") -> pa.Table:
    rows = [
        {"source_id": source, "key": f"{kind}:{source}", "kind": kind, "num_documents": int(size > 0)}
        | {"num_bytes": size, "placements": []}
        for source, size in sorted(sizes.items())
    ]
    return pa.Table.from_pylist(rows, schema=schema.SOURCES)


def test_shared_text_its_owners_and_empty_sources_are_never_chosen(snapshot: Snapshot) -> None:
    excluded = {ids.source_id(key) for key in (*OWNERS, SHARED, "web:empty.example")}
    tables = snapshot.table("sources"), snapshot.table("owners")
    chosen: set[int] = set()
    for seed in range(40):
        picked = choose_heldout(*tables, seed=seed, share=0, min_heldout=8, min_bytes=0)
        assert len(picked) == 8
        assert picked == sorted(picked)
        chosen |= set(picked)
    # Not vacuous: over the seeds, every other source was chosen.
    assert chosen == set(tables[0]["source_id"].to_pylist()) - excluded


@given(seed=st.integers(0, 2**31), order=st.randoms(use_true_random=False))
def test_the_choice_depends_only_on_seed_and_sources(seed: int, order: object) -> None:
    table = sources({number * 7919: 5000 for number in range(50)})
    picked = choose_heldout(table, seed=seed, min_heldout=5)
    shuffled = list(range(50))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose_heldout(table.take(shuffled), seed=seed, min_heldout=5) == picked


def test_one_more_source_changes_at_most_one_choice() -> None:
    few = {number * 7919: 5000 for number in range(100)}
    before = set(choose_heldout(sources(few), seed=1))
    after = set(choose_heldout(sources(few | {12345: 5000}), seed=1))
    assert len(before & after) >= 7


def test_short_sources_are_a_last_resort() -> None:
    sizes = {number: 5000 if number < 10 else 100 for number in range(40)}
    assert all(source < 10 for source in choose_heldout(sources(sizes), seed=0, min_heldout=10))
    assert set(range(10)) < set(choose_heldout(sources(sizes), seed=0, min_heldout=12))


def test_a_reserved_source_is_trained_in_any_case() -> None:
    table = sources({number * 7919: 5000 for number in range(50)})
    without = choose_heldout(table, seed=0, min_heldout=5)
    again = choose_heldout(table, seed=0, min_heldout=5, never=without[:2])
    assert not set(again) & set(without[:2])
    assert set(without[2:]) < set(again)
    assert len(again) == 5


def test_share_is_rounded_up_and_too_few_sources_are_refused() -> None:
    assert len(choose_heldout(sources(dict.fromkeys(range(1001), 5000)), seed=0, share=0.01)) == 11
    assert choose_heldout(sources({1: 10}), seed=0, share=0, min_heldout=0) == []
    with pytest.raises(UsageError, match="needs at least 16"):
        choose_heldout(sources(dict.fromkeys(range(15), 5000)), seed=0)
