"""Decide what a training job consists of, without I/O to the cluster: command, environment, files, what may be shown.

A job runs on a machine that may have none of this machine's files. So the code goes along (the four packages, 1 MB,
which take precedence over an installed release), the configuration goes along resolved, and every path is one that the
cluster's nodes see: a URL, or an absolute path on a disk that they share. A relative path is made absolute if the
cluster's head is this machine; on another machine it would name another file, or silently create one, and is refused.

Secrets (AWS_*, MLFLOW_*, NULLS_CATALOG) are in the job's environment, as usual with Ray: everyone who may use the
cluster's job server can read them there. Nothing here prints them (`registry.messages.masking`).
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import UsageError
from registry.messages.masking import HIDDEN, is_secret, masked, masked_url

if TYPE_CHECKING:
    from orchestration.settings import Settings
    from orchestration.train_request import TrainRequest

PACKAGES = ("registry", "pipelines", "training", "orchestration")
CONFIG = "train.yaml"
MODEL_KEY = "nulls.model"
"""A key of a job's metadata, which only jobs of `nulls train` have."""
RESULT_MARK = "nulls-result: "
"""Begins the line of a job's log that holds the JSON document of its command."""
_PASSED_ON = ("AWS_", "MLFLOW_")
# Where this machine keeps credentials; another machine has its own.
_OF_THIS_MACHINE = frozenset({"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"})
_STOP_WAIT_S = 30  # for a stopped driver to report to MLflow; Ray's own default is 3 s, then SIGKILL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A job, as it is sent to the cluster."""

    model: str
    """Name to register the model under."""
    command: str
    """The shell command, run in the folder of the files."""
    environment: dict[str, str]
    """Environment variables of the job and its workers, secrets included."""
    left_out: tuple[str, ...]
    """Names of variables that name files of this machine, and are not passed on."""
    metadata: dict[str, str]
    """Shown by the cluster beside the job."""
    config: dict[str, Any]
    """The resolved configuration."""

    @property
    def shown_environment(self) -> dict[str, str]:
        """The environment with secrets masked."""
        return {name: shown(name, value) for name, value in sorted(self.environment.items())}

    def to_dict(self) -> dict[str, Any]:
        """Return what `--dry-run` shows, with secrets masked."""
        return {
            "model": self.model,
            "command": masked(self.command),
            "environment": self.shown_environment,
            "left_out": list(self.left_out),
            "metadata": self.metadata,
            "files": [*PACKAGES, CONFIG],
            "config": self.config,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobPaths:
    """The paths and URIs that a job reads and writes, as the user named them.

    Attributes:
        registry, runs: a path or s3://.
        tracking: MLflow's URI.
        catalog: an SQLAlchemy URL; None for the catalogue inside the registry.
        tokenizer: the directory that the configuration names; None if it names none.
    """

    registry: str
    runs: str
    tracking: str
    catalog: str | None
    tokenizer: str | None

    def on_cluster(self, here: Path | None) -> JobPaths:
        """Return the same paths as the cluster's nodes must name them.

        Args:
            here: the directory that relative paths start from; None if the cluster is another machine.

        Raises:
            UsageError: a relative path, and the cluster is another machine.
        """
        return JobPaths(
            registry=path_on_cluster(self.registry, "--registry", here),
            runs=path_on_cluster(self.runs, "--runs", here),
            tracking=path_on_cluster(self.tracking, "MLFLOW_TRACKING_URI", here),
            catalog=self.catalog and path_on_cluster(self.catalog, "NULLS_CATALOG", here),
            tokenizer=self.tokenizer and path_on_cluster(self.tokenizer, "--set tokenizer", here),
        )


def path_on_cluster(text: str, setting: str, here: Path | None) -> str:
    """Return one path or URI as the cluster's nodes must name it (`JobPaths.on_cluster`); `setting` is for messages."""
    scheme, mark, path = text.rpartition("://")
    if mark and not scheme.startswith("sqlite"):
        return text
    # sqlite:///relative.db and sqlite:////absolute.db, as SQLAlchemy and MLflow write them.
    path = path.removeprefix("/") if mark else path
    if not Path(path).is_absolute():
        if here is None:
            raise UsageError(
                f"{setting} {text}: a relative path, and the cluster is another machine, where it would name another "
                "file; give an absolute path on a disk that the cluster's nodes share, or the URL of a server or s3://"
            )
        path = str((here / path).absolute())
    return f"{scheme}:///{path}" if mark else path


def train_command(paths: JobPaths, request: TrainRequest, *, snapshot: str | None, python: str) -> str:
    """Return the shell command of the job: `orchestration.jobs.entrypoint`, from the files that go along."""
    arguments = [python, "-m", "orchestration.jobs.entrypoint", "train", "--model", request.model, "--config", CONFIG]
    arguments += ["--workers", str(request.workers), "--registry", paths.registry, "--runs", paths.runs]
    arguments += ["--snapshot", snapshot] if snapshot else []
    arguments += ["--storage", request.remote_uri] if request.remote_uri else []
    arguments += ["--resume"] * request.resume + ["--new-version"] * request.new_version
    arguments += ["--allow-unlearned"] * request.allow_unlearned
    # exec: Ray's signals reach Python itself, not a shell that ends before it.
    return "exec " + shlex.join([*arguments, "--json"])


def interpreter(is_here: bool) -> str:
    """Return the Python of the job: this one if the cluster is this machine, else whatever `python` is on its nodes."""
    return sys.executable if is_here else "python"


def environment(
    environ: Mapping[str, str], paths: JobPaths, *, is_here: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the variables of the job, and the names of those not passed on since they name files of this machine."""
    passed = {name: value for name, value in environ.items() if name.startswith(_PASSED_ON) and value}
    left_out = () if is_here else tuple(sorted(name for name in passed if _is_local(name, passed[name])))
    variables = {name: value for name, value in passed.items() if name not in left_out}
    variables["MLFLOW_TRACKING_URI"] = paths.tracking
    if paths.catalog:
        variables["NULLS_CATALOG"] = paths.catalog
    # Stop it as Ctrl-C would, so that the driver can report to MLflow.
    variables |= {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    return variables, left_out


def _is_local(name: str, value: str) -> bool:
    return name in _OF_THIS_MACHINE or (value.startswith("/") and os.path.exists(value))


def shown(name: str, value: str) -> str:
    """Return the value of a variable with its secrets masked."""
    return HIDDEN if is_secret(name) else masked_url(value)


def prepare(settings: Settings, request: TrainRequest, *, config: Any, is_here: bool) -> Submission:
    """Return the job for a `nulls train` request.

    Args:
        settings: where the registry, the catalogue and MLflow are.
        request: the parameters of `nulls train`.
        config: the resolved TrainConfig.
        is_here: whether the cluster's head is this machine. Then the snapshot is looked up now, otherwise by the job.

    Raises:
        UsageError: a relative path, and the cluster is another machine.
        NotFoundError: no such snapshot.
    """
    from training.tracking import store

    store.tracking_uri(settings.tracking)  # refuses a URI that names no store
    snapshot = settings.open_snapshot().id if is_here else settings.snapshot
    paths = JobPaths(
        registry=settings.registry_uri,
        runs=str(request.runs),
        tracking=settings.tracking or os.environ.get("MLFLOW_TRACKING_URI") or store.DEFAULT_TRACKING_URI,
        catalog=settings.catalog or os.environ.get("NULLS_CATALOG"),
        tokenizer=config.tokenizer,
    ).on_cluster(Path.cwd() if is_here else None)
    variables, left_out = environment(os.environ, paths, is_here=is_here)
    return Submission(
        model=request.model,
        command=train_command(paths, request, snapshot=snapshot, python=interpreter(is_here)),
        environment=variables,
        left_out=left_out,
        metadata={MODEL_KEY: request.model, "nulls.snapshot": snapshot or "newest"},
        config=config.to_dict() | {"tokenizer": paths.tokenizer},
    )


def yaml_lines(data: Mapping[str, Any]) -> list[str]:
    """Format `data` as YAML, for a terminal."""
    import yaml

    return str(yaml.safe_dump(dict(data), sort_keys=False)).splitlines()


def stage(folder: Path, config: Mapping[str, Any]) -> None:
    """Copy the packages that run here into `folder`, and write the configuration there as YAML."""
    import yaml

    root = Path(__file__).absolute().parents[2]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
