"""What all tests share: real data where there is some, properties without a clock, and who runs beside whom.

Two workers run the suite (`-n 2 --dist loadgroup`). A file is one group, so that its fixtures are made once; all tests
that start Ray are one group, since a Ray session takes both cores, and `ray.init()` may join another that it finds.
"""

from __future__ import annotations

import os
from pathlib import Path

# Tests use small models, and often several processes: one thread each is fastest, and keeps sums in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("nulls", deadline=None, print_blob=True)
settings.load_profile("nulls")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real dumps: NULLS_DATA, or `shared/data` beside the repository; the test is skipped where there are none."""
    place = Path(os.environ.get("NULLS_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not place.is_dir():
        pytest.skip(f"no data in {place}; name a directory with NULLS_DATA")
    return place


_LONG_FILES = ("test_ingest_killed", "test_beam_engine", "test_ingest_s3", "test_cli", "test_unlearn", "test_writer")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put each test into its group, and the long groups first: what starts last decides when the suite ends."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.path.relative_to(item.config.rootpath).as_posix()
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    if item.get_closest_marker("ray"):
        return 0
    return 1 if item.path.stem in _LONG_FILES else 2
