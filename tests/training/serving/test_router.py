"""Routing a prompt to a source: the closest one, the weights of words, the file of the index."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from training.serving.router import Router, _counts

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


def test_weights_are_those_of_the_formula() -> None:
    """(1 + ln count) * (ln((1 + N) / (1 + sources with the word)) + 1), the 64 heaviest, in rows of unit length."""
    rng = random.Random(0)
    words = [f"word{i}" for i in range(800)]
    frequencies = [1 / (1 + i) for i in range(len(words))]
    texts = {n: " ".join(rng.choices(words, frequencies, k=rng.randrange(5, 600))) for n in range(1, 41)}
    router = Router.build(texts.items())

    counts = sparse.vstack([_counts([texts[n]]) for n in texts], format="csr")
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    idf = np.log((1 + len(texts)) / (1 + frequency)) + 1
    assert router.idf_F == pytest.approx(idf, rel=1e-6)
    expected = counts.astype(np.float64)
    expected.data = (1 + np.log(expected.data)) * idf[expected.indices]
    for row in range(len(texts)):
        values = expected.data[expected.indptr[row] : expected.indptr[row + 1]]
        values[np.argsort(-values.astype(np.float32), kind="stable")[64:]] = 0
        values /= np.linalg.norm(values)
    expected.eliminate_zeros()
    assert abs(router.vectors - expected).max() < 1e-6
    sizes = np.diff(expected.indptr)
    assert min(sizes) < max(sizes) == 64, "rows that were cut, and rows that were not"

    for _ in range(50):
        prompt = " ".join(rng.choices(words, k=6))
        query = _counts([prompt]).astype(np.float64)
        query.data = (1 + np.log(query.data)) * idf[query.indices]
        scores = (expected @ query.T).toarray().ravel()
        found = router.closest(prompt)
        assert found is not None
        assert scores[found - 1] == pytest.approx(scores.max(), rel=1e-5)


def test_an_index_without_sources_leads_nowhere(tmp_path: Path) -> None:
    Router.build([]).save(tmp_path / "router.npz")
    assert Router.load(tmp_path / "router.npz").closest("apples") is None
