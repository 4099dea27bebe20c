"""Train a model on a snapshot and register it as a model version, in one call.

The driver checks first what would stop a run later (a name that is taken, a tracking store that cannot be reached, a
disk that cannot be written, too few sources). Then it prepares what workers share (tokenizer, token cache), and starts
them under Ray Train. A run is a directory, `<runs_dir>/<model>/run-NNN`:

    run.json          snapshot, configuration and MLflow run; written when all is prepared
    tokenizer/        the run's tokenizer
    attempt-NNN/      checkpoints of one driver; a resumed run has several of these
    progress.jsonl    one line a step
    weights/          the exported model, when training is done
    result.json       written last by the workers
    done.json         written by the driver, when the version is registered

Ray restarts a worker that dies; `resume=True` continues a run whose driver died. Either way the run goes on from its
last whole checkpoint and ends with the same weights, bit for bit. Resuming a run that is done returns its result again.

Cost: the first step comes about 30 s after the call on two idle cores (Ray 8 s, MLflow's first database 5 s, torch and
transformers in each worker); a restart after a death takes about 15 s.

Run: ``train(TrainConfig.preset("demo"), registry_uri="nulls-registry", model_name="wiki", runs_dir=Path("runs"))``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from registry import errors
from registry.catalog.database import catalog_url
from registry.errors import DamagedError, NotFoundError, NullsError, ServiceError, UsageError
from registry.ids import format_id
from registry.snapshot import Registry, Snapshot
from registry.storage import check_writable, translate_os_errors, write_atomic
from training.checkpoint import dcp, export
from training.checkpoint.remote_copy import RUN_JSON, RemoteRun, RemoteRuns
from training.config import TrainConfig
from training.data.heldout import choose_heldout
from training.data.packing import PackedLoader
from training.data.reserved import check_reserved
from training.data.token_cache import TokenCache
from training.data.tokenizer import load_tokenizer, sample_texts, tokenizer_fingerprint, train_tokenizer
from training.estimate.token_count import tokenizer_recipe
from training.run import ray_session
from training.run.protocol import FAILURE, PROGRESS, RESULT, Job
from training.run.taken_out import message, refuse, taken_out
from training.run.worker_range import Workers
from training.tracking import runs, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

DONE_JSON = "done.json"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a finished run; its fields are those of `nulls train --json`."""

    run_id: str
    """MLflow's id of the run."""
    model_uri: str
    """`models:/NAME/VERSION`"""
    snapshot: str
    """Id of the snapshot that was trained on."""
    tokens: int
    """Targets that were trained on, over all epochs."""
    tokens_per_second: float
    """All workers together, over the time spent in steps."""
    loss: float
    """Mean over the targets of the last epoch, in nats."""


