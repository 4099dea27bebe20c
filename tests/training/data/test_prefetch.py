"""Prefetched batches are the loader's, and the position told is that of the batches handed out, not made."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from registry.snapshot import Snapshot
from training.data.packing import Batch, PackedLoader
from training.data.prefetch import Prefetcher
from training.data.token_cache import TokenCache
from training.data.tokenizer import sample_texts, train_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**9), 400)
    return TokenCache.of(snapshot, tokenizer, tmp_path_factory.mktemp("cache"))


def loader(cache: TokenCache, **changes: object) -> PackedLoader:
    return PackedLoader(cache, epochs=2, context_length=64, rows_per_step=5, **changes)  # type: ignore[arg-type]


def equal(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(Batch)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize("depth", [1, 2, 50])
def test_batches_and_positions_are_the_loaders(cache: TokenCache, depth: int) -> None:
    plain, ahead = loader(cache), Prefetcher(loader(cache), CPU, depth=depth)
    count = 0
    for expected, got in zip(plain, ahead, strict=True):
        assert equal(got, expected)
        assert ahead.state == plain.state
        count += 1
    assert count == plain.total_steps > 4


def test_who_resumes_from_the_position_told_misses_and_repeats_nothing(cache: TokenCache) -> None:
    whole = list(loader(cache))
    for done in range(1, len(whole)):
        first = Prefetcher(loader(cache), CPU, depth=3)
        list(itertools.islice(first, done))
        rest = list(Prefetcher(loader(cache, state=first.state), CPU))
        assert len(rest) == len(whole) - done
        assert all(equal(got, expected) for got, expected in zip(rest, whole[done:], strict=True))


class Slow(PackedLoader):
    """A loader that takes its time."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            time.sleep(0.05)
            yield batch


def test_waiting_is_measured_and_goes_away_where_steps_are_longer(cache: TokenCache) -> None:
    def waited(step_s: float) -> list[float]:
        batches = Prefetcher(Slow(cache, epochs=2, context_length=64, rows_per_step=5), CPU)
        found = []
        for _ in batches:
            found.append(batches.waited_s)
            time.sleep(step_s)
        return found[1:]

    hungry, fed = waited(0.0), waited(0.2)
    assert sum(hungry) > 0.02 * len(hungry)
    assert sum(fed) < 0.25 * sum(hungry)


def test_an_error_of_the_loader_is_raised_and_no_thread_stays(cache: TokenCache) -> None:
    class Broken(PackedLoader):
        def __iter__(self) -> Iterator[Batch]:
            yield from itertools.islice(super().__iter__(), 1)
            raise OSError("the disk went away")

    before = threading.active_count()
    batches = iter(Prefetcher(Broken(cache, context_length=64, rows_per_step=5), CPU))
    next(batches)
    with pytest.raises(OSError, match="went away"):
        next(batches)
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_tensors_arrive_on_the_device(cache: TokenCache) -> None:
    plain, ahead = loader(cache), Prefetcher(loader(cache), torch.device("cuda"))
    for expected, got in zip(plain, ahead, strict=True):
        assert got.input_ids.is_cuda
        assert torch.equal(got.input_ids.cpu(), expected.input_ids)
