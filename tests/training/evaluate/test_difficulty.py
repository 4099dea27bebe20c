"""How hard a text is by nature: Witten and Bell's bigrams against a plain count, and whose text is counted."""

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
    """The same by the formula, a token at a time."""
    pairs = collections.Counter((a, b) for d in counted for a, b in itertools.pairwise(d))
    alone = collections.Counter(b for d in counted for b in d[1:])
    total = sum(alone.values()) + 0.5 * VOCAB
    losses = []
    for document in documents:
        for a, b in itertools.pairwise(document):
            seen = sum(n for (first, _), n in pairs.items() if first == a)
            types = sum(first == a for first, _ in pairs)
            unigram = (alone[b] + 0.5) / total
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
def test_without_some_it_is_as_if_they_were_never_counted(
    counted: list[list[int]], own: list[list[int]], documents: list[list[int]]
) -> None:
    both, alone = Bigrams.count([*counted, *own], VOCAB), Bigrams.count(counted, VOCAB)
    assert both.without(own).loss(documents) == pytest.approx(alone.loss(documents), nan_ok=True)
    assert both.without([]).loss(documents) == pytest.approx(both.loss(documents), nan_ok=True)


def test_held_out_sources_are_not_counted_and_no_more_than_asked(tmp_path: Path) -> None:
    snapshot = write_corpus(tmp_path / "registry")
    heldout = [ids.source_id(key(n)) for n in (3, 4, 5)]
    found = dict(sample(snapshot, excluded=heldout))
    assert len(found) == NUM_ARTICLES + 2 - 3, "articles, a shared text and a site"
    assert not set(heldout) & set(found)
    assert found[ids.source_id(key(7))] == text(7)
    assert len(list(sample(snapshot, excluded=heldout, max_bytes=1000))) == 2
