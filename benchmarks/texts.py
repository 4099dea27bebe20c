"""Texts of any number and size for the benchmarks: shuffled sentences of the Wikipedia excerpt in gensim."""

from __future__ import annotations

import functools
import random
import re

from orchestration.demo import find_excerpt
from pipelines.document import Document
from pipelines.readers.wikipedia.xml_dump import read_wikipedia
from pipelines.text.extract import wikitext_to_text


@functools.cache
def sentences() -> list[str]:
    """Return all 45,000 sentences of the excerpt."""
    path = find_excerpt()
    texts = (
        wikitext_to_text(str(item.markup)) for item in read_wikipedia(path, path.name) if isinstance(item, Document)
    )
    return [sentence for text in texts for sentence in re.split(r"(?<=[.!?])\s+", text) if 20 < len(sentence) < 500]


def make(count: int, num_bytes: int = 4000, seed: int = 0) -> list[str]:
    """Return `count` texts of about `num_bytes` bytes each."""
    chance = random.Random(seed)
    pool = sentences()
    texts = []
    for _ in range(count):
        parts: list[str] = []
        size = 0
        while size < num_bytes:
            parts.append(pool[chance.randrange(len(pool))])
            size += len(parts[-1]) + 1
        texts.append(" ".join(parts))
    return texts
