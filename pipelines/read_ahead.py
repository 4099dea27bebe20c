"""An iterator that works ahead in a thread: the next items are read while the current one is processed.

It helps where one side waits for the other outside the interpreter (Parquet, zstd, NumPy, the disk) and there is a
second core. Memory: `depth` items more.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T], *, depth: int = 2) -> Iterator[T]:
    """Yield the same items, up to `depth` of them made before they are asked for.

    An exception raised while an item is made is raised here in its place. If the iterator is closed early, items that
    are already begun are finished, and no more are made.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        begun: collections.deque[Any] = collections.deque(thread.submit(next, iterator, end) for _ in range(depth))
        while (item := begun.popleft().result()) is not end:
            begun.append(thread.submit(next, iterator, end))
            yield item
