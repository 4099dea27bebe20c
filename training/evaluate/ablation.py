"""Ablation: measure a source's text with its sinks on and off, and compare it with sources that were never trained.

There are three ablations: with the sinks of the closest other source (which serving would use for the prompt), with
those of a far source (a placebo), and with the backbone only. Held-out sources are measured in the same three, so that
they can be compared with a source that the model knows nothing of, after a correction for how hard each text is
(`training.evaluate.difficulty`). A retrained model (an oracle), where there is one, gives the never-trained loss
instead.

Cost: four passes over at most 8,192 tokens of each source, three over each held-out source, and counting the
tokens of 4 MB of other sources' text.

Run: ``Examiner(served, snapshot, [source.source_id]).examine(source).to_dict()``.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from registry.lookup import Source, read_sources
from registry.snapshot import Snapshot
from training.evaluate.difficulty import Bigrams, sample
from training.evaluate.losses import encode, loss_of
from training.evaluate.statistics import ABLATIONS, Expected, closure, combined_p, expected, weaknesses
from training.serving.served_model import ServedModel

MAX_TOKENS = 8192
"""Tokens of a source that are measured, at most."""
MAX_HELDOUT = 64
"""Held-out sources that are measured, at most."""

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceMeasurement:
    """The measurements of one source. Losses are in nats a token; mappings are by ablation."""

    key: str
    title: str | None
    num_tokens: int
    """Targets that were measured."""
    difficulty: float
    """The text's loss under bigrams that were counted in other sources' text."""
    loss_on: float
    """The loss under the source's own sinks."""
    loss_off: Mapping[str, float]
    p_values: Mapping[str, float | None]
    """One-sided: that a never-trained text as hard has a loss as low."""
    p_value: float | None
    """Bonferroni over the three ablations."""
    never: Mapping[str, float]
    """The never-trained loss: the oracle's, or the one that the held-out baseline expects."""
    expected: Mapping[str, Mapping[str, float | int | None]]
    """What the held-out baseline expects of a never-trained text as hard (`Expected.to_dict`); empty without one."""
    closure: Mapping[str, float | None]
    oracle: Mapping[str, float] | None
    """The oracle's losses; None without an oracle."""
    weaknesses: Sequence[str]
    """Reasons why this does not support that the source was unlearned."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldoutBaseline:
    """The held-out sources, measured in the three ablations."""

    keys: Sequence[str]
    losses: Mapping[str, Sequence[float]]
    """Ablation -> the loss of each source, in nats a token."""
    difficulties: Sequence[float]

    def expected(self, state: str, difficulty: float) -> Expected | None:
        """Return the expected loss of a never-trained source of this difficulty; None if no source was held out."""
        return expected(self.losses[state], self.difficulties, difficulty)

    @property
    def means(self) -> dict[str, float | None]:
        """Ablation -> the mean loss; None if no source was held out."""
        return {state: statistics.fmean(values) if values else None for state, values in self.losses.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the `heldout` object of an audit's JSON."""
        spread = {state: statistics.stdev(values) for state, values in self.losses.items() if len(values) > 1}
        extremes = {state: [min(values), max(values)] for state, values in self.losses.items() if values}
        return {
            "num_sources": len(self.keys),
            **self.means,
            "stdev": spread,
            "range": extremes,
            "difficulties": list(self.difficulties),
            "losses": {state: list(values) for state, values in self.losses.items()},
        }


