"""Reading ahead in a thread: the same items, errors in their place, nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipelines.read_ahead import read_ahead


def test_items_come_in_order_and_in_another_thread() -> None:
    def items() -> Iterator[tuple[int, str]]:
        for number in range(100):
            yield number, threading.current_thread().name

    got = list(read_ahead(items(), depth=3))
    assert [number for number, _ in got] == list(range(100))
    assert threading.current_thread().name not in {name for _, name in got}


def test_an_error_is_raised_where_its_item_would_have_been() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the second")

    made = read_ahead(items(), depth=4)
    assert next(made) == 1
    with pytest.raises(ValueError, match="the second"):
        next(made)


def test_an_iterator_closed_early_finishes_only_the_items_begun() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    before = threading.active_count()
    running = read_ahead(items(), depth=2)
    assert next(running) == 0
    running.close()  # type: ignore[attr-defined]
    assert len(made) <= 4
    assert threading.active_count() == before
