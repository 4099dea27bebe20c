"""An iterator that works ahead in a thread of its own: reading goes on while what was read is dealt with.

It gains where one side waits for the other outside the interpreter (Parquet, zstd, NumPy, the disk), on a second core.
Memory is `depth` items more.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(items: Iterable[T], *, depth: int = 2) -> Iterator[T]:
    """The same items; up to `depth` of them are made before they are asked for.

    What raises while an item is made is raised here, in its place. Left early, it makes the items begun, and no more.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as thread:
        begun: collections.deque[Any] = collections.deque(thread.submit(next, iterator, end) for _ in range(depth))
        while (item := begun.popleft().result()) is not end:
            begun.append(thread.submit(next, iterator, end))
            yield item
