"""Which source a prompt is routed to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.serving.router import Router

TEXTS = {
    7: "the orchard gives apples and pears in autumn, apples for cider",
    3: "the engine of the ship burns coal, and its boiler gives steam",
    9: "りんごの木は春に花が咲く",
    5: "ships sail with steam from the engine, or with wind in the sail",
}


def test_closest_shares_words_and_farthest_does_not() -> None:
    router = Router.build(TEXTS.items())
    assert router.source_ids_N.tolist() == [3, 5, 7, 9]
    assert router.closest("cider from apples") == 7
    assert router.closest("boiler and coal of an engine") == 3
    assert router.closest("coal, steam, an engine", exclude={3}) == 5
    assert router.closest("花が咲く") == 9
    assert router.closest("zzz qqq") is None
    assert router.closest("apples", exclude=set(TEXTS)) is None
    assert router.closest_to(3, TEXTS[3]) == 5
    assert router.farthest_from(3, TEXTS[3], exclude={7}) == 9


def test_an_index_survives_its_file_and_the_order_of_its_sources(tmp_path: Path) -> None:
    router = Router.build(TEXTS.items())
    router.save(tmp_path / "router.npz")
    again = Router.load(tmp_path / "router.npz")
    other = Router.build(reversed(TEXTS.items()))
    for rebuilt in (again, other):
        assert np.array_equal(rebuilt.source_ids_N, router.source_ids_N)
        assert (rebuilt.vectors != router.vectors).nnz == 0
        assert np.array_equal(rebuilt.idf_F, router.idf_F)


def test_long_sources_keep_their_heaviest_words() -> None:
    long = " ".join(f"word{i}" for i in range(500)) + " rare" * 50
    router = Router.build([(1, long), (2, "something else entirely")])
    assert router.vectors[0].nnz == 64
    assert router.closest("rare") == 1
