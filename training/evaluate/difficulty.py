"""The difficulty of a text: its loss under pairs of tokens counted in other sources' text, in nats a token.

A list of villages is easier than an essay for a model that has seen neither. A model's loss on a text that it never saw
follows this number closely (three quarters to four fifths of the variance among the held-out articles of
`benchmarks/heldout_baseline.py`). The model under test takes no part in it, so it separates "easy" from "remembered".

Counts of pairs are interpolated with single tokens by Witten and Bell's rule (IEEE Trans. Information Theory 37,
1991): p(b | a) = (n(ab) + t(a) u(b)) / (n(a) + t(a)), where t(a) is the number of different successors of a.

Cost: a few bytes of memory for each token and each pair; counting 4 MB of text takes about 3 s on one core, nearly all
of it in the tokenizer.

Run: ``Bigrams.count(documents, vocab_size).without(own).loss(own)``.

Shapes: V vocabulary, K distinct pairs, N pairs of the documents.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from registry.ids import SourceId
from registry.snapshot import Snapshot

MAX_BYTES = 4_000_000
"""UTF-8 bytes of text that are counted, by default."""
_MAX_SOURCE_BYTES = 100_000

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Bigrams:
    """Counts of pairs of tokens."""

    vocab_size: int
    pairs_K: Ints
    """first * V + second, ascending."""
    counts_K: Ints
    """The number of times that each pair occurs."""

    @classmethod
    def count(cls, documents: Iterable[Sequence[int]], vocab_size: int) -> Bigrams:
        """Count the pairs in documents of token ids, as `losses.encode` returns them."""
        pairs_K, counts_K = np.unique(_pairs(documents, vocab_size), return_counts=True)
        return cls(vocab_size, pairs_K, counts_K.astype(np.int64))

    def without(self, documents: Iterable[Sequence[int]]) -> Bigrams:
        """Return the counts without these documents, which must be among those counted."""
        pairs, counts = np.unique(_pairs(documents, self.vocab_size), return_counts=True)
        left_K = self.counts_K.copy()
        left_K[np.searchsorted(self.pairs_K, pairs)] -= counts
        return Bigrams(self.vocab_size, self.pairs_K[left_K > 0], left_K[left_K > 0])

    @functools.cached_property
    def _followed(self) -> Ints:
        """The number of times that each token is followed by another: [V]."""
        return self._by_token(self.pairs_K // self.vocab_size, self.counts_K)

    @functools.cached_property
    def _types(self) -> Ints:
        """The number of different tokens that follow each token: [V]."""
        return self._by_token(self.pairs_K // self.vocab_size, np.ones_like(self.counts_K))

    @functools.cached_property
    def _unigram(self) -> Floats:
        """Probability of each token by itself, never zero: [V]."""
        single_V = self._by_token(self.pairs_K % self.vocab_size, self.counts_K) + 0.5
        share_V: Floats = single_V / single_V.sum()
        return share_V

    def _by_token(self, tokens_K: Ints, weights_K: Ints) -> Ints:
        return np.bincount(tokens_K, weights=weights_K, minlength=self.vocab_size).astype(np.int64)

    def loss(self, documents: Sequence[Sequence[int]]) -> float:
        """Return the mean loss over the targets of documents, in nats; NaN if there are none."""
        pairs_N = _pairs(documents, self.vocab_size)
        if not len(pairs_N):
            return float("nan")
        first_N, second_N = np.divmod(pairs_N, self.vocab_size)
        seen_N = self._followed[first_N]
        # A token that was never followed says nothing about the next one: a weight of 1 gives the unigram.
        weight_N = np.where(seen_N > 0, self._types[first_N], 1)
        together_N = self._counts_of(pairs_N) + weight_N * self._unigram[second_N]
        return float(-np.log(together_N / (seen_N + weight_N)).mean())

    def _counts_of(self, pairs_N: Ints) -> Ints:
        if not len(self.pairs_K):
            return np.zeros_like(pairs_N)
        index_N = np.minimum(np.searchsorted(self.pairs_K, pairs_N), len(self.pairs_K) - 1)
        return np.where(self.pairs_K[index_N] == pairs_N, self.counts_K[index_N], 0)


def _pairs(documents: Iterable[Sequence[int]], vocab_size: int) -> Ints:
    ids = [np.asarray(document, np.int64) for document in documents]
    return np.concatenate([np.empty(0, np.int64), *(d[:-1] * vocab_size + d[1:] for d in ids)])


def sample(
    snapshot: Snapshot, *, excluded: Collection[int], max_bytes: int = MAX_BYTES
) -> Iterator[tuple[SourceId, str]]:
    """Yield text to count, (source id, text): of the sources with the lowest ids, which are hashes and so random.

    Reads no more of the snapshot than that. A source gives 100 kB at most, so that no large one fills the sample.

    Args:
        snapshot: the snapshot to read.
        excluded: sources to leave out: the held-out ones.
        max_bytes: UTF-8 bytes in all, approximately.
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
            yield source, cut
            if total >= max_bytes:
                return
