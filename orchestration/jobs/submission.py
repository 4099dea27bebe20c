"""What a training job is made of, as pure decisions: its command, its environment, its files, and what may be shown.

A job runs on a machine that may have none of this one's files. So the code goes along (the four packages, 1 MB, which
win over an installed release), the configuration goes along resolved, and every place is one that the cluster's nodes
see: a URL, or an absolute path on a disk that they share. A relative path is made absolute where the cluster's head is
this machine; of another machine it would name something else, or make it silently, and is refused.

Secrets (AWS_*, MLFLOW_*, NULLS_CATALOG) travel in the job's environment, as Ray does it: whoever may use the cluster's
job server can read them there. Nothing here prints them.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import UsageError

if TYPE_CHECKING:
    from orchestration.settings import Settings
    from orchestration.train_request import TrainRequest

PACKAGES = ("registry", "pipelines", "training", "orchestration")
CONFIG = "train.yaml"
MODEL_KEY = "nulls.model"
"""In a job's metadata: tells jobs of `nulls train` from others."""
HIDDEN = "***"
_PASSED_ON = ("AWS_", "MLFLOW_")
# Places of credentials on this machine; another's are its own.
_OF_THIS_MACHINE = frozenset({"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"})
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|AUTH", re.IGNORECASE)
_SECRETS_IN_URL = (
    re.compile(r"(://[^/\s@:]*:)([^/\s]+)(?=@)"),
    re.compile(r"(\b(?:password|token|secret)=)([^&\s]+)", re.IGNORECASE),
)
_MIN_SECRET_CHARS = 6  # shorter ones would blot out ordinary words of a log
_STOP_WAIT_S = 30  # for a stopped driver to tell MLflow; Ray's own default is 3 s, then SIGKILL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """A job as it goes to the cluster."""

    model: str
    """Name to register under."""
    command: str
    """What the cluster runs, in a shell, in the folder of the files."""
    environment: dict[str, str]
    """Variables of the job and its workers, secrets included."""
    left_out: tuple[str, ...]
    """Names of variables that are set here and would mean nothing there."""
    metadata: dict[str, str]
    """Shown by the cluster beside the job."""
    config: dict[str, Any]
    """The resolved configuration."""

    @property
    def shown_environment(self) -> dict[str, str]:
        """The environment for a person: secrets hidden."""
        return {name: shown(name, value) for name, value in sorted(self.environment.items())}

    def to_dict(self) -> dict[str, Any]:
        """As `--dry-run` shows it: secrets hidden."""
        return {
            "model": self.model,
            "command": self.command,
            "environment": self.shown_environment,
            "left_out": list(self.left_out),
            "metadata": self.metadata,
            "files": [*PACKAGES, CONFIG],
            "config": self.config,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where the job finds and leaves things, as a person named them.

    Attributes:
        registry, runs: a path or s3://.
        tracking: MLflow's URI.
        catalog: of SQLAlchemy; None for the registry's own.
        tokenizer: the directory that the configuration names; None if it names none.
    """

    registry: str
    runs: str
    tracking: str
    catalog: str | None
    tokenizer: str | None

    def on_cluster(self, here: Path | None) -> Places:
        """The same places as the cluster's nodes find them.

        Args:
            here: what relative paths start from; None if the cluster is another machine.

        Raises:
            UsageError: a relative path, and the cluster is another machine.
        """
        return Places(
            registry=place(self.registry, "--registry", here),
            runs=place(self.runs, "--runs", here),
            tracking=place(self.tracking, "MLFLOW_TRACKING_URI", here),
            catalog=self.catalog and place(self.catalog, "NULLS_CATALOG", here),
            tokenizer=self.tokenizer and place(self.tokenizer, "--set tokenizer", here),
        )


def place(text: str, setting: str, here: Path | None) -> str:
    """One place as the cluster's nodes find it: see `Places.on_cluster`; `setting` is where it was named."""
    scheme, mark, path = text.rpartition("://")
    if mark and not scheme.startswith("sqlite"):
        return text
    # sqlite:///relative.db and sqlite:////absolute.db, as SQLAlchemy and MLflow have it.
    path = path.removeprefix("/") if mark else path
    if not Path(path).is_absolute():
        if here is None:
            raise UsageError(
                f"{setting} {text}: a relative path, and the cluster is another machine, where it would name another "
                "file; give an absolute path on a disk that the cluster's nodes share, or the URL of a server or s3://"
            )
        path = str((here / path).absolute())
    return f"{scheme}:///{path}" if mark else path


def train_command(places: Places, request: TrainRequest, *, snapshot: str | None, python: str) -> str:
    """The shell command of the job: `nulls train` of the files that go along, in `orchestration.jobs.entrypoint`."""
    words = [python, "-m", "orchestration.jobs.entrypoint", "train", "--model", request.model, "--config", CONFIG]
    words += ["--workers", str(request.workers), "--registry", places.registry, "--runs", places.runs]
    words += ["--snapshot", snapshot] if snapshot else []
    words += ["--storage", request.storage] if request.storage else []
    words += ["--resume"] * request.resume + ["--new-version"] * request.new_version
    # exec: Ray's signals reach Python itself, not a shell that ends before it.
    return "exec " + shlex.join([*words, "--json"])


def interpreter(is_here: bool) -> str:
    """The Python of the job: this one on this machine, whatever the nodes find as `python` on another."""
    return sys.executable if is_here else "python"


def environment(environ: Mapping[str, str], places: Places, *, is_here: bool) -> tuple[dict[str, str], tuple[str, ...]]:
    """The variables of the job, and the names of those that stay here since they name files of this machine."""
    passed = {name: value for name, value in environ.items() if name.startswith(_PASSED_ON) and value}
    left_out = () if is_here else tuple(sorted(name for name in passed if _is_local(name, passed[name])))
    variables = {name: value for name, value in passed.items() if name not in left_out}
    variables["MLFLOW_TRACKING_URI"] = places.tracking
    if places.catalog:
        variables["NULLS_CATALOG"] = places.catalog
    # Stopped as by Ctrl-C, so that MLflow hears of it.
    variables |= {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S)}
    return variables, left_out