def train(
    config: TrainConfig,
    *,
    registry_uri: str | Path,
    snapshot_ref: str | None = None,
    model_name: str,
    num_workers: int | Workers = 2,
    runs_dir: Path,
    remote_uri: str | None = None,
    tracking_uri: str | None = None,
    experiment: str = "nulls",
    resume: bool = False,
    new_version: bool = False,
    catalog: str | None = None,
    allow_unlearned: bool = False,
    ray_address: str | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train a model on a snapshot and register it.

    Args:
        config: model, data and schedule of the run.
        registry_uri: the registry that holds the snapshot.
        snapshot_ref: the snapshot's id or a prefix of it; by default the newest snapshot.
        model_name: the name to register under; a new one, unless `resume` or `new_version`.
        num_workers: Ray workers, a number or a range; one GPU each if there are enough, else a share of the cores.
        runs_dir: the directory for runs, on a disk that all nodes share.
        remote_uri: an s3:// prefix for remote copies of checkpoints and weights; a run that `runs_dir` lacks is resumed
            from there.
        tracking_uri: the MLflow store; see `training.tracking.store.tracking_uri` for the default.
        experiment: MLflow's experiment, created if there is none.
        resume: go on with the newest run of this model; never begin one.
        new_version: allow a name that exists; the run then becomes its newest version.
        catalog: the catalogue's URL; by default NULLS_CATALOG, else the one in a local registry, if there is any.
        allow_unlearned: train on sources, too, that were unlearned in a model of this name or its lineage.
        ray_address: a running cluster; by default RAY_ADDRESS, else Ray is started here, unless it is connected.
        on_progress: called from a thread for each step, with those of `runs.PROGRESS_FIELDS` that it has.

    Raises:
        UsageError: a bad argument, too few sources, a reserved source without text, or a loss that stopped being
            finite.
        ModelExistsError: the name is taken; nothing was trained.
        NotFoundError: no such snapshot, or no run to resume.
        RefusedError: the snapshot holds sources that were unlearned; or the run to resume has another snapshot,
            configuration or tokenizer.
        ServiceError: MLflow, Ray or the disk cannot be used, or workers died more often than `config.max_failures`.
    """
    if not _MODEL_NAME.fullmatch(model_name):
        raise UsageError(f"model name {model_name!r}: expected letters, digits, '.', '_' and '-', 100 at most")
    workers = num_workers if isinstance(num_workers, Workers) else Workers(least=num_workers, most=num_workers)
    remote_runs = RemoteRuns.of(remote_uri, model_name) if remote_uri else None
    taken = remote_runs.run_names() if remote_runs else []
    registry = Registry.open(registry_uri)
    snapshot = registry.snapshot(snapshot_ref)
    check_reserved(snapshot, config.model.layout().reserved)
    folder = Path(runs_dir).absolute() / model_name
    run_dir = _newest_run(folder, remote_runs) if resume else None
    if resume and run_dir is None:
        where = f"{folder} or {remote_uri}" if remote_uri else str(folder)
        raise NotFoundError(f"no run of model {model_name!r} to resume in {where}; without --resume a run begins")
    check_writable(folder)
    uri = store.tracking_uri(tracking_uri)
    client = store.client(uri)
    is_done = run_dir is not None and (run_dir / DONE_JSON).exists()
    url = catalog_url(registry.root, catalog)
    unlearned = {} if is_done else taken_out(url, snapshot, model_name, tracking_uri=uri)
    if not allow_unlearned:
        refuse(unlearned, snapshot)
    if run_dir is None:
        if not new_version:
            runs.refuse_existing_model(client, uri, model_name)
        run_dir = _prepare_run(config, snapshot, folder, registry, client, uri, experiment, taken, unlearned)
    facts = json.loads((run_dir / RUN_JSON).read_bytes())
    remote_run = remote_runs.of_run(run_dir.name) if remote_runs else None
    run = _Run(config, snapshot, run_dir, client, uri, facts, remote_run)
    run.refuse_unless_same()
    if (run_dir / DONE_JSON).exists():
        return TrainResult(**json.loads((run_dir / DONE_JSON).read_bytes()))
    with run.status():
        if not (run_dir / RESULT).exists():
            run.fit(workers, ray_address, on_progress)
        return run.register(model_name)


def _newest_run(folder: Path, remote_runs: RemoteRuns | None) -> Path | None:
    """Return the newest run with a `run.json`; where there is none here, download the newest from its remote copy."""
    prepared = (path.parent for path in folder.glob(f"run-*/{RUN_JSON}"))
    found = max(prepared, key=lambda path: int(path.name.removeprefix("run-")), default=None)
    return remote_runs.fetch_newest_run(folder) if found is None and remote_runs is not None else found


def _numbered(folder: Path, prefix: str, taken: Sequence[str] = ()) -> Path:
    """Create the next of a series of directories, after those `taken` elsewhere; two callers never get the same one."""
    names = (*taken, *(path.name for path in folder.glob(f"{prefix}[0-9]*")))
    number = 1 + max((int(name.removeprefix(prefix)) for name in names), default=0)
    while True:
        path = folder / f"{prefix}{number:03d}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def _prepare_run(
    config: TrainConfig,
    snapshot: Snapshot,
    folder: Path,
    registry: Registry,
    client: MlflowClient,
    uri: str,
    experiment: str,
    taken: Sequence[str],
    unlearned: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Create the directory of a new run: held-out sources, tokenizer, token cache, MLflow run, and `run.json` last."""
    heldout = choose_heldout(
        snapshot.table("sources"),
        snapshot.table("owners"),
        seed=config.seed,
        share=config.heldout_share,
        min_heldout=config.min_heldout,
        min_bytes=config.min_heldout_bytes,
        never=config.model.layout().reserved,
    )
    if config.tokenizer:
        tokenizer = load_tokenizer(config.tokenizer)
    else:
        texts = sample_texts(snapshot, excluded=heldout, max_bytes=config.tokenizer_sample_bytes)
        tokenizer = train_tokenizer(texts, config.vocab_size)
    cache = TokenCache.of(snapshot, tokenizer, folder.parent / "cache")
    with translate_os_errors(folder):
        run_dir = _numbered(folder, "run-", taken)
        tokenizer.save_pretrained(str(run_dir / "tokenizer"))
    loader = PackedLoader(
        cache, heldout, context_length=config.context_length, rows_per_step=config.rows_per_step, epochs=config.epochs
    )
    facts = {
        "total_steps": loader.total_steps,
        "num_trained_sources": loader.num_sources,
        "num_targets_per_epoch": loader.num_targets_per_epoch,
        "num_heldout": len(heldout),
    }
    run_id = runs.start_run(
        client,
        uri,
        experiment=experiment,
        name=f"{folder.name}/{run_dir.name}",
        parameters=config.to_dict() | facts | ({"allow_unlearned": message(unlearned)} if unlearned else {}),
        snapshot=snapshot,
    )
    content = {
        "run_id": run_id,
        "registry": str(registry.root),
        "snapshot": snapshot.id,
        "config": config.fingerprint(),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "tokenizer_recipe": tokenizer_recipe(config, heldout),
        "cache": str(cache.path),
        "heldout": [format_id(source) for source in heldout],
    }
    write_atomic(run_dir / RUN_JSON, json.dumps(content, indent=1).encode())
    return run_dir


@dataclasses.dataclass
class _Run:
    """A run whose directory is prepared, new or resumed."""

    config: TrainConfig
    snapshot: Snapshot
    run_dir: Path
    client: MlflowClient
    uri: str
    facts: dict[str, Any]
    """The content of `run.json`."""
    remote_run: RemoteRun | None = None

    @property
    def run_id(self) -> str:
        return str(self.facts["run_id"])

    def refuse_unless_same(self) -> None:
        """Raise `RefusedError` if the run has another snapshot or configuration."""
        dcp.refuse_unless_same(
            {"snapshot": self.snapshot.id, "configuration": self.config.fingerprint()},
            {"snapshot": self.facts["snapshot"], "configuration": self.facts["config"]},
        )

    def fit(
        self, workers: Workers, ray_address: str | None, on_progress: Callable[[dict[str, Any]], None] | None
    ) -> None:
        """Train until the workers have written `result.json`."""
        (self.run_dir / FAILURE).unlink(missing_ok=True)
        tokenizer = load_tokenizer(self.run_dir / "tokenizer")
        # Built again if it was deleted, or if this is another machine; the run's own tokenizer gives the same tokens.
        cache = TokenCache.of(self.snapshot, tokenizer, self.run_dir.parents[1] / "cache")
        if self.remote_run is not None:
            self.remote_run.put_run(self.run_dir)
            self.remote_run.fetch_latest(self.run_dir)
        attempt = _numbered(self.run_dir, "attempt-")
        job = Job(
            config=self.config,
            run_dir=self.run_dir,
            attempt=attempt.name,
            cache=cache.path,
            heldout=tuple(int(text, 16) for text in self.facts["heldout"]),
            facts={"registry": self.facts["registry"], "run_id": self.run_id},
            remote_run=str(self.remote_run.root) if self.remote_run else None,
        )
        progress = self.run_dir / PROGRESS
        session = ray_session.session(ray_address, workers.most)
        with runs.Follower(progress, self.client, self.run_id, on_progress), session:
            ray_session.fit(job, attempt, workers)
        self._raise_failure()

    def _raise_failure(self) -> None:
        """Raise the error that ended the workers, if there was one."""
        if (self.run_dir / FAILURE).exists():
            failure = json.loads((self.run_dir / FAILURE).read_bytes())
            raise getattr(errors, failure["error"], NullsError)(failure["message"])
        if not (self.run_dir / RESULT).exists():
            raise ServiceError(f"run {self.run_dir}: the workers ended without a result; go on with --resume")

    def register(self, model_name: str) -> TrainResult:
        """Register the exported weights, and write `done.json`."""
        from training.serving import flavor

        weights = self.run_dir / export.WEIGHTS
        result = json.loads((self.run_dir / RESULT).read_bytes())
        if export.weights_digest(weights) != result["weights"]:
            raise DamagedError(
                f"{weights}: the weights are not those that were trained; delete {self.run_dir / RESULT} and resume"
            )
        model_uri = flavor.register(
            weights,
            model_name=model_name,
            run_id=self.run_id,
            tracking_uri=self.uri,
            keep_copy=self.remote_run.put_weights if self.remote_run else None,
        )
        done = TrainResult(
            run_id=self.run_id,
            model_uri=model_uri,
            snapshot=self.snapshot.id,
            tokens=result["tokens"],
            tokens_per_second=result["tokens_per_second"],
            loss=result["loss"],
        )
        write_atomic(self.run_dir / DONE_JSON, json.dumps(dataclasses.asdict(done)).encode())
        return done

    @contextlib.contextmanager
    def status(self) -> Iterator[None]:
        """Set the status of the MLflow run: running during the block, then finished, failed or killed."""
        with store.translated(self.uri):
            self.client.update_run(self.run_id, status="RUNNING")
        try:
            yield
        except BaseException as error:
            ending = "FAILED" if isinstance(error, Exception) else "KILLED"
            try:
                self.client.set_terminated(self.run_id, status=ending)
            except Exception as second:  # the first error is the one to raise
                error.add_note(f"the end of the run could not be recorded in MLflow: {second}")
            raise
        with store.translated(self.uri):
            self.client.set_terminated(self.run_id, status="FINISHED")
