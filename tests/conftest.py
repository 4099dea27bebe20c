"""What all tests share: real data where there is some, and properties without a clock."""

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
