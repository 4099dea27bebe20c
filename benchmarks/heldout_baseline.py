"""Test whether evidence tells a remembered text from an easy one, with and without the regression on difficulty.

    python benchmarks/isolation.py ARTICLES --work DIR          (first: trains the models)
    python benchmarks/heldout_baseline.py ARTICLES --work DIR [--held-out 12] [--draws 4000]

For each model of `isolation.py`, sources that no model was trained on are drawn as held-out baseline many times. One
more of them is the case: calling it remembered is an error, and the test allows itself 5 %. Errors are also counted for
the easiest quarter, where a test that takes easy for remembered errs most. Then the case is a source that the model was
trained on, with the backbone alone: calling that remembered is the test's power, as far as the backbone remembers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from isolation import BASE, Corpus, corpus

from training.evaluate.difficulty import Bigrams
from training.evaluate.statistics import SIGNIFICANCE, expected


def difficulties(data: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Return how hard the unseen and the measured sources are, by word pairs counted in the other sources."""
    index_of = {int(source): index for index, source in enumerate(data.cache.source_id)}

    def documents(sources: list[int]) -> list[list[int]]:
        return [data.cache.document(index_of[source]).tolist() for source in sources]

    others = sorted(set(data.trained) - set(data.measured))
    bigrams = Bigrams.count(documents(others), len(data.tokenizer))
    unseen, measured = ([bigrams.loss([d]) for d in documents(s)] for s in (data.unseen, data.measured))
    return np.array(unseen), np.array(measured)


def rates(
    unseen: np.ndarray, trained: np.ndarray, hard_U: np.ndarray, hard_M: np.ndarray, heldout: int, draws: int
) -> dict[str, list[float]]:
    """Return shares called remembered, by mean and by regression, of unseen, easy unseen and trained sources."""
    rng = np.random.default_rng(0)
    easy = set(np.argsort(hard_U)[: len(hard_U) // 4].tolist())
    called: dict[str, list[list[bool]]] = {"unseen": [], "easy": [], "trained": []}
    for _ in range(draws):
        *controls, case = rng.permutation(len(unseen))[: heldout + 1].tolist()
        other = int(rng.integers(len(trained)))
        for name, loss, hard in (
            ("unseen", unseen[case], hard_U[case]),
            ("trained", trained[other], hard_M[other]),
        ):
            found = [
                (expected(unseen[controls].tolist()), loss),
                (expected(unseen[controls].tolist(), hard_U[controls].tolist(), float(hard)), loss),
            ]
            called[name].append([(e.p_value(y) if e else 1.0) < SIGNIFICANCE for e, y in found])
        if case in easy:
            called["easy"].append(called["unseen"][-1])
    return {name: np.mean(values, axis=0).round(3).tolist() for name, values in called.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path)
    parser.add_argument("--work", type=Path, default=Path("isolation"))
    parser.add_argument("--held-out", type=int, default=12)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--chars", type=int, default=700)
    arguments = parser.parse_args()
    data = corpus(arguments.articles, arguments.work, num_chars=arguments.chars, vocab_size=int(BASE["vocab_size"]))
    hard = difficulties(data)
    print("| model | variance explained | errors, mean / regression | of the easiest quarter | trained ones found |")
    print("|---|---|---|---|---|")
    for path in sorted(arguments.work.glob("*.json")):
        losses = json.loads(path.read_text())["losses"]["backbone"]
        unseen, trained = np.array(losses["unseen"]), np.array(losses["off"])
        found = rates(unseen, trained, *hard, arguments.held_out, arguments.draws)
        explained = np.corrcoef(hard[0], unseen)[0, 1] ** 2
        cells = [" / ".join(f"{rate:.0%}" for rate in found[name]) for name in ("unseen", "easy", "trained")]
        print(f"| {path.stem} | {explained:.0%} | {' | '.join(cells)} |")
