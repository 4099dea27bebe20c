"""Shared by all tests: real data where there is some, properties without a clock, and which files run together.

Two workers run the suite (`-n 2`). A file is one unit of work, so that its fixtures are made once; all files that start
Ray are one unit, since a Ray session takes both cores, and `ray.init()` may join another that it finds. (xdist's own
`loadgroup` writes a private attribute that pytest 9.2 no longer reads.)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

# Tests use small models, and often several processes: one thread each is fastest, and keeps sums in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("nulls", deadline=None, print_blob=True)
settings.load_profile("nulls")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real dumps: NULLS_DATA, or `shared/data` beside the repository; the test is skipped where there are none."""
    place = Path(os.environ.get("NULLS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not place.is_dir():
        pytest.skip(f"no data in {place}; name a directory with NULLS_DATA")
    return place


RAY_FILES = {
    "tests/orchestration/jobs/test_jobs.py",
    "tests/orchestration/test_journey.py",
    "tests/pipelines/stage/test_executors.py",
    "tests/pipelines/test_everything.py",
    "tests/training/checkpoint/test_remote_copy.py",
    "tests/training/run/test_driver.py",
    "tests/training/run/test_worker_range.py",
}
_LONG_FILES = {
    "tests/orchestration/unlearning/test_unlearn.py",
    "tests/orchestration/cli/test_cli.py",
    "tests/pipelines/resolve/test_beam_engine.py",
    "tests/pipelines/test_ingest_books.py",
    "tests/pipelines/test_ingest_killed.py",
    "tests/pipelines/test_ingest_s3.py",
    "tests/registry/storage/test_s3.py",
    "tests/training/checkpoint/test_writer.py",
}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test by what it needs: a server that its fixtures start, or a GPU that it is skipped without."""
    if {"s3_server", "s3_proxy", "bucket"} & set(getattr(item, "fixturenames", ())):
        item.add_marker("s3")
    if "[postgresql" in item.name:
        item.add_marker("postgres")
    if any("cuda" in str(mark.kwargs.get("reason")).lower() for mark in item.iter_markers("skipif")):
        item.add_marker("gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long files: what starts last decides when the suite ends."""
    strays = {_file(item.nodeid) for item in items if item.get_closest_marker("ray")} - RAY_FILES
    if strays:
        raise pytest.UsageError(f"tests with the marker `ray` are in files that are not in RAY_FILES: {sorted(strays)}")
    items.sort(key=lambda item: 0 if _file(item.nodeid) in RAY_FILES else 1 if _file(item.nodeid) in _LONG_FILES else 2)


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


class _FilesScheduling(LoadScopeScheduling):
    """A file is one unit of work; all files that start Ray are one."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if _file(nodeid) in RAY_FILES else _file(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Distribute files, in the order of `pytest_collection_modifyitems`."""
    config.option.loadscopereorder = False
    return _FilesScheduling(config, log)
