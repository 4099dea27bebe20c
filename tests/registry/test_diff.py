"""Comparisons of two snapshots: sources added, gone, changed and unchanged."""

from __future__ import annotations

import collections
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from orchestration.cli.snapshots import DiffRequest
from orchestration.cli.snapshots import diff as diff_command
from orchestration.output import Output
from orchestration.settings import Settings
from pipelines.ingest import IngestConfig, ingest
from pipelines.removal.remove import remove
from registry import ids, schema
from registry.diff import diff
from registry.errors import UsageError
from registry.schema import Status
from registry.snapshot import Registry, Snapshot, SnapshotWriter
from registry.storage import parquet
from registry.storage.s3 import S3Path
from tests.pipelines.removal.test_remove import archive, text


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A registry of three snapshots: two sites; one page and one site more; one site less."""
    folder = tmp_path_factory.mktemp("registry")
    first = {"a.example/1": text(1), "b.example/1": text(2)}
    second = {"a.example/2": text(3), "c.example/1": text(4)}
    for name, pages in (("one", first), ("two", second)):
        path = archive(folder / f"{name}.warc.gz", pages)
        ingest(IngestConfig(web=(str(path),)), registry_uri=folder / "registry")
    remove(["b.example"], registry_uri=folder / "registry")
    return Registry.open(folder / "registry")


Corpus = dict[int, dict[int, str]]
"""The hash of each document's text, by source id and document id, for all text that is trained on."""


def committed(registry: Registry, staging: Path, corpus: Corpus, offset: int = 0, **changes: Any) -> Snapshot:
    """Commit a snapshot of `corpus`: texts are as long as their hashes, and each document has a second, unkept capture.

    `offset` is the input offset of all documents: it changes the snapshot id, and is not a difference of sources.
    """
    writer = SnapshotWriter(registry, staging)
    sources = [
        {"source_id": source_id, "key": f"web:{source_id}.example", "title": f"Site {source_id}", "kind": "web"}
        | {"num_documents": len(texts), "num_bytes": sum(map(len, texts.values())), "placements": []}
        for source_id, texts in sorted(corpus.items())
    ]
    documents = [
        {"doc_id": doc_id, "source_id": source_id, "origin_id": source_id, "num_bytes": len(sha256), "status": status}
        | {"text_sha256": sha256 + (status != Status.KEPT) * "x", "input_file": "f", "input_offset": offset}
        | {"input_length": 0, "input_stored": False}
        for source_id, texts in corpus.items()
        for doc_id, sha256 in texts.items()
        for status in (Status.KEPT.value, Status.DUPLICATE.value)
    ]
    documents.sort(key=lambda row: (row["doc_id"], row["status"]))
    for name, rows in (("sources", sources), ("documents", documents)):
        with writer.table(name) as file:
            file.write(pa.Table.from_pylist(rows, schema=schema.TABLES[name]))
    return writer.commit(**({"configuration": {}, "inputs": []} | changes))


def drawn(chance: random.Random) -> tuple[Corpus, Corpus]:
    """Draw a corpus, and a second one that differs in some sources and some documents."""
    one = {
        chance.getrandbits(63): {chance.getrandbits(63): f"{chance.getrandbits(8):02x}" for _ in range(size)}
        for size in (chance.choice((0, 1, 2, 9)) for _ in range(chance.choice((0, 1, 40))))
    }
    two = {source_id: dict(texts) for source_id, texts in one.items() if chance.random() < 0.8}
    for texts in two.values():
        if texts and chance.random() < 0.4:
            texts[chance.choice(list(texts))] = f"{chance.getrandbits(8):02x}"
        if chance.random() < 0.1:
            texts[chance.getrandbits(63)] = "ab"
    return one, two | {chance.getrandbits(63): {} for _ in range(chance.choice((0, 3)))}


def sizes(corpus: Corpus, source_id: int) -> dict[str, int]:
    return {"num_documents": len(corpus[source_id]), "num_bytes": sum(map(len, corpus[source_id].values()))}


