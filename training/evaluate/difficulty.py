"""How hard a text is by nature: its loss under word pairs counted in other sources' text, in nats a token.

A list of villages is easier than an essay for a model that has seen neither. What a model makes of a text that it never
saw follows this number closely (three quarters to four fifths of the variance among the held-out articles of
`benchmarks/yardstick.py`), and no model under test takes part in it, so it tells "easy" from "remembered".

The counts are of tokens, interpolated with single tokens by Witten and Bell's rule (IEEE Trans. Information Theory 37,
1991): p(b | a) = (n(ab) + t(a) u(b)) / (n(a) + t(a)), where t(a) is the number of different successors of a.

Cost: a token and its pair a few bytes each; counting 4 MB of text takes about 3 s on one core, nearly all of it in the
tokenizer.

Run: ``Bigrams.count(documents, vocab_size).loss(documents)``.

Shapes: V vocabulary, K distinct pairs, N pairs of the documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from registry.snapshot import Snapshot

MAX_BYTES = 4_000_000
_MAX_SOURCE_BYTES = 100_000

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Bigrams:
    """Counts of pairs of tokens."""

    pairs_K: Ints
    """first * V + second, ascending."""
    counts_K: Ints
    """How often each occurs."""
    followed_V: Ints
    """How often each token is followed by another."""
    types_V: Ints
    """By how many different ones."""
    unigram_V: Floats
    """Probability of each token by itself; never zero."""

    @classmethod
    def count(cls, documents: Iterable[Sequence[int]], vocab_size: int) -> Bigrams:
        """Counts documents of token ids, as `losses.encode` gives them."""
        ids = [np.asarray(document, np.int64) for document in documents]
        pairs = np.concatenate([_pairs(document, vocab_size) for document in ids]) if ids else np.empty(0, np.int64)
        pairs_K, counts_K = np.unique(pairs, return_counts=True)
        first_K = pairs_K // vocab_size
        alone_V = np.bincount(pairs % vocab_size, minlength=vocab_size) + 0.5
        return cls(
            pairs_K=pairs_K,
            counts_K=counts_K.astype(np.int64),
            followed_V=np.bincount(first_K, weights=counts_K, minlength=vocab_size).astype(np.int64),
            types_V=np.bincount(first_K, minlength=vocab_size).astype(np.int64),
            unigram_V=alone_V / alone_V.sum(),
        )

    def loss(self, documents: Sequence[Sequence[int]]) -> float:
        """The mean over the predicted tokens of documents, in nats; NaN if there are none."""
        vocab_size = len(self.unigram_V)
        pairs_N = np.concatenate(
            [np.empty(0, np.int64), *(_pairs(np.asarray(d, np.int64), vocab_size) for d in documents)]
        )
        if not len(pairs_N):
            return float("nan")
        first_N, second_N = np.divmod(pairs_N, vocab_size)
        seen_N, types_N = self.followed_V[first_N], self.types_V[first_N]
        # A token that was never followed says nothing of what comes: one type of weight makes it the unigram.
        weight_N = np.where(seen_N > 0, types_N, 1)
        together_N = self._counts_of(pairs_N) + weight_N * self.unigram_V[second_N]
        return float(-np.log(together_N / (seen_N + weight_N)).mean())

    def _counts_of(self, pairs_N: Ints) -> Ints:
        if not len(self.pairs_K):
            return np.zeros_like(pairs_N)
        place_N = np.minimum(np.searchsorted(self.pairs_K, pairs_N), len(self.pairs_K) - 1)
        return np.where(self.pairs_K[place_N] == pairs_N, self.counts_K[place_N], 0)


def _pairs(document: Ints, vocab_size: int) -> Ints:
    return document[:-1] * vocab_size + document[1:]


def other_texts(snapshot: Snapshot, *, excluded: Collection[int], max_bytes: int = MAX_BYTES) -> Iterator[str]:
    """Text of sources to count in: of those with the lowest ids, which are hashes, so as good as drawn at random.

    Reads no more of the snapshot than that. One large source does not make up the sample: 100 kB of each at most.

    Args:
        snapshot: where from.
        excluded: sources to leave out: those that are measured.
        max_bytes: UTF-8 in all, about.
    """
    left_out = pa.array(sorted(excluded), pa.int64())
    last, of_last, total = None, 0, 0
    for batch in snapshot.shard_batches():
        others = batch.filter(pc.invert(pc.is_in(batch.column("source_id"), value_set=left_out)))
        for source, text in zip(others.column("source_id").to_pylist(), others.column("text").to_pylist(), strict=True):
            of_last = of_last if source == last else 0
            last = source
            if of_last >= _MAX_SOURCE_BYTES:
                continue
            cut = text[: _MAX_SOURCE_BYTES - of_last]
            num_bytes = len(cut.encode())
            of_last += num_bytes
            total += num_bytes
            yield cut
            if total >= max_bytes:
                return
