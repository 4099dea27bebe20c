"""An ingest that is killed or runs out of disk commits nothing partial, and gives the same id when run again."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.ingest import IngestConfig, ingest
from pipelines.stage.local_executor import LocalExecutor
from registry.errors import ServiceError
from registry.snapshot import Registry
from tests.pipelines.readers.dumps import Page, siteinfo, write_dump
from tests.pipelines.test_ingest import nearly, prose

module = importlib.import_module("pipelines.ingest")  # `pipelines.ingest` is the function
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, resource, sys
from pipelines.ingest import IngestConfig, ingest
from registry.errors import NullsError

if __name__ == "__main__":
    registry, workers, file_bytes, *inputs = sys.argv[1:]
    if int(file_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_bytes),) * 2)
    try:
        report = ingest(IngestConfig(wikipedia=tuple(inputs)), registry_uri=registry, workers=int(workers))
    except NullsError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(2)
    print(json.dumps(report.to_dict()))
"""


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen small files of two wikis, with copies between them."""
    folder = tmp_path_factory.mktemp("dumps")
    for number in range(12):
        pages = [Page(f"Page {number} {i}", prose(7 * number + i), page_id=number * 100 + i + 1) for i in range(40)]
        pages.append(Page(f"Copy {number}", nearly(prose(number)), page_id=number * 100 + 99))
        info = siteinfo() if number % 2 else siteinfo("dewiki", "https://de.wikipedia.org/wiki/X")
        write_dump(folder / f"part{number:02d}.xml.bz2", pages, siteinfo=info, compress="bz2")
    return folder


@pytest.fixture(scope="module")
def expected(dumps: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of an undisturbed ingest."""
    report = ingest(IngestConfig(wikipedia=(str(dumps),)), registry_uri=tmp_path_factory.mktemp("registry"))
    assert report.duplicate > 100
    return str(report.snapshot)


@contextlib.contextmanager
def started(folder: Path, *arguments: Any) -> Any:
    """Run the script in a session of its own, which is killed at the end."""
    script = folder / "run_ingest.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def in_session(session: int) -> list[int]:
    """The running processes of a session."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            state, _, _, own = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(process.name))
    return found


def resident_kib(process: int) -> int:
    """The memory that a process holds; 0 if it has ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
    return 0


def num_staged(registry: Path) -> int:
    """The number of staged files."""
    return len(list(registry.glob("work/*/stage/[0-9]*/done.json")))


@pytest.mark.slow
def test_killed_at_any_point_and_run_again_it_gives_the_same_snapshot(
    dumps: Path, expected: str, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    chooser = random.Random(4)
    moments: list[int] = []
    for wanted in (0, 2, 5, 9, 12):  # staged files: from the start to the keyed stage and the writing
        with started(tmp_path, registry, 2, 0, dumps) as process:
            while num_staged(registry) < wanted and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chooser.random() * 0.4)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        moments.append(num_staged(registry))
        if registry.is_dir():
            assert Registry.open(registry).ids() in ([], [expected])
    assert moments[-1] == 12 or Registry.open(registry).ids() == [expected]
    report = ingest(IngestConfig(wikipedia=(str(dumps),)), registry_uri=registry)
    assert report.snapshot == expected
    Registry.open(registry).snapshot().verify()
    assert not list((registry / "work").glob("*/stage"))


def test_files_staged_before_a_crash_are_not_read_again(
    dumps: Path, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashes(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "resolve", crashes)
        with pytest.raises(KeyboardInterrupt):
            ingest(IngestConfig(wikipedia=(str(dumps),)), registry_uri=tmp_path)
    assert num_staged(tmp_path) == 12
    monkeypatch.setattr(LocalExecutor, "run", lambda self: pytest.fail("read a file again"))
    assert ingest(IngestConfig(wikipedia=(str(dumps),)), registry_uri=tmp_path).snapshot == expected


@pytest.mark.slow
def test_workers_end_with_their_parent(dumps: Path, tmp_path: Path) -> None:
    with started(tmp_path, tmp_path / "registry", 2, 0, dumps) as process:
        while num_staged(tmp_path / "registry") < 2 and process.poll() is None:
            time.sleep(0.01)
        assert len(in_session(process.pid)) > 2  # it has workers
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while in_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not in_session(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("file_bytes", [500, 5_000, 20_000, 32_000])  # while staging, verifying, writing
def test_a_full_disk_is_a_service_error_and_the_ingest_can_be_continued(
    file_bytes: int, dumps: Path, expected: str, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    with started(tmp_path, registry, 1, file_bytes, dumps) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert output.startswith("ServiceError")
    assert Registry.open(registry).ids() == []
    assert ingest(IngestConfig(wikipedia=(str(dumps),)), registry_uri=registry).snapshot == expected


def test_a_disk_that_fills_while_staging_leaves_no_half_directory(
    dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, *arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(ServiceError, match="free some space"):
        ingest(IngestConfig(wikipedia=(str(dumps),)), registry_uri=tmp_path)
    assert not list(tmp_path.glob("work/*/stage/*"))


@pytest.mark.slow
def test_all_real_dumps_are_ingested_within_a_gigabyte(data_dir: Path, tmp_path: Path) -> None:
    peak_kib = 0
    with started(tmp_path, tmp_path / "registry", 2, 0, data_dir / "wikipedia") as process:
        while process.poll() is None:
            peak_kib = max(peak_kib, sum(map(resident_kib, in_session(process.pid))))
            time.sleep(0.1)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    report = json.loads(output)
    assert 200 << 10 < peak_kib < 1 << 20  # of all processes together, workers included
    others = [report["kept"], report["duplicate"], report["superseded"]]
    assert report["read"] == sum([*others, *report["filtered"].values(), *report["failed"].values()])
    assert report["kept"] > 2000
    named = {failure["input_file"] for failure in report["failures"]}
    assert named == {
        "enwik8_first4MB_corrupt_tail.xml",
        "hywiki-truncated-100k.xml.xz",
        "jawiki-truncated-100k.xml.xz",
    }
    Registry.open(tmp_path / "registry").snapshot().verify()