def test_diff_of_random_corpora_agrees_with_a_comparison_of_their_dicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 7)
    registry, seen = Registry.open(tmp_path, create=True), collections.Counter[str]()
    for seed in range(30):
        one, two = drawn(random.Random(seed))
        made = [committed(registry, tmp_path / "work", corpus) for corpus in (one, two)]
        found = diff(*made).to_dict()
        changed = sorted(n for n in one.keys() & two.keys() if one[n] != two[n])
        assert [e["source_id"] for e in found["in"]] == [ids.format_id(n) for n in sorted(two.keys() - one.keys())]
        assert [e["source_id"] for e in found["out"]] == [ids.format_id(n) for n in sorted(one.keys() - two.keys())]
        assert found["changed"] == [
            {"source_id": ids.format_id(n), "key": f"web:{n}.example", "title": f"Site {n}"}
            | {"before": sizes(one, n), "after": sizes(two, n)}
            for n in changed
        ]
        assert (found["from"], found["to"]) == (made[0].id, made[1].id)
        assert found["counts"]["same"] == len(one.keys() & two.keys()) - len(changed)
        seen.update(found["counts"])
        seen["of one size"] += sum(sizes(one, n) == sizes(two, n) for n in changed)
    assert min(seen[name] for name in ("in", "out", "changed", "same", "of one size")) > 20


def test_documents_swapped_between_sources_are_a_change(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path, create=True)
    corpora: list[Corpus] = [{1: {5: "aa"}, 2: {6: "bb"}}, {1: {5: "bb"}, 2: {6: "aa"}}, {1: {6: "bb"}, 2: {5: "aa"}}]
    made = [committed(registry, tmp_path / "work", corpus) for corpus in corpora]
    for other in made[1:]:
        assert diff(made[0], other).to_dict()["counts"] == {"in": 0, "out": 0, "changed": 2, "same": 0}
    moved = committed(registry, tmp_path / "work", corpora[0], offset=1)
    assert moved.id != made[0].id
    assert diff(made[0], moved).num_same == 2


def test_inputs_and_configuration(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path, create=True)
    sides: list[dict[str, Any]] = [
        {
            "configuration": {"dedup": {"threshold": 0.75, "ngram": 5}, "languages": ["en"], "old": 1, "both": {}},
            "inputs": [{"name": name, "sha256": sha256} for name, sha256 in ("ap", "bq", "cr", "cr")],
        },
        {
            "configuration": {"dedup": {"threshold": 0.8, "ngram": 5}, "languages": [], "new": {"x": 1}, "both": {}},
            "inputs": [{"name": name, "sha256": sha256} for name, sha256 in ("ap", "bz", "cr", "ds")],
        },
    ]
    made = [committed(registry, tmp_path / "work", {}, **side) for side in sides]
    found = diff(*made).to_dict()
    assert found["inputs"] == {"added": ["b", "d"], "gone": ["b", "c"]}
    assert found["configuration"] == [
        {"field": "dedup.threshold", "from": 0.75, "to": 0.8},
        {"field": "languages", "from": ["en"], "to": []},
        {"field": "new", "from": None, "to": {"x": 1}},
        {"field": "old", "from": 1, "to": None},
    ]


def test_the_result_is_the_same_at_s3(tmp_path: Path, bucket: S3Path) -> None:
    remote = Registry.open(f"s3://{bucket.bucket}/registry", create=True)
    local = Registry.open(tmp_path / "local", create=True)
    one: Corpus = {1: {5: "aa"}, 2: {6: "bb"}, 3: {7: "cc", 8: "dd"}}
    two: Corpus = {1: {5: "aa"}, 3: {7: "cc", 8: "de"}, 4: {}}
    answers = []
    for registry in (remote, local):
        made = [committed(registry, tmp_path / "work", corpus) for corpus in (one, two)]
        answers.append(diff(*made).to_dict())
    assert answers[0] == answers[1]
    assert answers[0]["counts"] == {"in": 1, "out": 1, "changed": 1, "same": 1}


def keys(entries: Any) -> list[str]:
    return [entry["key"] for entry in entries]


