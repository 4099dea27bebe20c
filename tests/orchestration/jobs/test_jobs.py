"""Jobs on a real Ray cluster with a job server and tokens: submit, follow, detach and stop.

Commands run in this process; only two run in one of their own: a training, and the one that Ctrl-C ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import sqlalchemy as sa
import yaml

from orchestration.jobs.address import find_job_server
from orchestration.jobs.cluster import Cluster, JobState, outcome
from orchestration.jobs.submission import MODEL_KEY, Submission, interpreter
from registry.catalog.database import Catalog
from registry.catalog.tables import models
from registry.errors import NotFoundError, RefusedError, ServiceError
from tests.orchestration.cli import commands
from tests.orchestration.cli.commands import Done, answer, process_environment
from training.tracking import store

# Generous, as all limits below: a busy machine takes minutes to import torch and to start a worker.
DEADLINE_S = 600
TINY = {
    "preset": "demo",
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "num_backbone": 32}
    | {"num_pool": 64, "num_sinks": 16},
    "epochs": 1,
    "context_length": 64,
    "micro_batch": 4,
    "min_heldout": 3,
    "min_heldout_bytes": 300,
    "vocab_size": 400,
    "checkpoint_every": 4,
}


@dataclasses.dataclass(frozen=True)
class Running:
    """A running cluster, and the folder from which it is used."""

    url: str
    folder: Path
    environ: dict[str, str]

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `nulls` in the folder, in a process of its own, with the cluster's token."""
        command, pipe = [sys.executable, "-m", "orchestration.cli", *arguments], subprocess.PIPE
        env = process_environment(**self.environ)
        return subprocess.Popen(command, cwd=self.folder, env=env, stdout=pipe, stderr=pipe, text=True)

    def nulls(self, *arguments: str, **environment: str) -> Done:
        """Run `nulls` in the folder, in this process, with the cluster's token."""
        return commands.nulls(*arguments, cwd=self.folder, **{**self.environ, **environment})

    def submit(self, program: str, model: str | None = "m", **environment: str) -> str:
        """Submit a Python program instead of a training."""
        metadata = {MODEL_KEY: model} if model else {}
        command = "exec " + shlex.join([interpreter(True), "-c", program])
        return Cluster(self.url).submit(
            Submission(
                model=model or "other",
                command=command,
                environment=environment,
                left_out=(),
                metadata=metadata,
                config={},
            )
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A cluster that requires a token and cannot import this checkout; its folder holds a registry."""
    pytest.importorskip("ray.dashboard.optional_deps", reason="the job server needs ray[default]", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("jobs")
    shutil.copytree(corpus_root, folder / "nulls-registry")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    ray_dir = Path(tempfile.mkdtemp(prefix="nulls-"))  # short: the path of a socket in it has at most 107 characters
    (ray_dir / "token").write_text(secrets.token_hex(16))
    environ = {
        "RAY_TMPDIR": str(ray_dir),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(ray_dir / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "OMP_NUM_THREADS": "1",
    }
    port = free_port()
    options = (
        f"--block --port=0 --num-cpus=2 --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --dashboard-port={port} "
    )
    options += f"--ray-client-server-port={free_port()} --dashboard-agent-listen-port=0 --min-worker-port=0 "
    options += "--max-worker-port=0 --object-store-memory=100000000 --include-dashboard=true"
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options.split()]
    outer = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    with (ray_dir / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        head = subprocess.Popen(
            command, cwd=ray_dir, env=outer | environ, stdout=log, stderr=log, start_new_session=True
        )
        for name, value in environ.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        try:
            running = Running(f"http://127.0.0.1:{port}", folder, environ)
            wait_for(running, head, ray_dir / "log")
            yield running
        finally:
            mlflow.set_tracking_uri(None)
            os.killpg(head.pid, signal.SIGKILL)  # all of its processes; a graceful end takes half a minute
            head.wait(timeout=DEADLINE_S)
            shutil.rmtree(ray_dir, ignore_errors=True)


def wait_for(running: Running, head: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the job server answers."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            Cluster(running.url)
            return
        except ServiceError:
            if head.poll() is not None or time.monotonic() > deadline:
                pytest.fail(log.read_text())
            time.sleep(1)


@pytest.mark.ray
def test_a_training_is_submitted_followed_and_answers_as_a_local_one(cluster: Running) -> None:
    # Paths relative to this directory; the address of the dashboard without its scheme.
    train = ("train", "--model", "wiki", "--preset", "tiny.yaml", "--workers", "1", "--json", "--ray-address")
    process = cluster.popen(*train, cluster.url.removeprefix("http://"))
    out, err = process.communicate(timeout=DEADLINE_S)
    result = answer(Done(process.returncode, out, err))
    assert set(result) == {"run_id", "model_uri", "snapshot", "tokens", "tokens_per_second", "loss"}
    assert result["model_uri"] == "models:/wiki/1"
    assert result["tokens"] > 1000
    assert "train: steps" in err  # the log, live
    assert "nulls-result" not in err
    # Registered in the store where a local run registers it.
    uri = f"sqlite:///{cluster.folder}/mlflow.db"
    assert store.model_version(store.client(uri), uri, "models:/wiki/1").run_id == result["run_id"]
    with Catalog(f"sqlite:///{cluster.folder}/nulls-registry/catalog.db").read() as connection:
        assert connection.execute(sa.select(models.c.model_uri)).scalars().all() == ["models:/wiki/1"]
    assert (cluster.folder / "nulls-runs/wiki/run-001/result.json").exists()

    # An error of the job is reported as the command's own.
    again = cluster.nulls(*train, cluster.url)
    error = answer(again, code=2)["error"]
    assert (error["kind"], "--new-version" in error["message"]) == ("ModelExistsError", True)


@pytest.mark.slow
@pytest.mark.ray
def test_a_detached_training_is_listed_and_stopped(cluster: Running) -> None:
    where = ("--ray-address", cluster.url, "--json")
    other = cluster.submit("pass", model=None)
    train = ("train", "--model", "long", "--preset", "tiny.yaml", "--set", "epochs=1000", "--workers", "1")
    submitted = answer(cluster.nulls(*train, "--detach", *where))
    job_id = submitted["job_id"]
    assert (submitted["model"], submitted["ray_address"]) == ("long", cluster.url)
    assert not JobState(submitted["state"]).is_terminal
    wait_until_training(cluster.folder / "nulls-runs/long/run-001/progress.jsonl")

    listed = {row["job_id"]: row for row in answer(cluster.nulls("jobs", "list", *where))}
    assert (listed[job_id]["state"], listed[job_id]["model"]) == ("RUNNING", "long")
    assert listed[job_id]["submitted_at"].endswith("+00:00")
    assert listed[job_id]["seconds"] > 0
    assert other not in listed
    assert other in {row["job_id"] for row in answer(cluster.nulls("jobs", "list", "--all", *where))}

    assert answer(cluster.nulls("jobs", "stop", job_id, *where))["state"] == "STOPPED"
    assert answer(cluster.nulls("jobs", "stop", job_id, *where))["state"] == "STOPPED"  # it has stopped already
    client = store.client(f"sqlite:///{cluster.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("nulls").experiment_id
    (run,) = client.search_runs([experiment], "attributes.run_name LIKE 'long/%'")
    assert run.info.status == "KILLED"  # the driver had time to report it
    log = cluster.nulls("jobs", "logs", job_id, "--follow", "--ray-address", cluster.url)
    assert (log.code, "train: steps" in log.stdout, "--resume" in log.stderr) == (2, True, True)
    refused = cluster.nulls("jobs", "stop", other, *where)
    assert answer(refused, code=4)["error"]["kind"] == "RefusedError"
    missing = cluster.nulls("jobs", "logs", "nope", *where)
    assert "nulls jobs list" in answer(missing, code=1)["error"]["message"]


def wait_until_training(progress: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not progress.exists() or "loss" not in progress.read_text():
        assert time.monotonic() < deadline, "no step was taken"
        time.sleep(0.5)


@pytest.mark.ray
def test_ctrl_c_stops_only_the_following(cluster: Running) -> None:
    job_id = cluster.submit('print("hello", flush=True); import time; time.sleep(600)')
    process = cluster.popen("jobs", "logs", job_id, "--follow", "--ray-address", cluster.url)
    assert process.stdout is not None
    assert any("hello" in line for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert f"job {job_id} continues" in err
    assert f"nulls jobs stop {job_id}" in err
    assert Cluster(cluster.url).job(job_id).state is JobState.RUNNING
    assert Cluster(cluster.url).stop(job_id).state is JobState.STOPPED


@pytest.mark.ray
def test_the_code_reaches_workers_where_the_drivers_path_does_not_exist(cluster: Running) -> None:
    program = """
import json, os, ray, training
ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
def location():
    import training
    return training.__file__
elsewhere = {"env_vars": {"PYTHONPATH": "/not/on/this/node"}}
found = ray.get(ray.remote(location).options(runtime_env=elsewhere).remote())
print("nulls-result: " + json.dumps({"driver": training.__file__, "worker": found}))
"""
    job_id = cluster.submit(program)
    job, result = Cluster(cluster.url).follow(job_id, lambda _: None)
    found = outcome(job, result, "")
    assert "working_dir" in found["driver"]
    assert "working_dir" in found["worker"]
    assert str(commands.ROOT) not in found["worker"]


@pytest.mark.ray
def test_failures_are_reported_and_secrets_are_not(cluster: Running) -> None:
    here, lines = Cluster(cluster.url), list[str]()
    error = {"error": {"kind": "RefusedError", "message": "another snapshot", "exit_code": 4}}
    refused = cluster.submit(
        f'import json; print("nulls-result: " + json.dumps({json.dumps(error)})); raise SystemExit(4)'
    )
    printing = "import os, sys; key = os.environ['AWS_SECRET_ACCESS_KEY']; print(key); sys.exit('the key is ' + key)"
    died = cluster.submit(printing, AWS_SECRET_ACCESS_KEY="hush-hush-hush")
    killed = cluster.submit("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(RefusedError, match="another snapshot"):
        outcome(*here.follow(refused, lines.append), "")
    with pytest.raises(ServiceError, match=r"failed: .*the key is \*\*\*; do this") as raised:
        outcome(*here.follow(died, lines.append), "do this")
    assert raised.value.exit_code == 1
    assert "***" in lines
    assert not any("hush-hush" in line for line in lines)
    with pytest.raises(ServiceError, match="failed") as raised:
        outcome(*here.follow(killed, lines.append), "")
    assert raised.value.exit_code == 2
    with pytest.raises(NotFoundError, match="nope"):
        here.stop("nope")


@pytest.mark.ray
def test_dry_run_shows_the_job_and_submits_none(cluster: Running) -> None:
    before = len(Cluster(cluster.url).jobs())
    train = ("train", "--model", "dry", "--preset", "tiny.yaml", "--ray-address", cluster.url, "--dry-run", "--json")
    secret = {"AWS_SECRET_ACCESS_KEY": "hush-hush-hush"}
    shown = cluster.nulls(*train, **secret)
    data = answer(shown)
    assert "hush" not in shown.stdout + shown.stderr
    assert data["environment"]["AWS_SECRET_ACCESS_KEY"] == "***"
    assert data["environment"]["MLFLOW_TRACKING_URI"] == f"sqlite:///{cluster.folder}/mlflow.db"
    assert f"--registry {cluster.folder}/nulls-registry" in data["command"]
    assert data["config"]["context_length"] == 64

    # Taken for another machine, since the folder of its session is not found here.
    elsewhere = {"RAY_TMPDIR": "/nowhere"}
    refused = cluster.nulls(*train, **elsewhere)
    assert "another machine" in answer(refused, code=2)["error"]["message"]
    shared = ("--registry", "s3://bucket/registry", "--runs", "/mnt/runs")
    there = answer(cluster.nulls(*train, *shared, MLFLOW_TRACKING_URI="http://mlflow:5000", **elsewhere))
    assert there["command"].startswith("exec python -m")
    assert len(Cluster(cluster.url).jobs()) == before


@pytest.mark.ray
def test_addresses_lead_to_the_job_server(cluster: Running) -> None:
    session = next(Path(cluster.environ["RAY_TMPDIR"], "ray").glob("session_2*"))
    gcs = Path(session.parent, "ray_current_cluster").read_text().strip()
    for address in (gcs, "auto"):
        assert Cluster(address).url == cluster.url
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        done = cluster.nulls("jobs", "list", "--json", **{variable: cluster.url})
        assert isinstance(answer(done), list)
    # The option takes precedence over the environment.
    done = cluster.nulls("jobs", "list", "--json", "--ray-address", cluster.url, RAY_ADDRESS="127.0.0.1:9")
    assert isinstance(answer(done), list)
    wrong = cluster.folder / "wrong-token"
    wrong.write_text("ab" * 16)
    done = commands.nulls(
        "jobs", "list", "--ray-address", cluster.url, cwd=cluster.folder, RAY_AUTH_TOKEN_PATH=str(wrong)
    )
    assert (done.code, "RAY_AUTH_TOKEN" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_an_address_without_a_server_is_refused_before_ray_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits are what makes the answer quick: 5 s to connect, and Ray's own lookup is not started."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("Ray's lookup was started for an address where no server listens")

    port = free_port()
    monkeypatch.setattr("orchestration.jobs.address.subprocess.Popen", refuse)
    for address in (f"http://127.0.0.1:{port}", f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        done = commands.nulls("jobs", "list", "--json", "--ray-address", address, cwd=tmp_path)
        error = answer(done, code=2)["error"]
        assert (error["kind"], str(port) in error["message"]) == ("ServiceError", True)
    detach = commands.nulls("train", "--model", "m", "--detach", cwd=tmp_path)
    assert (detach.code, "--ray-address" in detach.stderr) == (2, True)


def test_rays_own_lookup_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.jobs.address._FIND_S", 1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ServiceError, match="within 1 s"):
            find_job_server(f"ray://127.0.0.1:{silent.getsockname()[1]}")
