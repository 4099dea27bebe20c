"""Quality of deduplication: the same Wikipedia articles in several versions, each version a wiki of its own.

    python benchmarks/quality.py FOLDER_OF_DATA

Reads the dumps and extracted articles of the English Wikipedia in FOLDER (`wikipedia/enwiki-sample-*`, `enwik8*`,
`articles/wikiextractor-2013*`), ingests them under a wiki name for each, and holds what was decided against true
Jaccard similarities over word 5-grams, computed here with Python's sets from the texts as extracted:

    recall           of the pairs of equal title with Jaccard >= 0.8, those that ended in one cluster
    false merges     documents that were put to a survivor with Jaccard < 0.5
    within           removed documents at or over the threshold (0.75) of their survivor, of all removed
"""

from __future__ import annotations

import argparse
import bz2
import collections
import itertools
import json
import lzma
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Any, TypeAlias

from pipelines.document import Document
from pipelines.ingest import IngestConfig, ingest
from pipelines.readers.articles import read_articles
from pipelines.stage import Clean, StageConfig
from registry.ids import doc_id
from registry.schema import Status
from registry.snapshot import Registry

Shingles: TypeAlias = frozenset[tuple[str, ...]]
_BANDS = (0.0, 0.5, 0.75, 0.8, 0.9, 1.0, 1.01)


def versions(folder: Path, target: Path) -> list[Path]:
    """The inputs, each rewritten to say that it is of a wiki of its own."""
    found = []
    for number, path in enumerate(sorted((folder / "wikipedia").glob("enwik*"))):
        if "articles-multistream.xml" not in path.name and "enwik8" not in path.name:
            continue
        data = bz2.decompress(path.read_bytes()) if path.suffix == ".bz2" else path.read_bytes()
        wiki = f"version{number}wiki".encode()
        data = re.sub(rb"<dbname>[^<]*</dbname>", b"", data)
        base = rb"\g<0><dbname>" + wiki + rb"</dbname>"
        data = re.sub(rb"<siteinfo>", base, data, count=1)
        found.append(target / f"{wiki.decode()}-{path.name.split('.')[0]}.xml")
        found[-1].write_bytes(data)
    for path in sorted((folder / "articles").glob("wikiextractor-2013*")):
        data = lzma.decompress(path.read_bytes()).replace(b"//en.wikipedia.org/", b"//version2013.example.org/")
        found.append(target / path.name.removesuffix(".xz"))
        found[-1].write_bytes(data)
    return found


def shingles(text: str) -> Shingles:
    """Word 5-grams after NFKC and case folding, punctuation apart."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    spaced = "".join(c if unicodedata.category(c)[0] not in "PZC" else " " for c in folded)
    words = spaced.split()
    return frozenset(zip(*(words[i:] for i in range(5)), strict=False))


def jaccard(one: Shingles, two: Shingles) -> float:
    """Of two sets; 0 if both are empty."""
    union = len(one | two)
    return len(one & two) / union if union else 0.0


def texts_of(paths: list[Path]) -> dict[int, tuple[str, str, str]]:
    """Document id -> wiki, title and text, of every document that is not filtered."""
    found = {}
    step = Clean(StageConfig())
    for path in paths:
        for item in step.run(read_articles(path, path.name)):
            if isinstance(item, Document) and item.status is Status.KEPT and item.key:
                found[doc_id(item.key, item.locator)] = (item.key.split(":")[1], item.title or "", item.text)
    return found


def main(folder: str) -> dict[str, Any]:
    """Ingests, and compares."""
    with tempfile.TemporaryDirectory() as place:
        paths = versions(Path(folder), Path(place))
        registry = Path(place) / "registry"
        report = ingest(IngestConfig(wikipedia=tuple(map(str, paths))), registry_uri=registry, workers=2)
        documents = [row for row in Registry.open(registry).snapshot().table("documents").to_pylist() if row["doc_id"]]
        texts = texts_of(paths)
    sets = {number: shingles(text) for number, (_, _, text) in texts.items()}
    survivor = {
        row["doc_id"]: row["survivor_id"] or row["doc_id"]
        for row in documents
        if row["status"] in ("kept", "duplicate")
    }
    removed = [number for number in survivor if survivor[number] != number]
    to_survivor = [jaccard(sets[number], sets[survivor[number]]) for number in removed]
    equal = [row["doc_id"] for row in documents if row["reason"] == "exact"]
    by_title = collections.defaultdict(list)
    for number, (_, title, _) in texts.items():
        by_title[title].append(number)
    pairs = [(a, b) for group in by_title.values() for a, b in itertools.combinations(sorted(group), 2)]
    similar = {pair: jaccard(sets[pair[0]], sets[pair[1]]) for pair in pairs}
    near = [pair for pair, value in similar.items() if value >= 0.8]
    found = [pair for pair in near if survivor[pair[0]] == survivor[pair[1]]]
    bands = collections.Counter(
        f"{low:.2f}-{min(high, 1.0):.2f}"
        for value in similar.values()
        for low, high in itertools.pairwise(_BANDS)
        if low <= value < high
    )
    return {
        "documents": report.read,
        "wikis": sorted({wiki for wiki, _, _ in texts.values()}),
        "pairs_of_equal_title_by_true_jaccard": dict(sorted(bands.items())),
        "pairs_at_0.8": len(near),
        "recall_at_0.8": round(len(found) / len(near), 4) if near else None,
        "removed": len(removed),
        "of_these_equal_text": len(equal),
        "false_merges_below_0.5": sum(value < 0.5 for value in to_survivor),
        "within_threshold_of_survivor": sum(value >= 0.75 for value in to_survivor),
        "least_jaccard_to_survivor": round(min(to_survivor), 4) if to_survivor else None,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    print(json.dumps(main(parser.parse_args().folder), indent=2))
