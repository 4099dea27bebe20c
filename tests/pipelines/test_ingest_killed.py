"""Kill an ingest of every kind of input with SIGKILL at twenty random moments: each rerun gives the same snapshot."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines.ingest import IngestConfig, ingest
from registry.snapshot import Registry
from tests.pipelines.readers.archives import by_record, page, record, response
from tests.pipelines.readers.dumps import Page, write_dump
from tests.pipelines.test_ingest import nearly, prose

ROOT = Path(__file__).parents[2]
NUM_KILLS = 20
SCRIPT = """
import sys
from pipelines.ingest import IngestConfig, ingest

if __name__ == "__main__":
    registry, folder = sys.argv[1:]
    config = IngestConfig(wikipedia=(folder + "/*.bz2",), web=(folder + "/*.warc.gz",), books=(folder + "/*.txt",))
    ingest(config, registry_uri=registry, workers=2, on_progress=lambda message, share: print(message, flush=True))
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of each kind, with copies between them."""
    folder = tmp_path_factory.mktemp("inputs")
    for number in range(4):
        pages = [Page(f"Page {number} {i}", prose(9 * number + i), page_id=number * 100 + i + 1) for i in range(40)]
        write_dump(folder / f"part{number}.xml.bz2", pages, compress="bz2")
        texts = [nearly(prose(9 * number + i)) for i in range(30)]
        items = [record(f"http://site{i % 7}.example/{number}/{i}", response(page(t))) for i, t in enumerate(texts)]
        (folder / f"crawl{number}.warc.gz").write_bytes(by_record(items))
        (folder / f"book{number}.txt").write_text("\n\n".join(prose(500 + 9 * number + i) for i in range(20)))
    return folder


def started(folder: Path, registry: Path, inputs: Path) -> subprocess.Popen[str]:
    script = folder / "run_ingest.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(registry), str(inputs)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_twenty_kills_change_nothing(inputs: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    with started(tmp_path, tmp_path / "undisturbed", inputs) as process:
        steps = process.communicate()[0].splitlines()
    seconds = time.monotonic() - began
    assert process.returncode == 0
    assert len(set(steps)) > 5
    expected = Registry.open(tmp_path / "undisturbed").snapshot().id
    chance = random.Random(20)
    reached = []
    for number in range(NUM_KILLS):
        registry = tmp_path / f"killed-{number}"
        with started(tmp_path, registry, inputs) as process:
            time.sleep(seconds * (number + chance.random()) / NUM_KILLS)  # a random moment of each twentieth
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            reached.append(process.communicate()[0].splitlines()[-1:])
        config = IngestConfig(wikipedia=(f"{inputs}/*.bz2",), web=(f"{inputs}/*.warc.gz",), books=(f"{inputs}/*.txt",))
        assert ingest(config, registry_uri=registry).snapshot == expected, reached[-1]
        assert Registry.open(registry).snapshot().verify() > 0
        assert not list((registry / "work").glob("*/")), reached[-1]
    assert len({message for step in reached for message in step}) > 3  # different steps were interrupted
