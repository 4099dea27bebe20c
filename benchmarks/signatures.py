"""Compute MinHash signatures of 50,000 texts of 4 kB on one core, and compare with datatrove's in the same run.

    python benchmarks/signatures.py [--count N]

datatrove's step is measured twice, on fewer texts since it is slower: with a word tokenizer made of one regular
expression (`pipelines.filters.fineweb.FastTokenizer`), and with its default (spaCy; needs `pip install spacy`).
Both compute 14 x 8 hashes over word 5-grams; ours also computes the hash that finds equal texts. CPU seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable
from typing import Any

import texts
from datatrove.pipeline.dedup.minhash import MinhashDedupSignature

from pipelines.dedup.minhash import DedupConfig, fingerprint
from pipelines.filters.fineweb import FastTokenizer


def rate(compute: Callable[[str], object], documents: list[str]) -> float:
    """Return documents per CPU second, after a few that warm up caches."""
    for text in documents[:20]:
        compute(text)
    started = time.process_time()
    for text in documents:
        compute(text)
    return len(documents) / (time.process_time() - started)


def datatrove(folder: str, **options: Any) -> Callable[[str], object]:
    """Return a function that computes datatrove's signature of one text."""
    step = MinhashDedupSignature(folder, **options)
    return lambda text: step.get_signature(step.get_shingles(text))


def main(count: int) -> dict[str, Any]:
    """Run all of them."""
    documents = texts.make(count)
    config = DedupConfig()
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "documents": count,
            "mean_bytes": round(sum(len(text.encode()) for text in documents) / count),
            "ours_per_second": round(rate(lambda text: fingerprint(text, config), documents)),
            "datatrove_fast_tokenizer_per_second": round(
                rate(datatrove(folder, language=FastTokenizer()), documents[:1000]), 1
            ),
        }
        with contextlib.suppress(ImportError):
            default = datatrove(folder)
            found["datatrove_default_per_second"] = round(rate(default, documents[:200]), 1)
    for name in ("fast_tokenizer", "default"):
        peer = found.get(f"datatrove_{name}_per_second")
        if peer:
            found[f"ratio_to_{name}"] = round(found["ours_per_second"] / peer, 1)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000, metavar="N", help="number of texts")
    print(json.dumps(main(parser.parse_args().count), indent=2))
