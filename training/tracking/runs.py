"""Log a run to MLflow: parameters, the snapshot as its dataset, metrics of each step, checkpoints, restarts.

Only the driver talks to MLflow. It follows the file that rank 0 writes (`training.run.worker`), so a server that is
slow or cannot be reached for a while delays nothing: what it missed is sent later, at the latest at the end of the run.
Each step is logged once. A resumed run can repeat steps, but repeats them to the same numbers.

Cost: about one request a second, of up to 1000 numbers.

Run: ``with Follower(run_dir / "progress.jsonl", client, run_id): ...``.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.errors import ModelExistsError, ServiceError
from registry.messages.masking import masked
from registry.snapshot import Snapshot
from training.tracking import restarts, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

DIGEST_CHARS = 36
"""MLflow's limit for a dataset's digest, which is the beginning of the snapshot id's 64 hex digits."""

_METRICS = (
    "loss",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
    "loader_share",
    "mfu",
    "mfu_dense_equivalent",
    "gpu_memory_bytes",
)
PROGRESS_FIELDS = ("step", "total_steps", "loss", "tokens_per_second", "loader_share", "mfu", "watch_closure_backbone")
_PROBE_PREFIX = "watch_"  # of the metrics of `training.run.isolation_probe`: seven at most
_STEPS_PER_REQUEST = 1000 // (len(_METRICS) + 7)  # MLflow takes 1000 metrics in a request
_POLL_S = 0.5
_MAX_PARAM_CHARS = 6000  # MLflow's limit for the value of a parameter

_log = logging.getLogger(__name__)


def refuse_existing_model(client: MlflowClient, uri: str, name: str) -> None:
    """Raise `ModelExistsError` if a model of this name is registered."""
    if model_exists(client, uri, name):
        raise ModelExistsError(
            f"model {name!r} is registered already in {uri}: name another with --model, go on with an unfinished run "
            "with --resume, or add a version to it with --new-version"
        )


def model_exists(client: MlflowClient, uri: str, name: str) -> bool:
    """Return whether a model of this name is registered, with or without versions."""
    from mlflow.exceptions import MlflowException

    with store.translated(uri):
        try:
            client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
    return True


def start_run(
    client: MlflowClient,
    uri: str,
    *,
    experiment: str,
    name: str,
    parameters: Mapping[str, Any],
    snapshot: Snapshot,
) -> str:
    """Create a run with its parameters and its dataset, and the experiment if there is none; return the run's id.

    Raises:
        ServiceError: the store cannot be reached, or refuses the run.
    """
    from mlflow.entities import Param

    with store.translated(uri):
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else _create_experiment(client, uri, experiment)
        run_id: str = client.create_run(experiment_id, run_name=name).info.run_id
        values = [Param(key, masked(str(value))[:_MAX_PARAM_CHARS]) for key, value in flattened(parameters)]
        client.log_batch(run_id, params=values)
        client.log_inputs(run_id, datasets=[_dataset(snapshot)])
        client.set_tag(run_id, "nulls.snapshot", snapshot.id)
    return run_id


def _create_experiment(client: MlflowClient, uri: str, name: str) -> str:
    created: str = client.create_experiment(name, artifact_location=store.artifact_location(uri))
    return created


def _dataset(snapshot: Snapshot) -> Any:
    """Return the snapshot as an MLflow input, with the fields that `mlflow.log_input` gives a local dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    counts = {name: entry["rows"] for name, entry in snapshot.manifest["files"].items()}
    dataset = Dataset(
        name="nulls-snapshot",
        digest=snapshot.id[:DIGEST_CHARS],
        source_type="local" if isinstance(snapshot.path, Path) else "s3",
        source=json.dumps({"uri": str(snapshot.path)}),
        profile=json.dumps({"snapshot": snapshot.id, "num_sources": counts.get("sources.parquet", 0)}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def flattened(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings as (`outer.inner`, value)."""
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class Follower:
    """A thread that follows a run's progress file and sends it to MLflow, for the duration of a `with` block.

    Args:
        path: the file; it need not exist yet. `on_progress` is not called for the lines that it has already.
        client: of the MLflow store.
        run_id: MLflow's id of the run.
        on_progress: called in the thread for each step, with those of `PROGRESS_FIELDS` that it has.

    Raises:
        ServiceError: at the end of the block, if MLflow has not taken all metrics.
    """

    def __init__(
        self,
        path: Path,
        client: MlflowClient,
        run_id: str,
        on_progress: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._path, self._client, self._run_id, self._on_progress = path, client, run_id, on_progress
        self._position = 0
        self._shown_from = path.stat().st_size if path.exists() else 0
        self._pending: list[dict[str, Any]] = []
        self._checkpoints: list[str] = []
        self._restarts = restarts.Restarts()
        self._num_restarts_sent = 0
        self._logged_step: int | None = None
        self._retry_at = 0.0
        self._error: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="nulls-progress", daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        self._read()
        self._send()
        if self._error is not None and error is None:
            raise ServiceError(
                f"the run is trained, but MLflow did not take its metrics: {self._error}; they are in "
                f"{self._path}: run again with --resume to send them and to register the model"
            ) from self._error

    def _follow(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._read()
            if time.monotonic() >= self._retry_at:
                self._send()

    def _read(self) -> None:
        """Read the complete lines that are new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines(keepends=True):
            self._position += len(line)
            fields = json.loads(line)
            if "loss" in fields:
                self._pending.append(fields)
                self._show(fields)
            elif "checkpoint" in fields:
                self._checkpoints.append(fields["checkpoint"])
            elif (message := self._restarts.take(fields)) and self._position > self._shown_from:
                _log.warning("%s", message)

    def _show(self, fields: dict[str, Any]) -> None:
        if self._on_progress is not None and self._position > self._shown_from:
            self._on_progress({name: fields[name] for name in PROGRESS_FIELDS if name in fields})

    def _send(self) -> None:
        """Send what is pending; on failure it stays pending, and is sent again after 10 s."""
        try:
            if self._logged_step is None:
                history = self._client.get_metric_history(self._run_id, "loss")
                self._logged_step = max((metric.step for metric in history), default=0)
            while self._pending:
                part = self._pending[:_STEPS_PER_REQUEST]
                self._send_steps(part)
                del self._pending[: len(part)]
            if self._checkpoints:
                self._client.set_tag(self._run_id, "nulls.checkpoint", self._checkpoints[-1])
                self._checkpoints.clear()
            if len(self._restarts.entries) > self._num_restarts_sent:
                self._client.set_tag(self._run_id, restarts.TAG, self._restarts.tag())
                self._num_restarts_sent = len(self._restarts.entries)
            self._error = None
        except Exception as error:  # whatever fails in a tracking store, it may work later
            self._error = error
            self._retry_at = time.monotonic() + 10

    def _send_steps(self, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics, logged_step = [], self._logged_step or 0
        for fields in lines:
            if fields["step"] > logged_step:
                logged_step = fields["step"]
                names = [name for name in fields if name in _METRICS or name.startswith(_PROBE_PREFIX)]
                metrics += [Metric(name, fields[name], now, logged_step) for name in names]
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)
        self._logged_step = logged_step


def loss_curve(path: Path) -> dict[int, float]:
    """Return step -> loss from a progress file; for a step that was repeated after a crash, the last loss."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {fields["step"]: fields["loss"] for fields in lines if "loss" in fields}
