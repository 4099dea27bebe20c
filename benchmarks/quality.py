"""Measure the quality of deduplication on several versions of the same Wikipedia articles.

    python benchmarks/quality.py FOLDER_OF_DATA

Reads the dumps and extracted articles of the English Wikipedia in FOLDER (`wikipedia/enwiki-sample-*` of 2016,
`wikipedia/enwik8*` of 2006, `articles/wikiextractor-2013*`) and ingests them in one run, each version under a wiki name
of its own; otherwise an article would be one document in several captures. The decisions are compared with true Jaccard
similarities over word 5-grams of the extracted texts, which are computed here with Python's sets, without
`pipelines.dedup.minhash`. An index of shingles finds every pair that shares one, so nothing is sampled:

    pairs            by true Jaccard, and how many of them were found: both documents ended in one cluster (one is the
                     other's survivor, or they share one); pairs of equal title across versions are also listed alone
    recall           of the pairs with Jaccard >= 0.8; with its lower bound (95 %) if all were found
    false merges     pairs in one cluster with Jaccard < 0.5: must be 0
    within           removed documents whose Jaccard to their survivor is at least the threshold (0.75): must be all

Cost: half a minute on two cores; 1.1 GB, most of it the sets of tuples.
"""

from __future__ import annotations

import argparse
import bz2
import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import lzma
import re
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from pipelines.document import Document
from pipelines.ingest import IngestConfig, ingest
from pipelines.readers.wikipedia.articles import read_articles
from pipelines.stage.steps import Clean, StageConfig
from registry.ids import doc_id
from registry.schema import Status
from registry.snapshot import Registry

Shingles: TypeAlias = frozenset[tuple[str, ...]]
Pair: TypeAlias = tuple[int, int]

_NGRAM = 5
_THRESHOLD = 0.75
_NEAR, _FAR = 0.8, 0.5  # pairs from 0.8 on should be found; pairs under 0.5 should not
_EDGES = (0.0, 0.25, _FAR, _THRESHOLD, _NEAR, 0.9, 1.0)
_UNSEEN = "Cf"  # soft hyphens, joiners
_BETWEEN = "PZC"  # punctuation, separators, control characters
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR")  # each character is a word


@dataclasses.dataclass(frozen=True)
class Article:
    """An extracted document; titles are case-folded, since "anarchism" and "Anarchism" are the same article."""

    wiki: str
    title: str
    shingles: Shingles


def versions(folder: Path, target: Path) -> list[Path]:
    """Write the inputs to `target`, each changed to name a wiki of its own, and return their paths.

    Raises:
        SystemExit: there are fewer than three versions in `folder`.
    """
    found = [
        _renamed_dump(path, target, f"v{year}wiki")
        for pattern, year in (("enwik8*.xml", 2006), ("enwiki-sample-pages-articles-multistream.xml.bz2", 2016))
        for path in sorted((folder / "wikipedia").glob(pattern))
    ]
    extracted = sorted((folder / "articles").glob("wikiextractor-2013*.xz"))
    for path in extracted:
        data, count = re.subn(
            rb'(?m)^(<doc [^\n]*?url="http)s?://en\.wikipedia\.org/', rb"\1://v2013.example.org/", _read(path)
        )
        assert count, f"{path}: no article of the English Wikipedia"
        found.append(target / path.name.removesuffix(".xz"))
        found[-1].write_bytes(data)
    if len(found) - len(extracted) < 2 or not extracted:
        raise SystemExit(
            f"{folder}: expected wikipedia/enwik8*, wikipedia/enwiki-sample*, articles/wikiextractor-2013*"
        )
    return found


def _renamed_dump(path: Path, target: Path, wiki: str) -> Path:
    """Write the dump with `wiki` as its <dbname>, which outranks <base>; old dumps have only <base>."""
    data = re.sub(rb"<dbname>[^<]*</dbname>", b"", _read(path))
    data, count = re.subn(rb"<siteinfo>", rb"\g<0><dbname>" + wiki.encode() + rb"</dbname>", data, count=1)
    assert count, f"{path}: no <siteinfo>"
    written = target / f"{wiki}-{path.name.split('.')[0]}.xml"
    written.write_bytes(data)
    return written


def _read(path: Path) -> bytes:
    data = path.read_bytes()
    return {".bz2": bz2.decompress, ".xz": lzma.decompress}.get(path.suffix, bytes)(data)


