"""The loader against an enumeration of the documents: every token once, in an order that only the seed changes."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import ids
from registry.errors import InputError, RefusedError, UsageError
from registry.snapshot import Snapshot
from training.data.packing import IGNORED, PADDING, Batch, LoaderState, PackedLoader, keyed
from training.data.token_cache import TokenCache
from training.data.tokenizer import sample_texts, train_tokenizer
from training.sinks.layout import NO_SOURCE

TENSORS = ("input_ids", "labels", "document_ids", "source_ids")
SETTINGS = {"seed": 3, "epochs": 2, "context_length": 64, "rows_per_step": 5}
HELDOUT = [ids.source_id(f"wiki:tinywiki:{number}") for number in (3, 4)]


@pytest.fixture(scope="module")
def cache(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**9), 400)
    return TokenCache.of(snapshot, tokenizer, tmp_path_factory.mktemp("cache"))


def loader(cache: TokenCache, **changes: object) -> PackedLoader:
    return PackedLoader(cache, HELDOUT, **(SETTINGS | changes))  # type: ignore[arg-type]


def joined(cache: TokenCache, world_size: int, **changes: object) -> list[dict[str, torch.Tensor]]:
    """The global batches, joined from all ranks, padding rows removed."""
    ranks = [loader(cache, rank=rank, world_size=world_size, **changes) for rank in range(world_size)]
    steps = []
    for parts in zip(*ranks, strict=True):
        step = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
        filled = (step["document_ids"] != PADDING).any(dim=1)
        steps.append({name: tensor[filled] for name, tensor in step.items()})
    return steps


def targets(batches: list[Batch]) -> Counter[tuple[int, int, int]]:
    """Count (source, token, target) over all positions with a target."""
    found: Counter[tuple[int, int, int]] = Counter()
    for batch in batches:
        valid = batch.labels != IGNORED
        columns = (batch.true_source_ids[valid], batch.input_ids[valid], batch.labels[valid])
        found.update(zip(*(column.tolist() for column in columns), strict=True))
    return found


def expected_targets(cache: TokenCache) -> Counter[tuple[int, int, int]]:
    expected: Counter[tuple[int, int, int]] = Counter()
    for index, source in enumerate(cache.source_id.tolist()):
        if source not in HELDOUT:
            document = cache.document(index).tolist()
            expected.update((source, *pair) for pair in itertools.pairwise(document))
    return expected


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_token_is_a_target_exactly_once_over_all_ranks(cache: TokenCache, world_size: int) -> None:
    parts = [loader(cache, epochs=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(part) for part in parts]
    assert targets(list(itertools.chain.from_iterable(batches))) == expected_targets(cache)
    assert all(len(part) == parts[0].total_steps for part in batches)
    for step in zip(*batches, strict=True):
        num_targets = sum(int((batch.labels != IGNORED).sum()) for batch in step)
        assert {batch.num_targets for batch in step} == {num_targets}
    assert sum(batch.num_targets for batch in batches[0]) == parts[0].num_targets_per_epoch


def test_held_out_sources_are_never_returned(cache: TokenCache) -> None:
    for batch in loader(cache):
        assert not np.isin(batch.true_source_ids.numpy(), HELDOUT).any()
    returned = {source for source, _, _ in targets(list(loader(cache)))}
    assert returned == set(cache.source_id.tolist()) - set(HELDOUT)


@pytest.mark.parametrize("world_size", [2, 3, 5, 7])
def test_the_number_of_workers_does_not_change_the_data(cache: TokenCache, world_size: int) -> None:
    one_worker, several = joined(cache, 1, sink_dropout=0.3), joined(cache, world_size, sink_dropout=0.3)
    assert len(one_worker) == len(several) > 10
    for one, other in zip(one_worker, several, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in TENSORS)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_resuming_from_any_position_gives_the_undisturbed_run(cache: TokenCache, data: st.DataObject) -> None:
    undisturbed = loader(cache, sink_dropout=0.25)
    batches, states = [], [undisturbed.state]
    for batch in undisturbed:
        batches.append(batch)
        states.append(LoaderState(**undisturbed.state.to_dict()))
    cut = data.draw(st.integers(0, len(batches)))
    rest = list(loader(cache, sink_dropout=0.25, state=states[cut]))
    assert len(rest) == len(batches) - cut
    for one, other in zip(batches[cut:], rest, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)
        assert (one.epoch, one.step, one.num_targets) == (other.epoch, other.step, other.num_targets)


def test_documents_in_a_row_are_numbered_and_padding_is_marked(cache: TokenCache) -> None:
    several = 0
    for batch in loader(cache, epochs=1):
        assert all(getattr(batch, name).dtype == torch.int64 for name in TENSORS)
        padded = batch.document_ids == PADDING
        assert torch.equal(padded, batch.labels == IGNORED)
        assert (batch.source_ids[padded] == NO_SOURCE).all()
        steps = batch.document_ids.diff(dim=1)[~padded[:, 1:]]
        assert ((steps == 0) | (steps == 1)).all()
        begins = (batch.document_ids.diff(dim=1) == 1) & ~padded[:, 1:]
        assert (batch.input_ids[:, 1:][begins] == cache.end_of_text).all()
        several += int(begins.sum())
    assert several > 5


def test_epochs_differ_and_a_step_mixes_sources(cache: TokenCache) -> None:
    first, second = (joined(cache, 1)[: loader(cache).steps_per_epoch], joined(cache, 1, seed=4))
    assert not torch.equal(first[0]["input_ids"], second[0]["input_ids"])
    one_epoch = loader(cache).steps_per_epoch
    assert not torch.equal(joined(cache, 1)[0]["input_ids"], joined(cache, 1)[one_epoch]["input_ids"])
    assert all(len(step["source_ids"].unique()) > 1 for step in first[:-1])


def test_sink_dropout_is_even_over_documents(cache: TokenCache) -> None:
    share, epochs = 0.25, 40
    packed = loader(cache, sink_dropout=share, epochs=epochs)
    drops = np.stack([packed._dropped(epoch) for epoch in range(epochs)])
    assert abs(drops.mean() - share) < 0.02
    # Binomial counts would range from 4 to 17; with the golden ratio every document is within two of ten.
    assert abs(drops.sum(axis=0) - share * epochs).max() <= 2
    assert not loader(cache, sink_dropout=0.0)._dropped(0).any()
    dropped = [batch.source_ids[batch.document_ids != PADDING] == NO_SOURCE for batch in packed]
    weights = packed._targets_D / packed._targets_D.sum()
    expected = float((drops * weights).sum() / epochs)
    assert torch.cat(dropped).float().mean().item() == pytest.approx(expected, abs=1e-6)


def test_removing_a_source_keeps_the_order_of_the_others(cache: TokenCache) -> None:
    full = loader(cache)
    part = PackedLoader(cache, [*HELDOUT, ids.source_id("web:example.org")], **SETTINGS)  # type: ignore[arg-type]
    order = full._doc_D[full._epoch(0).documents]
    assert (part._doc_D[part._epoch(0).documents] == order[np.isin(order, part._doc_D)]).all()


def test_another_snapshot_or_seed_is_refused(cache: TokenCache) -> None:
    state = loader(cache).state
    with pytest.raises(RefusedError) as refusal:
        loader(cache, state=LoaderState(**{**state.to_dict(), "snapshot": "ab" * 32}))
    assert "ab" * 32 in str(refusal.value)
    assert cache.snapshot_id in str(refusal.value)
    with pytest.raises(RefusedError, match="seed 9"):
        loader(cache, state=LoaderState(**{**state.to_dict(), "seed": 9}))


def test_bad_sizes_and_empty_corpora_are_named(cache: TokenCache) -> None:
    with pytest.raises(UsageError, match="context_length=0"):
        loader(cache, context_length=0)
    with pytest.raises(InputError, match="held out"):
        PackedLoader(cache, cache.source_id.tolist(), **SETTINGS)  # type: ignore[arg-type]


def test_the_key_of_the_order_is_frozen() -> None:
    """Golden values: with another order, runs that began before it could not resume."""
    values = np.array([0, 1, 2, 3, 2**62], dtype=np.int64)
    assert keyed(values, "documents", 3, 1).tolist() == [
        7096160205742035497,
        17112489109998116645,
        2446286865748824428,
        9663658783768610750,
        13042122684283834426,
    ]


def test_sinks_open_late_and_nothing_else_changes(cache: TokenCache) -> None:
    late, always = list(loader(cache, sinks_open_at=0.4)), list(loader(cache))
    first = math.ceil(0.4 * len(always))
    assert 1 < first < len(always)
    for step, (closed, open_) in enumerate(zip(late, always, strict=True)):
        assert torch.equal(closed.input_ids, open_.input_ids)
        assert torch.equal(closed.true_source_ids, open_.true_source_ids)
        expected = torch.full_like(open_.source_ids, NO_SOURCE) if step < first else open_.source_ids
        assert torch.equal(closed.source_ids, expected)


def test_sinks_open_at_the_same_step_after_a_resume(cache: TokenCache) -> None:
    whole = list(loader(cache, sinks_open_at=0.4))
    for done in range(1, len(whole)):
        before = loader(cache, sinks_open_at=0.4)
        list(itertools.islice(before, done))
        after = next(iter(loader(cache, sinks_open_at=0.4, state=before.state)))
        assert torch.equal(after.source_ids, whole[done].source_ids)