def test_diff_from_parent_to_child(registry: Registry) -> None:
    removed = registry.snapshot()
    child = registry.snapshot(removed.parent)
    found = diff(registry.snapshot(child.parent), child)
    assert (keys(found.added), keys(found.gone), keys(found.changed)) == (["web:c.example"], [], ["web:a.example"])
    assert found.changed[0]["before"]["num_documents"] == 1
    assert found.changed[0]["after"] == {"num_documents": 2, "num_bytes": len(text(1)) + len(text(3))}
    assert found.num_same == 1
    assert (found.inputs_added, found.inputs_gone, found.configuration) == (("two.warc.gz",), (), ())
    back = diff(child, registry.snapshot(child.parent))
    assert (keys(back.added), keys(back.gone)) == ([], ["web:c.example"])
    assert back.inputs_gone == ("two.warc.gz",)


def test_diff_across_a_removal(registry: Registry) -> None:
    removed = registry.snapshot()
    found = diff(registry.snapshot(removed.parent), removed)
    assert (keys(found.added), keys(found.gone), keys(found.changed)) == ([], ["web:b.example"], [])
    assert found.num_same == 2
    same = diff(removed, removed)
    assert same.to_dict()["counts"] == {"in": 0, "out": 0, "changed": 0, "same": 2}


def test_another_text_of_the_same_length_is_a_change(tmp_path: Path) -> None:
    snapshots = []
    for number, word in enumerate(("alpha", "gamma")):
        path = archive(tmp_path / f"{number}.warc.gz", {"a.example/": f"{text(1)} {word}"})
        ingest(IngestConfig(web=(str(path),)), registry_uri=tmp_path / str(number))
        snapshots.append(Registry.open(tmp_path / str(number)).snapshot())
    found = diff(*snapshots)
    assert keys(found.changed) == ["web:a.example"]
    assert found.changed[0]["before"] == found.changed[0]["after"]


def test_from_the_command_line(registry: Registry) -> None:
    command = [sys.executable, "-m", "orchestration.cli.main", "snapshots", "diff", "--registry", str(registry.root)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["counts"] == {"in": 0, "out": 1, "changed": 0, "same": 2}
    assert keys(answer["out"]) == ["web:b.example"]
    first = registry.snapshot(registry.snapshot(registry.snapshot().parent).parent)
    done = subprocess.run([*command, first.id[:12]], capture_output=True, text=True, check=True)
    assert "1 in, 1 out, 1 changed, 0 same" in done.stdout
    assert "  input in  two.warc.gz" in done.stdout
    whole = subprocess.run([*command[:4], "--json", *command[4:], first.id], capture_output=True, text=True, check=True)
    assert keys(json.loads(whole.stdout)["in"]) == ["web:c.example"]
    orphan = subprocess.run([*command, first.id, first.id], capture_output=True, text=True, check=True)
    assert "0 in, 0 out, 0 changed, 2 same" in orphan.stdout
    refused = subprocess.run([*command, "zzz"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1


def test_the_text_output_lists_at_most_twenty_of_each_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry.open(tmp_path, create=True)
    first = committed(registry, tmp_path / "work", {n: {n: "aa"} for n in range(46)})
    inputs = [{"name": f"file{n}", "sha256": ""} for n in range(22)]
    changed: Corpus = {n: {n: "b"} for n in range(21, 42)} | {n: {n: "aa"} for n in range(42, 70)}
    second = committed(registry, tmp_path / "work", changed, inputs=inputs, configuration={str(n): n for n in range(9)})
    diff_command(DiffRequest(before=first.id[:16]), Settings(registry=str(tmp_path)), Output())
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{first.id[:16]} -> {second.id[:16]}", "24 in, 21 out, 21 changed, 4 same"]
    for label, more in (("in  ", 4), ("out ", 1), ("changed ", 1), ("input in ", 2)):
        listed = [n for n, line in enumerate(lines) if line.startswith(f"  {label}")]
        assert len(listed) == 20
        assert lines[listed[-1] + 1] == f"  ... and {more} more; --json has all"
    assert lines[-9:] == [f"  {n}: None -> {n}" for n in range(9)]
    with pytest.raises(UsageError, match="has no parent; name the snapshot"):
        diff_command(DiffRequest(after=second.id), Settings(registry=str(tmp_path)), Output())
