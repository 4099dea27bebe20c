"""Restarts from the lines of a progress file: one message each, their causes, and a tag of limited length."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from training.tracking.restarts import DRIVER_ENDED, RESIZED, Restarts, likely_cause, recorder

GLOO = "RuntimeError: Read error [127.0.0.1]:6330: Connection reset by peer"


def begun(step: int, attempt: str = "attempt-001", *cut_short: str) -> dict[str, object]:
    return {"begun_at": step, "world_size": 2, "attempt": attempt, "cut_short": list(cut_short)}


def test_a_run_without_interruptions_gives_no_messages() -> None:
    restarts = Restarts()
    assert [restarts.take(fields) for fields in (begun(0), {"loss": 1.0}, {"checkpoint": "x"})] == [None] * 3
    assert not restarts.entries


def test_each_kind_of_restart_has_its_cause() -> None:
    restarts = Restarts()
    restarts.take(begun(0))
    assert restarts.take({"stopped": {"0": GLOO, "1": "ActorDiedError: killed"}}) == (
        "training was interrupted: rank 1: ActorDiedError: killed"
    )
    message = restarts.take(begun(4, "attempt-001", "checkpoint-00000008"))
    assert message is not None
    assert "from step 4" in message
    assert "checkpoint-00000008" in message
    restarts.take(begun(4))
    restarts.take(begun(8, "attempt-002"))
    kept = json.loads(restarts.tag())
    assert [(entry["step"], entry["workers"]) for entry in kept] == [(4, 2), (4, 2), (8, 2)]
    assert "ActorDiedError: killed; passed over, being cut short: checkpoint-00000008" in kept[0]["cause"]
    assert [entry["cause"] for entry in kept[1:]] == [RESIZED, DRIVER_ENDED]


@pytest.mark.parametrize(
    ("stopped", "cause"),
    [
        ({"0": GLOO, "10": "OSError: full", "2": "KeyError: x"}, "rank 2: KeyError: x"),
        ({"1": GLOO, "0": GLOO}, f"rank 0: {GLOO}"),
    ],
)
def test_an_effect_of_another_rank_s_death_is_not_the_cause(stopped: dict[str, str], cause: str) -> None:
    assert likely_cause(stopped) == cause


def test_the_tag_keeps_the_newest_that_fit() -> None:
    restarts = Restarts()
    restarts.take(begun(0))
    for step in range(100):
        restarts.take({"stopped": {"0": "x" * 300}})
        restarts.take(begun(step))
    kept = json.loads(restarts.tag())
    assert len(restarts.tag()) <= 5000
    assert 10 < len(kept) < 20
    assert kept[-1]["step"] == 99


def test_the_recorder_is_unpickled_without_importing_the_project(tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(cloudpickle.dumps(recorder(tmp_path / "progress.jsonl")))
    arrival = (
        "import cloudpickle, sys; sys.modules['training'] = None; received = cloudpickle.load(open('sent', 'rb'));"
    )
    arrival += "received.after_exception(None, {1: ValueError('two\\n  lines')})"
    subprocess.run([sys.executable, "-c", arrival], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "progress.jsonl").read_text())["stopped"] == {"1": "ValueError: two lines"}


def test_the_recorder_survives_a_path_that_it_cannot_write(tmp_path: Path) -> None:
    recorder(tmp_path).after_exception(None, {0: ValueError("x")})
    assert list(tmp_path.iterdir()) == []
