"""Prompt -> the source whose sinks to use: the closest trained source that is still in force.

NULLs needs to be told whose text a prompt is like. This router compares words (hashed TF-IDF, cosine), which needs no
second model, no network and no GPU, and is the same on every machine. The paper uses sentence embeddings; a source
that was unlearned is simply left out of the comparison, so its prompts go to the next closest. An index keeps the 64
heaviest words of each source: about 0.8 kB a source, so 5 GB for 6.4 million articles, and 1 ms a prompt at 10,000.

Run: ``Router.build(ids, texts).closest("who founded anarchism?", exclude={...})``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_NUM_FEATURES = 1 << 18
_NUM_WORDS_KEPT = 64
_BATCH = 256  # texts counted at once: one by one, short ones cost ten times as much
_MAX_CHARS = 200_000  # of one source: enough to know what it is about
# A word, or one character of a script that writes without spaces.
_TOKEN = r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|\w+"


@dataclasses.dataclass(frozen=True)
class Router:
    """An index of sources.

    Attributes:
        source_ids_N: int64, ascending: every source that was trained.
        vectors: scipy CSR [N, F], rows of unit length.
        idf_F: float32, the weight of each hashed word.
    """

    source_ids_N: npt.NDArray[np.int64]
    vectors: Any
    idf_F: npt.NDArray[np.float32]

    @classmethod
    def build(cls, sources: Iterable[tuple[int, str]]) -> Router:
        """Indexes (source_id, text) pairs, each source once; `text` may be a part of it."""
        from scipy import sparse

        ids: list[int] = []
        counts = []
        ordered = iter(sorted(sources))
        while batch := list(itertools.islice(ordered, _BATCH)):
            ids += [source_id for source_id, _ in batch]
            counts.append(_counts([text[:_MAX_CHARS] for _, text in batch]))
        matrix = sparse.vstack(counts, format="csr") if counts else sparse.csr_matrix((0, _NUM_FEATURES))
        frequency = np.bincount(matrix.indices, minlength=_NUM_FEATURES)
        idf = (np.log((1 + len(ids)) / (1 + frequency)) + 1).astype(np.float32)
        return cls(np.array(ids, np.int64), _unit_rows(_keep_heaviest(_weigh(matrix, idf))), idf)

    def knows(self, source_id: int) -> bool:
        """Whether the source was trained."""
        place = int(np.searchsorted(self.source_ids_N, source_id))
        return place < len(self.source_ids_N) and int(self.source_ids_N[place]) == source_id

    def closest(self, text: str, *, exclude: Collection[int] = ()) -> int | None:
        """The source whose words are most like `text`'s, or None if no source shares one."""
        return self._pick(self._similarity(_unit_rows(_weigh(_counts([text]), self.idf_F))), exclude, farthest=False)

    def closest_to(self, source_id: int, text: str, *, exclude: Collection[int] = ()) -> int | None:
        """The other source most like the source with this id and text."""
        return self.closest(text[:_MAX_CHARS], exclude={source_id, *exclude})

    def farthest_from(self, source_id: int, text: str, *, exclude: Collection[int] = ()) -> int | None:
        """The other source least like it: its sinks are a placebo."""
        similarity = self._similarity(_unit_rows(_weigh(_counts([text[:_MAX_CHARS]]), self.idf_F)))
        return self._pick(similarity, {source_id, *exclude}, farthest=True)

    def save(self, path: Path) -> None:
        """Writes the index as one .npz file."""
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
        """Reads what `save` wrote."""
        from scipy import sparse

        with np.load(path, allow_pickle=False) as saved:
            ids = saved["source_ids"]
            parts = (saved["data"], saved["indices"], saved["indptr"])
            return cls(ids, sparse.csr_matrix(parts, shape=(len(ids), _NUM_FEATURES)), saved["idf"])

    def _similarity(self, vector: Any) -> npt.NDArray[np.float64]:
        return np.asarray((self.vectors @ vector.T).todense(), dtype=np.float64).ravel()

    def _pick(self, similarity_N: npt.NDArray[np.float64], exclude: Collection[int], *, farthest: bool) -> int | None:
        allowed_N = ~np.isin(self.source_ids_N, np.fromiter(exclude, np.int64, len(exclude)))
        if not allowed_N.any():
            return None
        worst = np.inf if farthest else -np.inf
        ranked = np.where(allowed_N, similarity_N, worst)
        best = int(ranked.argmin() if farthest else ranked.argmax())
        if not farthest and similarity_N[best] <= 0:
            return None
        return int(self.source_ids_N[best])


def _counts(texts: list[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(
        n_features=_NUM_FEATURES, alternate_sign=False, norm=None, token_pattern=_TOKEN, dtype=np.float32
    )
    return vectorizer.transform(texts)


def _weigh(counts: Any, idf_F: npt.NDArray[np.float32]) -> Any:
    weighed = counts.copy()
    weighed.data = (1 + np.log(weighed.data)) * idf_F[weighed.indices]
    return weighed


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
