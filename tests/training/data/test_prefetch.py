"""Prefetched batches are the loader's, and the position is that of the batches returned, not of those made ahead."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator

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


def test_resuming_from_the_position_skips_and_repeats_nothing(cache: TokenCache) -> None:
    whole = list(loader(cache))
    for done in range(1, len(whole)):
        first = Prefetcher(loader(cache), CPU, depth=3)
        list(itertools.islice(first, done))
        rest = list(Prefetcher(loader(cache, state=first.state), CPU))
        assert len(rest) == len(whole) - done
        assert all(equal(got, expected) for got, expected in zip(rest, whole[done:], strict=True))


class Clock:
    """A clock that only the test moves; it can be waited for until it was read often enough."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_reads = 0
        self._was_read = threading.Condition()

    def read(self) -> float:
        with self._was_read:
            self.num_reads += 1
            self._was_read.notify_all()
            return self.now_s

    def wait_for_reads(self, number: int) -> None:
        with self._was_read:
            assert self._was_read.wait_for(lambda: self.num_reads >= number, timeout=60), self.num_reads


class Watched(PackedLoader):
    """A loader that calls `before_batch` with the number of each batch, from 1, before it returns the batch."""

    before_batch: Callable[[int], None]

    def __iter__(self) -> Iterator[Batch]:
        for number, batch in enumerate(super().__iter__(), 1):
            self.before_batch(number)
            yield batch


def watched(cache: TokenCache) -> Watched:
    return Watched(cache, epochs=2, context_length=64, rows_per_step=5)


def test_the_time_spent_waiting_is_measured(cache: TokenCache) -> None:
    clock, slow = Clock(), watched(cache)

    def take_seven_seconds(number: int) -> None:
        # The clock is read before and after each wait: this batch is made after its wait began.
        clock.wait_for_reads(2 * number - 1)
        clock.now_s += 7.0

    slow.before_batch = take_seven_seconds
    batches = Prefetcher(slow, CPU, clock=clock.read)
    assert [batches.waited_s for _ in batches] == [7.0] * slow.total_steps
    assert slow.total_steps > 4


def test_no_time_is_spent_waiting_where_the_next_batch_is_ready_before_the_step_ends(cache: TokenCache) -> None:
    clock, slow = Clock(), watched(cache)
    may_make, made = threading.Semaphore(1), threading.Semaphore(0)

    def take_seven_seconds(_: int) -> None:
        assert may_make.acquire(timeout=60)
        clock.now_s += 7.0
        made.release()

    slow.before_batch = take_seven_seconds
    batches = Prefetcher(slow, CPU, clock=clock.read)
    waited_s = []
    for number, _ in enumerate(batches, 1):
        waited_s.append(batches.waited_s)
        if number < slow.total_steps:  # a step, during which the next batch is made
            may_make.release()
            assert made.acquire(timeout=60)
            if number == 1:
                assert made.acquire(timeout=60)
    assert waited_s[1:] == [0.0] * (slow.total_steps - 1)
    assert clock.now_s == 7.0 * slow.total_steps > 28


def test_an_error_of_the_loader_is_raised_and_the_thread_ends(cache: TokenCache) -> None:
    class Broken(PackedLoader):
        def __iter__(self) -> Iterator[Batch]:
            yield from itertools.islice(super().__iter__(), 1)
            raise OSError("the disk is gone")

    before = threading.active_count()
    batches = iter(Prefetcher(Broken(cache, context_length=64, rows_per_step=5), CPU))
    next(batches)
    with pytest.raises(OSError, match="is gone"):
        next(batches)
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_tensors_arrive_on_the_device(cache: TokenCache) -> None:
    plain, ahead = loader(cache), Prefetcher(loader(cache), torch.device("cuda"))
    for expected, got in zip(plain, ahead, strict=True):
        assert got.input_ids.is_cuda
        assert torch.equal(got.input_ids.cpu(), expected.input_ids)
