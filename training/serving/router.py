"""Choose the source whose sinks to use for a prompt: the closest trained source that is not revoked.

A NULLs model switches on the sinks of the source that a prompt is most like. This router compares words (hashed
TF-IDF of scikit-learn, cosine), which needs no second model, no network and no GPU, and gives the same answer on every
machine. The paper uses sentence embeddings. A revoked source is left out of the comparison, so its prompts go to the
next closest. An index keeps the 64 heaviest words of each source: about 0.8 kB a source, so 5 GB for 6.4 million
articles, and 1 ms a prompt at 10,000.

Run: ``Router.build(zip(source_ids, texts)).closest("who founded anarchism?", exclude={...})``.

Shapes: N sources, F hashed words.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.ids import SourceId

_NUM_FEATURES = 1 << 18
_NUM_WORDS_KEPT = 64
_BATCH = 256  # texts counted in one call; with one text a call, short ones cost ten times as much
_MAX_CHARS = 200_000  # of one source: enough to show what it is about
# A word, or one character of a script that writes without spaces.
_TOKEN = r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|\w+"


@dataclasses.dataclass(frozen=True)
class Router:
    """An index of the trained sources.

    Attributes:
        source_ids_N: int64, ascending: every source that was trained.
        vectors: scipy CSR [N, F], rows of unit length.
        idf_F: float32, the inverse document frequency of each hashed word, smoothed.
    """

    source_ids_N: npt.NDArray[np.int64]
    vectors: Any
    idf_F: npt.NDArray[np.float32]

    @classmethod
    def build(cls, sources: Iterable[tuple[int, str]]) -> Router:
        """Index (source_id, text) pairs, each source once; `text` may be a part of the source's text."""
        from scipy import sparse

        ids: list[int] = []
        counts = []
        ordered = iter(sorted(sources))
        while batch := list(itertools.islice(ordered, _BATCH)):
            ids += [source_id for source_id, _ in batch]
            counts.append(_counts([text[:_MAX_CHARS] for _, text in batch]))
        if not counts:
            return cls(np.empty(0, np.int64), sparse.csr_matrix((0, _NUM_FEATURES)), np.ones(_NUM_FEATURES, np.float32))
        matrix = sparse.vstack(counts, format="csr")
        tfidf = _transformer().fit(matrix)
        vectors = _unit_rows(_keep_heaviest(tfidf.transform(matrix, copy=False)))
        return cls(np.array(ids, np.int64), vectors, tfidf.idf_)

    def knows(self, source_id: int) -> bool:
        """Return whether the source was trained."""
        row = int(np.searchsorted(self.source_ids_N, source_id))
        return row < len(self.source_ids_N) and int(self.source_ids_N[row]) == source_id

    def closest(
        self, text: str, *, exclude: Collection[int] = (), among: Collection[int] | None = None
    ) -> SourceId | None:
        """Return the source (of `among`) whose words are most like those of `text`, or None if none shares one."""
        similarity_N = self._similarity(text)
        if among is not None:
            similarity_N[~np.isin(self.source_ids_N, np.fromiter(among, np.int64, len(among)))] = 0
        return self._pick(similarity_N, exclude, farthest=False)

    def closest_to(self, source_id: int, text: str, *, exclude: Collection[int] = ()) -> SourceId | None:
        """Return the other source that is most like the source with this id and text."""
        return self.closest(text[:_MAX_CHARS], exclude={source_id, *exclude})

    def farthest_from(self, source_id: int, text: str, *, exclude: Collection[int] = ()) -> SourceId | None:
        """Return the other source that is least like the source with this id and text: its sinks are a placebo."""
        return self._pick(self._similarity(text[:_MAX_CHARS]), {source_id, *exclude}, farthest=True)

    def save(self, path: Path) -> None:
        """Write the index as one .npz file."""
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                source_ids=self.source_ids_N,
                data=self.vectors.data,
                indices=self.vectors.indices,
                indptr=self.vectors.indptr,
                idf=self.idf_F,
            )

    @classmethod
    def load(cls, path: Path) -> Router:
        """Read an index that `save` wrote."""
        from scipy import sparse

        with np.load(path, allow_pickle=False) as saved:
            ids = saved["source_ids"]
            parts = (saved["data"], saved["indices"], saved["indptr"])
            return cls(ids, sparse.csr_matrix(parts, shape=(len(ids), _NUM_FEATURES)), saved["idf"])

    @staticmethod
    def trained_ids(path: Path) -> npt.NDArray[np.int64]:
        """Read only the sources of an index that `save` wrote: int64 [N], ascending."""
        with np.load(path, allow_pickle=False) as saved:
            source_ids_N: npt.NDArray[np.int64] = saved["source_ids"]
            return source_ids_N

    def without_words_of(self, source_ids: Collection[int]) -> Router:
        """Return an index that knows these sources still, and none of their words."""
        kept_N = ~np.isin(self.source_ids_N, np.fromiter(source_ids, np.int64, len(source_ids)))
        vectors = self.vectors.multiply(kept_N[:, None].astype(self.vectors.dtype)).tocsr()
        vectors.eliminate_zeros()
        return Router(self.source_ids_N, vectors, self.idf_F)

    def _similarity(self, text: str) -> npt.NDArray[np.float64]:
        """Return the cosine of `text` and each source: [N]."""
        vector = _unit_rows(_transformer(self.idf_F).transform(_counts([text])))
        return np.asarray((self.vectors @ vector.T).toarray(), dtype=np.float64).ravel()

    def _pick(
        self, similarity_N: npt.NDArray[np.float64], exclude: Collection[int], *, farthest: bool
    ) -> SourceId | None:
        allowed_N = ~np.isin(self.source_ids_N, np.fromiter(exclude, np.int64, len(exclude)))
        if not allowed_N.any():
            return None
        worst = np.inf if farthest else -np.inf
        ranked = np.where(allowed_N, similarity_N, worst)
        best = int(ranked.argmin() if farthest else ranked.argmax())
        if not farthest and similarity_N[best] <= 0:
            return None
        return SourceId(int(self.source_ids_N[best]))


def _counts(texts: list[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        n_features=_NUM_FEATURES, alternate_sign=False, norm=None, token_pattern=_TOKEN, dtype=np.float32
    )
    return vectorizer.transform(texts)


def _transformer(idf_F: npt.NDArray[np.float32] | None = None) -> Any:
    """Return scikit-learn's TF-IDF weighting, (1 + ln count) * idf; fitted where `idf_F` is given.

    Rows are normalised later: a source's row loses its lightest words first.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    transformer = TfidfTransformer(norm=None, sublinear_tf=True, smooth_idf=True)
    if idf_F is not None:
        transformer.idf_ = idf_F
    return transformer


def _keep_heaviest(matrix: Any) -> Any:
    for row in range(matrix.shape[0]):
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        if len(values) > _NUM_WORDS_KEPT:
            # A stable sort, so that ties fall the same way on every machine.
            values[np.argsort(-values, kind="stable")[_NUM_WORDS_KEPT:]] = 0
    matrix.eliminate_zeros()
    return matrix


def _unit_rows(matrix: Any) -> Any:
    from sklearn.preprocessing import normalize

    return normalize(matrix, copy=False)
