"""Convert wikitext to text, and compare with mwparserfromhell's `strip_code`, on the Wikipedia excerpt in gensim.

    python benchmarks/extract.py [--every N]

CPU seconds of one core. Both run in one process; the ratio is what counts, since machines differ.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import mwparserfromhell

from orchestration.demo import find_excerpt
from pipelines.document import Document
from pipelines.readers.wikipedia.xml_dump import read_wikipedia
from pipelines.text.extract import wikitext_to_text


def cpu_seconds(convert: Callable[[str], str], texts: list[str]) -> float:
    """Return the CPU time to convert all texts."""
    started = time.process_time()
    for text in texts:
        convert(text)
    return time.process_time() - started


def main(every: int) -> dict[str, Any]:
    """Run both on every n-th article."""
    path = find_excerpt()
    texts = [item.markup for item in read_wikipedia(path, path.name) if isinstance(item, Document)][::every]
    ours = cpu_seconds(wikitext_to_text, texts)
    peer = cpu_seconds(lambda text: str(mwparserfromhell.parse(text).strip_code()), texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    return {
        "articles": len(texts),
        "megabytes": round(num_bytes / 1e6, 2),
        "ours_mb_per_second": round(num_bytes / 1e6 / ours, 2),
        "mwparserfromhell_mb_per_second": round(num_bytes / 1e6 / peer, 2),
        "ratio": round(peer / ours, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use only every N-th article")
    print(json.dumps(main(parser.parse_args().every), indent=2))
