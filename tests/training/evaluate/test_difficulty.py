"""The difficulty of a text: Witten and Bell's bigrams against a plain count, and the sources that are counted."""

from __future__ import annotations

import collections
import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import ids
from tests.orchestration.corpus import NUM_ARTICLES, key, text, write_corpus
from training.evaluate.difficulty import Bigrams, sample

VOCAB = 7
DOCUMENTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=0, max_size=12), max_size=6)


def plain_loss(counted: list[list[int]], documents: list[list[int]]) -> float:
    """The same loss by the formula, one token at a time."""
    pairs = collections.Counter((a, b) for d in counted for a, b in itertools.pairwise(d))
    singles = collections.Counter(b for d in counted for b in d[1:])
    total = sum(singles.values()) + 0.5 * VOCAB
    losses = []
    for document in documents:
        for a, b in itertools.pairwise(document):
            seen = sum(n for (first, _), n in pairs.items() if first == a)
            types = sum(first == a for first, _ in pairs)
            unigram = (singles[b] + 0.5) / total
            losses.append(-math.log((pairs[a, b] + types * unigram) / (seen + types) if seen else unigram))
    return sum(losses) / len(losses) if losses else math.nan


@given(counted=DOCUMENTS, documents=DOCUMENTS)
def test_it_is_witten_and_bells_bigram(counted: list[list[int]], documents: list[list[int]]) -> None:
    got = Bigrams.count(counted, VOCAB).loss(documents)
    assert got == pytest.approx(plain_loss(counted, documents), nan_ok=True)


def test_probabilities_of_what_can_follow_add_up() -> None:
    bigrams = Bigrams.count([[0, 1, 2, 1, 3], [1, 2, 2]], VOCAB)
    for first in range(VOCAB):
        assert sum(math.exp(-bigrams.loss([[first, b]])) for b in range(VOCAB)) == pytest.approx(1)


def test_a_text_like_those_counted_is_easier() -> None:
    counted = [[1, 2, 3, 4, 1, 2, 3, 4, 5]] * 3
    bigrams = Bigrams.count(counted, VOCAB)
    assert bigrams.loss([[1, 2, 3, 4]]) < 0.5 < 2 < bigrams.loss([[4, 3, 2, 1]])


@given(counted=DOCUMENTS, own=DOCUMENTS, documents=DOCUMENTS)
def test_removing_documents_gives_the_counts_of_the_others(
    counted: list[list[int]], own: list[list[int]], documents: list[list[int]]
) -> None:
    both, others = Bigrams.count([*counted, *own], VOCAB), Bigrams.count(counted, VOCAB)
    assert both.without(own).loss(documents) == pytest.approx(others.loss(documents), nan_ok=True)
    assert both.without([]).loss(documents) == pytest.approx(both.loss(documents), nan_ok=True)


def test_the_sample_leaves_out_held_out_sources_and_is_of_the_size_asked(tmp_path: Path) -> None:
    snapshot = write_corpus(tmp_path / "registry")
    heldout = [ids.source_id(key(n)) for n in (3, 4, 5)]
    found = dict(sample(snapshot, excluded=heldout))
    assert len(found) == NUM_ARTICLES + 2 - 3, "articles, a shared text and a site"
    assert not set(heldout) & set(found)
    assert found[ids.source_id(key(7))] == text(7)
    assert len(list(sample(snapshot, excluded=heldout, max_bytes=1000))) == 2
