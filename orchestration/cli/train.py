"""`nulls train`: what it accepts, and the training with this process as its driver (`job_commands.py` has the jobs)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.cli import jobs
from orchestration.cli.jobs import TRAIN_ADDRESS_HELP
from orchestration.cli.options import (
    DEFAULT_RUNS,
    DryRunOption,
    JsonOption,
    ModelNameOption,
    NewVersionOption,
    RegistryOption,
    RunsOption,
    SnapshotOption,
)
from orchestration.cli.train_dry_run import Speed
from orchestration.cli.train_dry_run import dry_run as plan_run
from orchestration.cli.train_dry_run import lines as dry_run_lines
from orchestration.output import Output
from orchestration.settings import Settings
from orchestration.train_request import TrainRequest, resolve_config, step_progress, train_lines
from registry.errors import UsageError
from training.run.worker_range import Workers

if TYPE_CHECKING:
    from training.run.driver import TrainResult


def train(
    model_name: ModelNameOption,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", metavar="P", help="demo (unless given), small, paper-1b, paper-1b-aligned, or a YAML file."
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="YAML of fields, over the `preset:` that it names, if any."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change one field, e.g. epochs=3, model.num_pool=4096."),
    ] = None,
    workers: Annotated[
        str, typer.Option("--workers", metavar="N|N-M", help="Ray workers: a number, or a range to fill as can be.")
    ] = "2",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of this model's run.")
    ] = False,
    new_version: NewVersionOption = False,
    runs: RunsOption = DEFAULT_RUNS,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="S3_URI",
            help="Keep checkpoints and weights at s3:// too: a resume needs nothing else.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="h100|h200|a100|b200", help="Of a dry run: what it is reckoned for."),
    ] = None,
    mfu: Annotated[
        float, typer.Option("--mfu", help="Of a dry run: the share of the GPU's peak that is reached.")
    ] = 0.4,
    tokens_per_second: Annotated[
        float | None,
        typer.Option("--tokens-per-second", metavar="N", help="Of a dry run: the speed, instead of an MFU."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option("--tokens", metavar="N", help="Of a dry run: of an epoch, instead of a snapshot's.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="A", help=TRAIN_ADDRESS_HELP),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit the job and return its id at once.")] = False,
    registry: RegistryOption = None,
    snapshot: SnapshotOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train NULLs on a snapshot with Ray, and register the model with MLflow."""
    request = TrainRequest(
        model=model_name,
        workers=Workers.parse(workers),
        runs=runs,
        storage=storage,
        resume=resume,
        new_version=new_version,
        dry_run=dry_run,
    )
    output, settings = Output(as_json=as_json), Settings(registry=registry, snapshot=snapshot)
    config = resolve_config(preset, overrides or [], config_file)
    if ray_address:
        jobs.train(output, settings, request, config=config, ray_address=ray_address, detach=detach)
    elif detach:
        raise UsageError("--detach: only a job of a cluster goes on by itself; name one with --ray-address")
    else:
        speed = Speed(gpu=gpu, mfu=mfu, tokens_per_second=tokens_per_second, tokens=tokens)
        _train_here(output, settings, request, config=config, speed=speed)


def _train_here(output: Output, settings: Settings, request: TrainRequest, *, config: Any, speed: Speed) -> None:
    """Trains with this process as the driver, or says what that would take."""
    if request.dry_run:
        data = plan_run(
            config, settings, model_name=request.model, workers=request.workers.most, runs=request.runs, speed=speed
        )
        output.result(data, lambda: dry_run_lines(data))
        return
    snapshot = settings.open_snapshot()
    from training.run.driver import train as run

    with output.progress("train") as update:
        result = run(
            config,
            registry_uri=str(settings.open_registry().root),
            snapshot_ref=snapshot.id,
            model_name=request.model,
            num_workers=request.workers,
            storage=request.runs,
            mirror_uri=request.storage,
            tracking_uri=settings.tracking_uri,
            resume=request.resume,
            new_version=request.new_version,
            on_progress=step_progress(update),
        )
    _record(settings, result)
    data = dataclasses.asdict(result)
    output.result(data, lambda: train_lines(data, settings.tracking_uri))


def _record(settings: Settings, result: TrainResult) -> None:
    """Notes the model version in the catalogue; a registry at s3:// can do without one."""
    from training.serving.flavor import describe

    version = describe(result.model_uri, tracking_uri=settings.tracking_uri)
    catalog = settings.find_catalog(settings.open_registry())
    if catalog is not None:
        catalog.record_model(
            result.model_uri, snapshot_id=result.snapshot, weights=str(version.weights), run_id=result.run_id
        )
