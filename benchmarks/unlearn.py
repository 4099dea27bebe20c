"""Measure unlearning without evidence: a list of 10,000 sources, some of them wrong, and a long history.

    python benchmarks/unlearn.py [--only list|growth] [--json] [--sources 12000]

The model is tiny and untrained: only the record of a revocation is measured, which does not depend on the weights.
`list`: `nulls unlearn --from list.csv --partial --no-evidence --json` from a cold start, 10,000 queries (titles, URLs,
keys), 50 of them wrong in five ways. It must name the 50, and revoke 9,950 sources in one version.
`growth`: one more revocation after 1,000 versions and 10,000 revoked sources, over one of the first; five minutes.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

# The package `training`, and not `training.py` beside this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from registry import ids, schema
from registry.identity import article_url, fold_title
from registry.schema import AliasKind, Kind, Status
from registry.snapshot import Registry, Snapshot, SnapshotWriter

HOST, SCOPE = "bench.wikipedia.org", "benchwiki"
NUM_QUERIES, NUM_WRONG = 10_000, 50
_SYLLABLES = [a + b for a in "bdfgklmn" for b in "aeiou"]


@dataclasses.dataclass(frozen=True)
class Model:
    """A registered model and its stores."""

    snapshot: Snapshot
    titles: list[str]  # of article 1, 2, ...
    heldout: list[int]  # numbers of articles
    environment: dict[str, str]


def key(number: int) -> str:
    """Return the key of an article; articles are numbered from 1."""
    return f"wiki:{SCOPE}:{number}"


def make_titles(count: int) -> list[str]:
    """Return titles of two invented words and a number; the last five are the first five again."""
    chance = random.Random(0)
    words = ["".join(chance.choices(_SYLLABLES, k=3)).capitalize() for _ in range(5000)]
    found = [f"{chance.choice(words)} {chance.choice(words)} {n}" for n in range(1, count - 4)]
    return found + found[:5]


def write_snapshot(root: Path, titles: list[str]) -> Snapshot:
    """Commit a snapshot of one short article for each title, with its title and one redirect as aliases."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in schema.TABLES}
    shard = []
    by_id = sorted(range(1, len(titles) + 1), key=lambda n: ids.source_id(key(n)))
    for row, n in enumerate(by_id):
        source_id, doc_id, title = ids.source_id(key(n)), ids.doc_id(key(n), key(n)), titles[n - 1]
        text = f"{title} is the article with the number {n} of {len(titles)}. " + " ".join(_SYLLABLES[: 5 + n % 20])
        size = len(text.encode())
        shard.append({"source_id": source_id, "doc_id": doc_id, "text": text})
        common = {"source_id": source_id, "title": title, "num_bytes": size}
        placements = [{"shard": 0, "row_start": row, "row_end": row + 1}]
        rows["sources"].append(
            {**common, "key": key(n), "kind": Kind.WIKI, "num_documents": 1, "placements": placements}
        )
        origin = {"origin_id": source_id, "url": article_url(HOST, title), "captured": "2020-01-01T00:00:00Z"}
        place = {"input_file": "bench", "input_offset": n, "input_length": 1, "input_stored": True}
        rows["documents"].append({**common, "doc_id": doc_id, "status": Status.KEPT, **origin, **place})
        for alias, kind in ((title, AliasKind.TITLE), (f"Redirect to {title}", AliasKind.REDIRECT)):
            named = {"alias_hash": ids.alias_hash(fold_title(alias)), "alias": alias, "kind": kind}
            target = {"source_id": source_id, "scope": SCOPE, "target": None if kind == AliasKind.TITLE else title}
            rows["aliases"].append(named | target)
    writer = SnapshotWriter(Registry.open(root, create=True), root / "staging")
    for name, columns in schema.TABLES.items():
        order = [(column, "ascending") for column in schema.SORT_ORDER[name]]
        with writer.table(name) as file:
            file.write(pa.Table.from_pylist(rows[name], schema=columns).sort_by(order))
    with writer.shard(0) as file:
        file.write(pa.Table.from_pylist(shard, schema=schema.SHARD))
    return writer.commit(configuration={"benchmark": True}, inputs=[], wikis=[{"scope": SCOPE, "host": HOST}])