def _is_local(name: str, value: str) -> bool:
    return name in _OF_THIS_MACHINE or (value.startswith("/") and os.path.exists(value))


def shown(name: str, value: str) -> str:
    """The value of a variable for a person: without what is secret in it."""
    if _SECRET_NAME.search(name):
        return HIDDEN
    for pattern in _SECRETS_IN_URL:
        value = pattern.sub(rf"\g<1>{HIDDEN}", value)
    return value


def secrets(variables: Mapping[str, str]) -> list[str]:
    """What must not be printed of these variables, the longest first."""
    found = {value for name, value in variables.items() if _SECRET_NAME.search(name)}
    for value in variables.values():
        found |= {match[2] for pattern in _SECRETS_IN_URL for match in pattern.finditer(value)}
    return sorted((secret for secret in found if len(secret) >= _MIN_SECRET_CHARS), key=len, reverse=True)


def redacted(text: str, hidden: list[str]) -> str:
    """`text` without the secrets of `hidden`."""
    for secret in hidden:
        text = text.replace(secret, HIDDEN)
    return text


def prepare(settings: Settings, request: TrainRequest, *, config: Any, is_here: bool) -> Submission:
    """The job that `nulls train` with these options is.

    Args:
        settings: where the registry, the catalogue and MLflow are.
        request: what is asked for.
        config: the resolved TrainConfig.
        is_here: whether the cluster's head is this machine. The snapshot is then looked up now; else by the job.

    Raises:
        UsageError: a relative path, and the cluster is another machine.
        NotFoundError: no such snapshot.
    """
    from training.tracking import store

    store.tracking_uri(settings.tracking)  # refuses what is no store
    snapshot = settings.open_snapshot().id if is_here else settings.snapshot
    places = Places(
        registry=settings.registry_uri,
        runs=str(request.runs),
        tracking=settings.tracking or os.environ.get("MLFLOW_TRACKING_URI") or store.DEFAULT_TRACKING_URI,
        catalog=settings.catalog or os.environ.get("NULLS_CATALOG"),
        tokenizer=config.tokenizer,
    ).on_cluster(Path.cwd() if is_here else None)
    variables, left_out = environment(os.environ, places, is_here=is_here)
    return Submission(
        model=request.model,
        command=train_command(places, request, snapshot=snapshot, python=interpreter(is_here)),
        environment=variables,
        left_out=left_out,
        metadata={MODEL_KEY: request.model, "nulls.snapshot": snapshot or "newest"},
        config=config.to_dict() | {"tokenizer": places.tokenizer},
    )


def yaml_lines(data: Mapping[str, Any]) -> list[str]:
    """`data` for a person."""
    import yaml

    return str(yaml.safe_dump(dict(data), sort_keys=False)).splitlines()


def stage(folder: Path, config: Mapping[str, Any]) -> None:
    """Puts what goes along into `folder`: the packages that run here, and the configuration as YAML."""
    import yaml

    root = Path(__file__).absolute().parents[2]
    for package in PACKAGES:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
