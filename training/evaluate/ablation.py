"""Measure a source's text with its sinks on and off, beside sources that were never trained.

Off has three states, since "off" is not one thing: the sinks of the next-closest source (what serving does with the
prompt), the sinks of a far source (a placebo), and the backbone alone. Held-out sources are measured in the same three
states, which makes them exchangeable with a source that the model knows nothing of, once it is allowed for how hard
each text is by nature (`difficulty.py`). A retrained model, where there is one, gives the never-trained loss instead.

Cost: four passes over at most 8,192 tokens of each source, three over each held-out source, and 4 MB of other sources'
text counted.
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
from training.evaluate.statistics import OFF_STATES, Expected, closure, combined_p, expected, weaknesses
from training.serving.served_model import ServedModel

MAX_TOKENS = 8192
MAX_HELDOUT = 64

Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceEvidence:
    """What was measured of one source; losses in nats a token."""

    key: str
    title: str | None
    num_tokens: int
    difficulty: float  # of the text by nature, under counts of other sources' text
    loss_on: float
    loss_off: Mapping[str, float]
    p_values: Mapping[str, float | None]
    p_value: float | None  # Bonferroni over the three off states
    never: Mapping[str, float]  # the never-trained loss: the oracle's, or what the held-out sources make expected
    closure: Mapping[str, float | None]
    oracle: Mapping[str, float] | None
    weaknesses: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Held-out sources in the three off states."""

    keys: Sequence[str]
    losses: Mapping[str, Sequence[float]]
    difficulties: Sequence[float]

    def expected(self, state: str, difficulty: float) -> Expected | None:
        """What a never-trained source of this difficulty would lose; None if no source was held out."""
        return expected(self.losses[state], self.difficulties, difficulty)

    @property
    def means(self) -> dict[str, float | None]:
        """State -> the mean loss; None where nothing was held out."""
        return {state: statistics.fmean(values) if values else None for state, values in self.losses.items()}

    def to_dict(self) -> dict[str, Any]:
        """The shape of an audit's `heldout`."""
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
        served: the model; its revocations decide which sources can be the next-closest.
        snapshot: the one that it was trained on.
        examined: ids of the sources that will be examined: what each one's difficulty is counted in leaves its own out.
        progress: called with a few words before each measurement.
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
        self._yardstick: Yardstick | None = None

    def on_loss(self, source: Source) -> float:
        """The loss of a source's text under its own sinks."""
        return self._loss(self._encode(self._texts(source.source_id)), source.source_id)

    def off_losses(
        self, source: Source, *, also_off: Collection[int] = (), texts: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The loss of a source's text in the three off states.

        Args:
            also_off: sources that cannot stand in as the next-closest, besides the revoked ones.
            texts: the source's documents, where this examiner's snapshot does not hold them (an oracle's does not).
        """
        texts = self._texts(source.source_id) if texts is None else texts
        documents, text = self._encode(texts), "\n".join(texts)
        exclude = self.served.out_of_force | set(also_off)
        closest = self.served.router.closest_to(source.source_id, text, exclude=exclude)
        farthest = self.served.router.farthest_from(source.source_id, text, exclude=exclude)
        stand_ins = {"closest": closest, "placebo": farthest, "backbone": None}
        return {state: self._loss(documents, number) for state, number in stand_ins.items()}

    def yardstick(self) -> Yardstick:
        """The held-out sources, measured once."""
        if self._yardstick is None:
            chosen = sorted(self.served.version.heldout)[:MAX_HELDOUT]
            known = read_sources(self.snapshot, chosen)
            losses: dict[str, list[float]] = {state: [] for state in OFF_STATES}
            for number in chosen:
                self._progress(f"held-out source {known[number].key}")
                for state, value in self.off_losses(known[number]).items():
                    losses[state].append(value)
            documents = [self._encode(self._texts(number)) for number in chosen]
            self._yardstick = Yardstick(
                keys=[known[number].key for number in chosen],
                losses=losses,
                difficulties=[self._difficulty(n, own) for n, own in zip(chosen, documents, strict=True)],
            )
        return self._yardstick

    @functools.cached_property
    def _counted(self) -> tuple[Bigrams, dict[int, list[list[int]]]]:
        """Counts of other text than the held-out sources', and what of it is the examined sources' own."""
        self._progress("counting other sources' text")
        documents: list[list[int]] = []
        own: dict[int, list[list[int]]] = {number: [] for number in self._examined}
        for source, text in sample(self.snapshot, excluded=self.served.version.heldout):
            encoded = encode(self.served.tokenizer, [text], max_tokens=len(text.encode()) + 2)
            documents += encoded
            if source in own:
                own[source] += encoded
        return Bigrams.count(documents, len(self.served.tokenizer)), own

    def _difficulty(self, source_id: int, documents: list[list[int]]) -> float:
        """How hard a source's documents are by nature, by text that is not its own."""
        bigrams, own = self._counted
        return bigrams.without(own.get(source_id, [])).loss(documents)

    def examine(
        self, source: Source, *, also_off: Collection[int] = (), oracle: Examiner | None = None
    ) -> SourceEvidence:
        """Everything about one source; with an `oracle`, its losses are the never-trained ones.

        Raises:
            ValueError: the source is not one of `examined`.
        """
        if source.source_id not in self._examined:
            raise ValueError(f"{source.key}: not among the sources that this examiner was made for")
        self._progress(f"source {source.key}")
        yardstick, documents = self.yardstick(), self._encode(self._texts(source.source_id))
        on, off = self.on_loss(source), self.off_losses(source, also_off=also_off)
        truth = oracle.off_losses(source, texts=self._texts(source.source_id)) if oracle else None
        difficulty = self._difficulty(source.source_id, documents)
        strangers = {state: yardstick.expected(state, difficulty) for state in OFF_STATES}
        never = truth or {state: stranger.mean for state, stranger in strangers.items() if stranger}
        p_values = {state: stranger.p_value(off[state]) if stranger else None for state, stranger in strangers.items()}
        closures = {
            state: closure(on=on, off=off[state], never=never[state]) if state in never else None
            for state in OFF_STATES
        }
        p_value = combined_p(list(p_values.values()))
        return SourceEvidence(
            key=source.key,
            title=source.title,
            num_tokens=sum(len(document) - 1 for document in documents),
            difficulty=difficulty,
            loss_on=on,
            loss_off=off,
            p_values=p_values,
            p_value=p_value,
            never=never,
            closure=closures,
            oracle=truth,
            weaknesses=weaknesses(
                p_value=p_value,
                closures=closures,
                num_controls=len(yardstick.keys),
                trace=_trace(p_values, off, strangers),
            ),
        )

    def _texts(self, source_id: int) -> list[str]:
        return [text for _, text in self.snapshot.texts(source_id)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return encode(self.served.tokenizer, texts, max_tokens=MAX_TOKENS)

    def _loss(self, documents: list[list[int]], source_id: int | None) -> float:
        model, number = self.served.model, None if source_id is None else self.served.mask_id(source_id)
        return loss_of(model, documents, source_id=number, context_length=self._context_length).mean


def _trace(
    p_values: Mapping[str, float | None], off: Mapping[str, float], strangers: Mapping[str, Expected | None]
) -> str:
    """In words, the off state in which a source's text is the most unlike a stranger's."""
    known = {state: p for state, p in p_values.items() if p is not None}
    if not known:
        return ""
    state = min(known, key=lambda name: known[name])
    stranger = strangers[state]
    return f"{state}: {off[state]:.2f} nats a token where {stranger.mean:.2f} is expected" if stranger else ""