def make_model(folder: Path, num_sources: int) -> Model:
    """Register an untrained model of `num_sources` sources as version 1 of `m`."""
    import torch

    from training.checkpoint.export import export_weights
    from training.config import TrainConfig
    from training.data.tokenizer import sample_texts, train_tokenizer
    from training.run.worker import build_model
    from training.serving import flavor
    from training.tracking import store

    titles = make_titles(num_sources)
    snapshot = write_snapshot(folder / "registry", titles)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
    sinks = {"num_backbone": 32, "num_pool": 1024, "num_sinks": 64}
    config = TrainConfig.preset("demo", model=shape | sinks, context_length=128, vocab_size=300)
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=set(), max_bytes=10**6), config.vocab_size)
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    heldout = list(range(101, 113))
    pointer = {
        "schema": 1,
        "snapshot": snapshot.id,
        "registry": str(folder / "registry"),
        "layout": model.config.layout.to_dict(),
        "context_length": config.context_length,
        "heldout": [ids.format_id(ids.source_id(key(n))) for n in heldout],
    }
    export_weights(model, tokenizer, folder / "weights", pointer)
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = store.client(tracking_uri)
    experiment = client.create_experiment("bench", artifact_location=str(folder / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    flavor.register(folder / "weights", model_name="m", run_id=run_id, tracking_uri=tracking_uri)
    environment = {
        "NULLS_REGISTRY": str(folder / "registry"),
        "NULLS_CATALOG": f"sqlite:///{folder / 'catalog.db'}",
        "MLFLOW_TRACKING_URI": tracking_uri,
    }
    return Model(snapshot, titles, heldout, environment)


def nulls(model: Model, *arguments: str) -> tuple[int, Any, float]:
    """Run `nulls ... --json` in a process of its own; return exit code, document and seconds."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "orchestration.cli", *arguments, "--json"],
        env=os.environ | model.environment,
        stdout=subprocess.PIPE,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), time.perf_counter() - began


def queries(model: Model) -> list[str]:
    """Return 10,000 queries in random order, 50 of them wrong: ten each of five kinds (five are ambiguous titles)."""
    missing = [f"{model.titles[n]}x" for n in range(200, 220)]
    elsewhere = [f"https://{HOST}/wiki/No_such_page_{n}" for n in range(5)]
    gone = [key(n) for n in range(121, 131)]
    heldout = [key(n) for n in model.heldout[:10]]
    ambiguous = model.titles[:5]
    wrong = missing + elsewhere + gone + heldout + ambiguous
    assert len(wrong) == NUM_WRONG
    spellings: tuple[Callable[[int], str], ...] = (
        lambda n: model.titles[n - 1],
        lambda n: article_url(HOST, model.titles[n - 1]),
        key,
    )
    right = [spellings[n % 3](n) for n in range(301, 301 + NUM_QUERIES - NUM_WRONG)]
    mixed = right + wrong
    random.Random(1).shuffle(mixed)
    return mixed


def list_of_sources(folder: Path, num_sources: int) -> dict[str, Any]:
    """Unlearn a list of 10,000 sources."""
    from training.serving import flavor

    model = make_model(folder, num_sources)
    gone = [key(n) for n in range(121, 131)]
    code, _, one_s = nulls(model, "unlearn", "models:/m/1", *gone, "--reason", "before", "--no-evidence")
    assert code == 0
    path = folder / "list.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "reason", "reference"])
        writer.writerows((query, "takedown", f"case {n}") for n, query in enumerate(queries(model)))
    command = ("unlearn", "models:/m/1", "--from", str(path), "--no-evidence")
    code, refused, refused_s = nulls(model, *command)
    assert code == 1, refused
    assert len(refused["wrong"]) == NUM_WRONG
    code, result, seconds = nulls(model, *command, "--partial")
    assert code == 1, result
    tracking_uri = model.environment["MLFLOW_TRACKING_URI"]
    made = flavor.versions("m", tracking_uri=tracking_uri)
    return {
        "queries": NUM_QUERIES,
        "wrong_named": len(result["wrong"]),
        "kinds": sorted({row["kind"] for row in result["wrong"]}),
        "revoked": len(made[-1].revoked - made[-2].revoked),
        "versions": len(made) - 2,
        "seconds": round(seconds, 1),
        "seconds_all_wrong_said_and_nothing_done": round(refused_s, 1),
        "seconds_of_ten_keys": round(one_s, 1),
    }


def growth_of_history(folder: Path, _num_sources: int) -> dict[str, Any]:
    """Measure the part `growth`, see `unlearn_growth.py`."""
    from unlearn_growth import growth

    return growth(folder)


def main() -> None:
    """Run the parts that are asked for."""
    parts: dict[str, Callable[[Path, int], dict[str, Any]]] = {"list": list_of_sources, "growth": growth_of_history}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, action="append", help="a part; by default all")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--sources", type=int, default=12_000, help="of the model")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in options.only or parts:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = parts[name](Path(folder), options.sources)
        if not options.json:
            print(name, found[name])
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
