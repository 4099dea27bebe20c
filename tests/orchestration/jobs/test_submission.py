"""Jobs without a cluster: paths, variables, secrets, logs, and how a job ends."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.jobs import submission
from orchestration.jobs.address import find_job_server, is_here, token_header
from orchestration.jobs.cluster import Job, JobState, LogReader, outcome
from orchestration.jobs.submission import (
    RESULT_MARK,
    JobPaths,
    environment,
    path_on_cluster,
    shown,
    train_command,
)
from orchestration.train_request import TrainRequest
from registry.errors import ModelExistsError, NotFoundError, NullsError, RefusedError, ServiceError, UsageError
from registry.messages.masking import secrets, without
from training.config import TrainConfig
from training.run.worker_range import Workers

HERE = Path("/home/me/project")
URLS = ["s3://bucket/registry", "http://mlflow:5000", "postgresql+psycopg://u:p@db/nulls"]


def job_paths(**changes: Any) -> JobPaths:
    named = {"registry": "/r", "runs": "/runs", "tracking": "http://mlflow:5000", "catalog": None, "tokenizer": None}
    return JobPaths(**(named | changes))


@pytest.mark.parametrize(
    ("text", "here"),
    [
        ("./nulls-registry", "/home/me/project/nulls-registry"),
        ("/mnt/registry", "/mnt/registry"),
        ("sqlite:///mlflow.db", "sqlite:////home/me/project/mlflow.db"),
        ("sqlite:////mnt/mlflow.db", "sqlite:////mnt/mlflow.db"),
        *((url, url) for url in URLS),
    ],
)
def test_paths_are_ones_that_the_nodes_see(text: str, here: str) -> None:
    assert path_on_cluster(text, "--runs", HERE) == here
    if text == here:
        assert path_on_cluster(text, "--runs", None) == text
    else:
        with pytest.raises(UsageError, match=r"--runs.*another machine.*absolute"):
            path_on_cluster(text, "--runs", None)


def test_every_path_is_checked() -> None:
    for name, setting in {
        "registry": "--registry",
        "runs": "--runs",
        "tracking": "MLFLOW_TRACKING_URI",
        "catalog": "NULLS_CATALOG",
        "tokenizer": "tokenizer",
    }.items():
        relative = "sqlite:///x.db" if name in ("tracking", "catalog") else "x"
        with pytest.raises(UsageError, match=setting):
            job_paths(**{name: relative}).on_cluster(None)
        assert "/home/me/project/x" in getattr(job_paths(**{name: relative}).on_cluster(HERE), name)


def test_the_command_survives_a_shell() -> None:
    awkward = job_paths(registry="/with space/$HOME;true", runs="/it's")
    request = TrainRequest(
        model="m",
        workers=Workers.parse("2-3"),
        runs=Path("elsewhere"),
        remote_uri="s3://b/x y",
        resume=True,
        new_version=False,
        dry_run=False,
    )
    command = train_command(awkward, request, snapshot="ab" * 32, python="echo")
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert awkward.registry in done.stdout
    arguments = shlex.split(command)
    assert arguments[arguments.index("--runs") + 1] == awkward.runs
    assert arguments[arguments.index("--workers") + 1 :][0] == "2-3"
    assert arguments[arguments.index("--storage") + 1] == "s3://b/x y"
    assert "--resume" in arguments
    assert "--new-version" not in arguments


def test_credentials_go_along_and_files_of_this_machine_do_not(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    environ = {
        "AWS_ACCESS_KEY_ID": "AKIA123456",
        "AWS_PROFILE": "mine",
        "AWS_CA_BUNDLE": str(bundle),
        "MLFLOW_TRACKING_TOKEN": "tok-123456",
        "MLFLOW_TRACKING_URI": "sqlite:///relative.db",
        "HOME": "/home/me",
        "SECRET_OF_SOMETHING_ELSE": "no",
    }
    there, left_out = environment(environ, job_paths(catalog="postgresql://db/n"), is_here=False)
    assert left_out == ("AWS_CA_BUNDLE", "AWS_PROFILE")
    assert there["AWS_ACCESS_KEY_ID"] == "AKIA123456"
    assert there["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert there["NULLS_CATALOG"] == "postgresql://db/n"
    assert not {"HOME", "SECRET_OF_SOMETHING_ELSE", "AWS_PROFILE"} & there.keys()
    here, left_out = environment(environ, job_paths(), is_here=True)
    assert (here["AWS_PROFILE"], here["AWS_CA_BUNDLE"], left_out) == ("mine", str(bundle), ())
    assert "NULLS_CATALOG" not in here


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("AWS_SECRET_ACCESS_KEY", "abc", "***"),
        ("MLFLOW_TRACKING_PASSWORD", "abc", "***"),
        ("AWS_REGION", "eu-west-1", "eu-west-1"),
        ("MLFLOW_TRACKING_URI", "http://host:5000", "http://host:5000"),
        ("MLFLOW_TRACKING_URI", "https://me:a@host:5000/x", "https://me:***@host:5000/x"),
        ("NULLS_CATALOG", "postgresql+psycopg://u:p@ss:w@db:5432/n", "postgresql+psycopg://u:***@db:5432/n"),
        ("NULLS_CATALOG", "postgresql://db/n?user=u&password=secret&x=1", "postgresql://db/n?user=u&password=***&x=1"),
    ],
)
def test_secrets_are_not_shown(name: str, value: str, expected: str) -> None:
    assert shown(name, value) == expected


def test_secrets_are_masked_in_any_text() -> None:
    hidden = secrets(
        {"AWS_SECRET_ACCESS_KEY": "abcdefgh", "NULLS_CATALOG": "postgresql://u:longword@db/n", "A": "plain"}
    )
    assert without("abcdefgh in postgresql://u:longword@db/n, plain", hidden) == "*** in postgresql://u:***@db/n, plain"
    assert secrets({"AWS_SESSION_TOKEN": "abc"}) == []  # too short to be distinguished from ordinary words


def test_the_files_of_a_job_run_by_themselves(tmp_path: Path) -> None:
    config = TrainConfig.preset("demo", epochs=3)
    submission.stage(tmp_path, config.to_dict())
    assert not list(tmp_path.rglob("__pycache__"))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 5_000_000
    program = (
        "import orchestration.cli.main, training, pipelines, registry; from training.config import TrainConfig; "
        "print(training.__file__, TrainConfig.from_yaml('train.yaml').fingerprint())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path / "training/__init__.py"), config.fingerprint()]


@given(st.text(alphabet="ab\n", max_size=60), st.lists(st.integers(0, 70), max_size=6), st.data())
def test_a_log_is_the_same_wherever_the_connection_breaks(log: str, cuts: list[int], data: st.DataObject) -> None:
    lines: list[str] = []
    reader = LogReader(lines.append)
    for cut in cuts:  # each connection sends the log from its beginning, in pieces, and breaks somewhere
        reader.rewind()
        middle = data.draw(st.integers(0, cut))
        reader.feed(log[:middle])
        reader.feed(log[middle:cut])
    reader.rewind()
    reader.feed(log)
    reader.close()
    assert lines == log.split("\n")[: None if log and not log.endswith("\n") else -1]


def test_the_result_is_taken_out_of_a_log() -> None:
    lines: list[str] = []
    reader = LogReader(lines.append, ["topsecret"])
    reader.feed(f'one topsecret\nhalf{RESULT_MARK}{{"a": 1}}\n{RESULT_MARK}not JSON\ntwo')
    assert lines == ["one ***", "half"]
    reader.close()
    assert lines == ["one ***", "half", "two"]
    assert reader.result == {"a": 1}


def job(state: JobState, **changes: Any) -> Job:
    fields = {"model": "m", "submitted_at": None, "seconds": None, "message": "first\nlast words", "exit_code": None}
    return Job(job_id="j", state=state, **(fields | changes))


def test_a_job_ends_as_its_command_did() -> None:
    assert outcome(job(JobState.SUCCEEDED), {"model_uri": "models:/m/1"}, "") == {"model_uri": "models:/m/1"}
    for kind, code in ((ModelExistsError, 2), (RefusedError, 4), (NotFoundError, 1)):
        error = {"error": {"kind": kind.__name__, "message": "because", "exit_code": code}}
        with pytest.raises(kind, match="because") as raised:
            outcome(job(JobState.FAILED, exit_code=code), error, "")
        assert raised.value.exit_code == code
    with pytest.raises(NullsError, match="because"):
        outcome(job(JobState.FAILED), {"error": {"kind": "FromTheFutureError", "message": "because"}}, "")


@pytest.mark.parametrize(
    ("state", "exit_code", "message", "code"),
    [
        (JobState.FAILED, None, "failed: last words; see there", 2),
        (JobState.FAILED, 3, "last words", 3),
        (JobState.FAILED, -9, "last words", 2),
        (JobState.STOPPED, None, "--resume", 2),
        (JobState.SUCCEEDED, 0, "without a result", 2),
    ],
)
def test_a_job_without_a_result_is_an_error(state: JobState, exit_code: int | None, message: str, code: int) -> None:
    with pytest.raises(ServiceError, match=message) as raised:
        outcome(job(state, exit_code=exit_code), None, "see there")
    assert raised.value.exit_code == code


def test_a_cluster_is_here_if_its_session_is(tmp_path: Path) -> None:
    (tmp_path / "ray/session_1").mkdir(parents=True)
    assert is_here("session_1", {"RAY_TMPDIR": str(tmp_path)})
    assert not is_here("session_2", {"RAY_TMPDIR": str(tmp_path)})
    assert not is_here("", {"RAY_TMPDIR": str(tmp_path)})


def test_the_token_of_a_user_is_sent(tmp_path: Path) -> None:
    assert token_header({}, tmp_path) == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("of-home\n")
    (tmp_path / "other").write_text("of-file")
    assert token_header({}, tmp_path) == {"Authorization": "Bearer of-home"}
    other = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    assert token_header(other, tmp_path) == {"Authorization": "Bearer of-file"}
    assert token_header(other | {"RAY_AUTH_TOKEN": "given"}, tmp_path) == {"Authorization": "Bearer given"}
    assert token_header({"RAY_AUTH_MODE": "disabled"}, tmp_path) == {}
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN_PATH"):
        token_header({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}, tmp_path)


@pytest.mark.parametrize("address", ["host", "ftp://host:1", "host:port"])
def test_a_bad_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="8265"):
        find_job_server(address)