class Examiner:
    """Measures sources of one snapshot under one model.

    Args:
        served: the model; its revocations decide which sources can be the closest.
        snapshot: the snapshot that it was trained on.
        examined: ids of the sources to examine; the difficulty of each is counted without its own text.
        progress: called with a message before each measurement.
    """

    def __init__(
        self,
        served: ServedModel,
        snapshot: Snapshot,
        examined: Collection[int],
        progress: Progress = lambda _: None,
    ) -> None:
        self.served = served
        self.snapshot = snapshot
        self._examined = frozenset(examined)
        self._progress = progress
        self._context_length = int(served.version.pointer["context_length"])
        self._baseline: HeldoutBaseline | None = None

    def on_loss(self, source: Source) -> float:
        """Return the loss of a source's text under its own sinks, in nats a token."""
        return self._loss(self._encode(self._texts(source.source_id)), source.source_id)

    def off_losses(
        self, source: Source, *, also_off: Collection[int] = (), texts: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Return the loss of a source's text in the three ablations, in nats a token.

        Args:
            source: the source.
            also_off: sources that cannot be the closest one, besides the revoked ones.
            texts: the source's documents, where this examiner's snapshot does not hold them (an oracle's does not).
        """
        texts = self._texts(source.source_id) if texts is None else texts
        documents, text = self._encode(texts), "\n".join(texts)
        exclude = self.served.out_of_force | set(also_off)
        closest = self.served.router.closest_to(source.source_id, text, exclude=exclude)
        farthest = self.served.router.farthest_from(source.source_id, text, exclude=exclude)
        stand_ins = {"closest": closest, "placebo": farthest, "backbone": None}
        return {state: self._loss(documents, source_id) for state, source_id in stand_ins.items()}

    def heldout_baseline(self) -> HeldoutBaseline:
        """Return the held-out baseline, which is measured once."""
        if self._baseline is None:
            chosen = sorted(self.served.version.heldout)[:MAX_HELDOUT]
            known = read_sources(self.snapshot, chosen)
            losses: dict[str, list[float]] = {state: [] for state in ABLATIONS}
            for source_id in chosen:
                self._progress(f"held-out source {known[source_id].key}")
                for state, value in self.off_losses(known[source_id]).items():
                    losses[state].append(value)
            documents = [self._encode(self._texts(source_id)) for source_id in chosen]
            self._baseline = HeldoutBaseline(
                keys=[known[source_id].key for source_id in chosen],
                losses=losses,
                difficulties=[self._difficulty(n, own) for n, own in zip(chosen, documents, strict=True)],
            )
        return self._baseline

    @functools.cached_property
    def _counted(self) -> tuple[Bigrams, dict[int, list[list[int]]]]:
        """Bigrams of text that was not held out, and the documents in it that are the examined sources' own."""
        self._progress("counting other sources' text")
        documents: list[list[int]] = []
        own: dict[int, list[list[int]]] = {source_id: [] for source_id in self._examined}
        for source, text in sample(self.snapshot, excluded=self.served.version.heldout):
            encoded = encode(self.served.tokenizer, [text], max_tokens=len(text.encode()) + 2)
            documents += encoded
            if source in own:
                own[source] += encoded
        return Bigrams.count(documents, len(self.served.tokenizer)), own

    def _difficulty(self, source_id: int, documents: list[list[int]]) -> float:
        """Return how hard a source's documents are, by counts in other sources' text."""
        bigrams, own = self._counted
        return bigrams.without(own.get(source_id, [])).loss(documents)

    def examine(
        self, source: Source, *, also_off: Collection[int] = (), oracle: Examiner | None = None
    ) -> SourceMeasurement:
        """Measure one source.

        Args:
            source: one of `examined`.
            also_off: see `off_losses`.
            oracle: of a model retrained without the source; its losses are then the never-trained ones.

        Raises:
            ValueError: the source is not one of `examined`.
        """
        if source.source_id not in self._examined:
            raise ValueError(f"{source.key}: not among the sources that this examiner was created for")
        self._progress(f"source {source.key}")
        baseline, documents = self.heldout_baseline(), self._encode(self._texts(source.source_id))
        on, off = self.on_loss(source), self.off_losses(source, also_off=also_off)
        truth = oracle.off_losses(source, texts=self._texts(source.source_id)) if oracle else None
        difficulty = self._difficulty(source.source_id, documents)
        expectations = {state: baseline.expected(state, difficulty) for state in ABLATIONS}
        never = truth or {state: found.mean for state, found in expectations.items() if found}
        p_values = {state: found.p_value(off[state]) if found else None for state, found in expectations.items()}
        closures = {
            state: closure(on=on, off=off[state], never=never[state]) if state in never else None for state in ABLATIONS
        }
        p_value = combined_p(list(p_values.values()))
        return SourceMeasurement(
            key=source.key,
            title=source.title,
            num_tokens=sum(len(document) - 1 for document in documents),
            difficulty=difficulty,
            loss_on=on,
            loss_off=off,
            p_values=p_values,
            p_value=p_value,
            never=never,
            expected={state: found.to_dict() for state, found in expectations.items() if found},
            closure=closures,
            oracle=truth,
            weaknesses=weaknesses(
                p_value=p_value,
                closures=closures,
                num_controls=len(baseline.keys),
                trace=_trace(p_values, off, expectations),
            ),
        )

    def _texts(self, source_id: int) -> list[str]:
        return [text for _, text in self.snapshot.texts(source_id)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return encode(self.served.tokenizer, texts, max_tokens=MAX_TOKENS)

    def _loss(self, documents: list[list[int]], source_id: int | None) -> float:
        mask_id = None if source_id is None else self.served.mask_id(source_id)
        return loss_of(self.served.model, documents, source_id=mask_id, context_length=self._context_length).mean


def _trace(
    p_values: Mapping[str, float | None], off: Mapping[str, float], expectations: Mapping[str, Expected | None]
) -> str:
    """Describe the ablation in which a source's text is least like a never-trained one; "" if none is known."""
    known = {state: p for state, p in p_values.items() if p is not None}
    if not known:
        return ""
    state = min(known, key=lambda name: known[name])
    found = expectations[state]
    return f"{state}: {off[state]:.2f} nats a token where {found.mean:.2f} is expected" if found else ""
