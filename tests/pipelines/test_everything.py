"""Every real file of every kind in one ingest, and one corpus through every executor and engine."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from orchestration.explain import explain
from pipelines.ingest import IngestConfig, ingest
from pipelines.readers.web.warc_records import read_records
from pipelines.resolve.engines import Engine
from pipelines.stage.executors import Execution, ExecutorKind
from registry.errors import InputError
from registry.snapshot import Registry
from tests.pipelines.stage.test_executors import cluster, inputs  # noqa: F401 - fixtures

CAPTURES = ("response", "resource", "conversion", "revisit")


def urls(folder: Path) -> list[str]:
    """The URLs of all captures in a folder of archives, read without the ingest."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                try:
                    for record in read_records(file):
                        if record.head.get("warc-type", "").lower() in CAPTURES:
                            found.add(record.head.get("warc-target-uri", "").strip("<> "))
                except InputError:
                    continue
    return sorted(url for url in found if url.startswith(("http://", "https://")))


@pytest.mark.slow
def test_every_real_file_in_one_command(data_dir: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "orchestration.cli.main",
        "ingest",
        "--json",
        "--registry",
        str(tmp_path / "registry"),
    ]
    for flag, name in (("web", "web"), ("books", "books"), ("wikipedia", "articles"), ("wikipedia", "wikipedia")):
        if (data_dir / name).is_dir():
            command += [f"--{flag}", str(data_dir / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    by_status = [report["kept"], report["duplicate"], report["superseded"]]
    by_status += [sum(report["filtered"].values()), sum(report["failed"].values())]
    assert report["read"] == sum(by_status) > 10_000
    snapshot = Registry.open(tmp_path / "registry").snapshot()
    for kind in snapshot.manifest["conservation"].values():
        assert kind["read"] == sum(count for status, count in kind.items() if status != "read")
    known = urls(data_dir / "web")
    assert len(known) > 1500
    for url in random.Random(0).sample(known, 300):
        found = explain(snapshot, url)
        assert found["status"] in ("kept", "filtered", "duplicate", "superseded", "failed"), url
        assert found["input_length"] > 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["duckdb", "beam"])
@pytest.mark.parametrize("kind", list(ExecutorKind)[:2])
def test_every_combination_gives_the_same_snapshot(
    inputs: IngestConfig,  # noqa: F811
    cluster: Cluster,  # noqa: F811
    tmp_path: Path,
    kind: ExecutorKind,
    engine: str,
) -> None:
    expected = ingest(inputs, registry_uri=tmp_path / "plain").snapshot
    address = cluster.address if kind is ExecutorKind.RAY else None
    report = ingest(
        inputs,
        registry_uri=tmp_path / "other",
        workers=2,
        execution=Execution(kind=kind, ray_address=address),
        engine=Engine(name=engine),
    )
    assert report.snapshot == expected