def shingles(text: str) -> Shingles:
    """Return word 5-grams after NFKC and case folding; punctuation, blanks and control characters separate words."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = "".join(map(_seen, folded)).split()
    return frozenset(zip(*(words[i:] for i in range(_NGRAM)), strict=False))


@functools.cache
def _seen(character: str) -> str:
    category = unicodedata.category(character)
    if category == _UNSEEN:
        return ""
    if category[0] in _BETWEEN:
        return " "
    return f" {character} " if unicodedata.name(character, "").startswith(_UNSPACED) else character


def extracted(paths: Iterable[Path]) -> dict[tuple[int, str], Article]:
    """Return every document that is not filtered, by (document id, SHA-256 of its text)."""
    found = {}
    step = Clean(StageConfig())
    for path in paths:
        for item in step.run(read_articles(path, path.name)):
            if isinstance(item, Document) and item.status is Status.KEPT and item.key and item.title:
                identity = doc_id(item.key, item.locator), hashlib.sha256(item.text.encode()).hexdigest()
                found[identity] = Article(item.key.split(":")[1], item.title.casefold(), shingles(item.text))
    return found


def similarities(articles: dict[int, Article]) -> dict[Pair, float]:
    """Return the true Jaccard similarity of every pair that shares a shingle."""
    holders = collections.defaultdict[tuple[str, ...], list[int]](list)
    for doc in sorted(articles):
        for shingle in articles[doc].shingles:
            holders[shingle].append(doc)
    common = collections.Counter[Pair]()
    for docs in holders.values():
        common.update(itertools.combinations(docs, 2))
    size = {doc: len(article.shingles) for doc, article in articles.items()}
    return {(a, b): count / (size[a] + size[b] - count) for (a, b), count in common.items()}


def by_band(values: dict[Pair, float], found: set[Pair]) -> dict[str, dict[str, int]]:
    """Return how many pairs there are and how many were found, by band of Jaccard ("0.80 to 0.90", exclusive)."""
    bands = {f"{low:.2f} to {high:.2f}": (low, high) for low, high in itertools.pairwise(_EDGES)}
    bands["1.00"] = (1.0, 2.0)
    table = {}
    for name, (low, high) in bands.items():
        pairs = {pair for pair, value in values.items() if low <= value < high}
        table[name] = {"pairs": len(pairs), "found": len(pairs & found)}
    return table


def recall(values: dict[Pair, float], found: set[Pair]) -> dict[str, Any]:
    """Return the recall of near pairs; its bound is one-sided and exact (Clopper and Pearson) where none was missed."""
    near = {pair for pair, value in values.items() if value >= _NEAR}
    whole = bool(near) and near <= found
    return {
        "pairs": len(near),
        "found": len(near & found),
        "recall": round(len(near & found) / len(near), 4) if near else None,
        "lower_bound_95": round(0.05 ** (1 / len(near)), 3) if whole else None,
    }


def measure(rows: list[dict[str, Any]], texts: dict[tuple[int, str], Article]) -> dict[str, Any]:
    """Compare the decisions on these rows of `documents` with the true similarities."""
    articles = {row["doc_id"]: texts[row["doc_id"], row["text_sha256"]] for row in rows}
    values = similarities(articles)
    clusters = collections.defaultdict[int, list[int]](list)
    for row in rows:
        clusters[row["survivor_id"] or row["doc_id"]].append(row["doc_id"])
    found = {pair for members in clusters.values() for pair in itertools.combinations(sorted(members), 2)}
    across = {pair: value for pair, value in values.items() if len({articles[n].wiki for n in pair}) == 2}
    titled = {pair: value for pair, value in across.items() if len({articles[n].title for n in pair}) == 1}
    near = [sorted(articles[n].wiki for n in pair) for pair, value in across.items() if value >= _NEAR]
    # Texts of fewer words than a shingle have no shingles; equal ones are found by their hash.
    removed = [row for row in rows if row["survivor_id"] and articles[row["doc_id"]].shingles]
    to_survivor = [values.get(_pair(row["doc_id"], row["survivor_id"]), 0.0) for row in removed]
    return {
        "articles_compared": dict(sorted(collections.Counter(a.wiki for a in articles.values()).items())),
        "equal_title_across_versions": {**recall(titled, found), "by_jaccard": by_band(titled, found)},
        "all_across_versions": recall(across, found),
        "of_these_by_versions": dict(collections.Counter(map(" and ".join, near))),
        "all_that_share_a_shingle": {**recall(values, found), "by_jaccard": by_band(values, found)},
        "removed": len(removed),
        "removed_equal_in_words": sum(row["reason"] == "exact" for row in removed),
        "false_merges": sum(values.get(pair, 0.0) < _FAR for pair in found if all(articles[n].shingles for n in pair)),
        "within_threshold_of_survivor": sum(value >= _THRESHOLD for value in to_survivor),
        "least_jaccard_to_survivor": round(min(to_survivor), 4) if to_survivor else None,
        "largest_error_of_jaccard_on_record": round(
            max((abs(v - row["jaccard"]) for v, row in zip(to_survivor, removed, strict=True)), default=0.0), 6
        ),
    }


def _pair(one: int, two: int) -> Pair:
    return min(one, two), max(one, two)


def main(folder: str) -> dict[str, Any]:
    """Ingest, and compare."""
    with tempfile.TemporaryDirectory() as work:
        paths = versions(Path(folder), Path(work))
        registry = Path(work) / "registry"
        report = ingest(IngestConfig(wikipedia=tuple(map(str, paths))), registry_uri=registry, workers=2)
        rows = Registry.open(registry).snapshot().table("documents").to_pylist()
        texts = extracted(paths)
    compared = [row for row in rows if row["status"] in (Status.KEPT.value, Status.DUPLICATE.value)]
    return {"inputs": len(paths), "documents_read": report.read, **measure(compared, texts)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    print(json.dumps(main(parser.parse_args().folder), indent=2))
