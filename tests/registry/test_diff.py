"""Two snapshots beside each other: what is in, out, changed and the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.ingest import IngestConfig, ingest
from pipelines.removal import remove
from registry.diff import diff
from registry.snapshot import Registry
from tests.pipelines.test_removal import archive, text


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Three snapshots: two sites; then one page more and a site more; then a site less."""
    folder = tmp_path_factory.mktemp("registry")
    first = {"a.example/1": text(1), "b.example/1": text(2)}
    second = {"a.example/2": text(3), "c.example/1": text(4)}
    for name, pages in (("one", first), ("two", second)):
        path = archive(folder / f"{name}.warc.gz", pages)
        ingest(IngestConfig(web=(str(path),)), registry_uri=folder / "registry")
    remove(["b.example"], registry_uri=folder / "registry")
    return Registry.open(folder / "registry")


def keys(entries: Any) -> list[str]:
    return [entry["key"] for entry in entries]


def test_what_a_child_adds_and_changes(registry: Registry) -> None:
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


def test_what_a_removal_takes(registry: Registry) -> None:
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
    command = [sys.executable, "-m", "orchestration.cli", "snapshots", "diff", "--registry", str(registry.root)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["counts"] == {"in": 0, "out": 1, "changed": 0, "same": 2}
    assert keys(answer["out"]) == ["web:b.example"]
    first = registry.snapshot(registry.snapshot(registry.snapshot().parent).parent)
    done = subprocess.run([*command, first.id[:12]], capture_output=True, text=True, check=True)
    assert "1 in, 1 out, 1 changed, 0 same" in done.stdout
    assert "  input in  two.warc.gz" in done.stdout
    refused = subprocess.run([*command, "zzz"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
