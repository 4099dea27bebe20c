"""`nulls train`: train with this process as the driver, submit a job, or only estimate (`--dry-run`)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from orchestration.cli import jobs
from orchestration.cli.train_dry_run import dry_run_lines, estimate_run
from orchestration.output import Output
from orchestration.retraining import refuse_unlearned
from orchestration.settings import Settings
from orchestration.train_request import TrainRequest, resolve_config, step_progress, train_lines
from registry.errors import UsageError

if TYPE_CHECKING:
    from training.run.driver import TrainResult


def run(request: TrainRequest, settings: Settings, output: Output) -> None:
    """Train NULLs on a snapshot with Ray, and register the model with MLflow."""
    config = resolve_config(request.preset, request.overrides or [], request.config_file)
    refuse_unlearned(request, settings, output)
    if request.ray_address:
        jobs.train(request, settings, output, config=config, ray_address=request.ray_address)
    elif request.detach:
        raise UsageError("--detach: only a job of a cluster runs without this process; name one with --ray-address")
    elif request.dry_run:
        data = estimate_run(request, settings, config)
        output.result(data, lambda: dry_run_lines(data))
    else:
        _train_here(request, settings, output, config)


def _train_here(request: TrainRequest, settings: Settings, output: Output, config: Any) -> None:
    """Train with this process as the driver."""
    snapshot = settings.open_snapshot()
    from training.run.driver import train

    with output.progress("train") as update:
        result = train(
            config,
            registry_uri=str(settings.open_registry().root),
            snapshot_ref=snapshot.id,
            model_name=request.model,
            num_workers=request.workers,
            runs_dir=request.runs,
            remote_uri=request.remote_uri,
            tracking_uri=settings.tracking_uri,
            resume=request.resume,
            new_version=request.new_version,
            catalog=settings.catalog,
            allow_unlearned=request.allow_unlearned,
            on_progress=step_progress(update),
        )
    _record(settings, result)
    data = dataclasses.asdict(result)
    output.result(data, lambda: train_lines(data, settings.tracking_uri))


def _record(settings: Settings, result: TrainResult) -> None:
    """Record the model version in the catalogue; a registry at s3:// can do without one."""
    from training.serving.flavor import describe

    version = describe(result.model_uri, tracking_uri=settings.tracking_uri)
    catalog = settings.find_catalog(settings.open_registry())
    if catalog is not None:
        catalog.record_model(
            result.model_uri, snapshot_id=result.snapshot, weights=str(version.weights), run_id=result.run_id
        )
