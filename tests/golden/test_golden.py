"""The demo's snapshot id and the losses of a seeded run, to the last bit, as they were before the files were moved.

A refactoring that changes either changed behaviour. The snapshot id in `golden.json` comes from the tree before the
move (commit 00aaaa1), from a program with the same calls as `seeded_run.py`. So did the losses, until the embedding of
the token that begins each document was first drawn and trained (`docs/LOG.md`, "the first runs on a GPU"); since then
they come from `seeded_run.py`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.seeded_run import NUM_STEPS, PORTABLE

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The answer of `seeded_run.py` here."""
    command = [sys.executable, "-m", "tests.golden.seeded_run", str(tmp_path_factory.mktemp("golden"))]
    environment = {**os.environ, **PORTABLE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_demo_snapshot_has_the_same_id(found: dict[str, object]) -> None:
    if importlib.metadata.version("pyarrow") != GOLDEN["pyarrow"]:
        pytest.skip(f"ids depend on pyarrow's bytes; the golden one is of {GOLDEN['pyarrow']}")
    assert found["snapshot"] == GOLDEN["snapshot"]


def test_a_seeded_run_has_the_same_losses_to_the_last_bit(found: dict[str, object]) -> None:
    if importlib.metadata.version("torch").partition("+")[0] != GOLDEN["torch"] or platform.machine() != "x86_64":
        pytest.skip(f"kernels differ between versions of torch; the golden losses are of {GOLDEN['torch']}, x86-64")
    assert len(GOLDEN["losses"]) == NUM_STEPS
    assert len(set(GOLDEN["losses"])) == NUM_STEPS, "a run whose loss does not move proves nothing"
    assert found["losses"] == GOLDEN["losses"]
