"""The parameters of `nulls train`, its configuration, and the lines that report it.

All are the same for a training by this process and for one by a job of a Ray cluster.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.cli.parameters.options import (
    DEFAULT_RUNS,
    MODEL_PANEL,
    DryRunOption,
    JsonOption,
    ModelNameOption,
    NewVersionOption,
    RegistryOption,
    RunsOption,
    SnapshotOption,
)
from orchestration.output import ProgressUpdate
from registry.errors import UsageError
from registry.messages.masking import masked_url
from training.run.worker_range import Workers

_TWO = Workers(least=2, most=2)
_SLOW_LOADER = 0.05  # share of a step spent waiting for data, above which progress shows it
_CONFIGURATION, _RAY, _ESTIMATE = "Configuration", "Ray", "Estimate (--dry-run)"
_ADDRESS_HELP = (
    "Train as a job of this Ray cluster, not here: http://HOST:8265, HOST:6379 or auto. The code goes along, and "
    "MLFLOW_*, AWS_* and NULLS_CATALOG; the nodes need what nulls[train] depends on. Relative paths (--registry, "
    "--runs, sqlite:///) are relative to this directory if the cluster's head is this machine; for another cluster, "
    "name absolute paths on a disk that its nodes share, or servers and s3://."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """The parameters of `nulls train`."""

    model: ModelNameOption
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            metavar="P",
            help="demo (unless given), small, paper-1b, paper-1b-aligned, or a YAML file.",
            rich_help_panel=_CONFIGURATION,
        ),
    ] = None
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="YAML of fields, over the `preset:` that it names, if any.",
            rich_help_panel=_CONFIGURATION,
        ),
    ] = None
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change one field, e.g. epochs=3, model.num_pool=4096.",
            rich_help_panel=_CONFIGURATION,
        ),
    ] = None
    workers: Annotated[
        Workers,
        typer.Option(
            "--workers",
            metavar="N|N-M",
            help="Ray workers: a number, or a range to fill as far as the cluster allows.",
            rich_help_panel=_RAY,
            parser=Workers.parse,
        ),
    ] = _TWO
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the last checkpoint of this model's newest run.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = False
    new_version: NewVersionOption = False
    allow_unlearned: Annotated[
        bool,
        typer.Option(
            "--allow-unlearned",
            help="Train on sources, too, that were unlearned in a model of this name.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = False
    runs: RunsOption = DEFAULT_RUNS
    remote_uri: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="S3_URI",
            help="Keep checkpoints and weights at s3:// too: a resume needs nothing else.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="h100|h200|a100|b200",
            help="The GPU to estimate for; an H100, or CPUs where --tokens-per-second is given.",
            rich_help_panel=_ESTIMATE,
        ),
    ] = None
    mfu: Annotated[
        float,
        typer.Option("--mfu", help="The share of the GPU's peak that is reached.", rich_help_panel=_ESTIMATE),
    ] = 0.4
    tokens_per_second: Annotated[
        float | None,
        typer.Option(
            "--tokens-per-second",
            metavar="N",
            help="The speed of all workers together, instead of an MFU.",
            rich_help_panel=_ESTIMATE,
        ),
    ] = None
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", metavar="N", help="Tokens of an epoch, instead of a snapshot's.", rich_help_panel=_ESTIMATE
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="A", help=_ADDRESS_HELP, rich_help_panel=_RAY),
    ] = None
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit the job and return its id at once.", rich_help_panel=_RAY)
    ] = False
    registry: RegistryOption = None
    snapshot: SnapshotOption = None
    dry_run: DryRunOption = False
    as_json: JsonOption = False


def train_lines(result: dict[str, Any], tracking_uri: str | None = None) -> list[str]:
    """Format the result of a training for a terminal."""
    speed = f"{result['tokens']:,} tokens at {result['tokens_per_second']:,.0f} tokens/s"
    return [
        f"model     {result['model_uri']}",
        f"snapshot  {result['snapshot'][:16]}",
        f"run       {result['run_id']}" + (f" in {masked_url(tracking_uri)}" if tracking_uri else ""),
        f"trained   {speed}, loss {result['loss']:.3f}",
    ]


def resolve_config(preset: str | None, overrides: list[str], config_file: Path | None = None) -> Any:
    """Return the configuration that `--preset` or `--config` gives, with each `--set FIELD=VALUE` applied.

    Args:
        preset: a name, or a YAML file; None: `demo`, unless `config_file` is given.
        overrides: as on the command line; values are YAML.
        config_file: YAML of fields, over the preset that it names, if any.

    Raises:
        UsageError: no such preset, file or field, a value out of range, or both a preset and a file.
    """
    if preset and config_file:
        raise UsageError(
            f"--preset {preset} together with --config {config_file}: write `preset: {preset}` into the file"
        )
    import yaml

    from training.config import TrainConfig

    fields: dict[str, Any] = {}
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals:
            raise UsageError(f"--set {override}: expected FIELD=VALUE, e.g. --set epochs=3")
        inner = fields
        *outer, last = name.split(".")
        for part in outer:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageError(f"--set {override}: {part} was set to {inner!r} before, which has no fields")
        try:
            inner[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {override}: {value!r} is not a YAML value: {error}") from error
    if config_file or (preset and preset.endswith((".yaml", ".yml"))):
        return TrainConfig.from_yaml(config_file or str(preset), **fields)
    return TrainConfig.preset(preset or "demo", **fields)


def step_progress(update: ProgressUpdate) -> Any:
    """Turn a trainer's progress (`training.tracking.runs.PROGRESS_FIELDS`) into a message and a share done."""
    closure: float | None = None  # the last one measured

    def on_progress(event: dict[str, Any]) -> None:
        step, total = event.get("step", 0), event.get("total_steps", 0)
        if not total:
            update(str(event.get("phase", "starting Ray")), None)
            return
        nonlocal closure
        closure = event.get("watch_closure_backbone", closure)
        parts = [f"{step}/{total}", f"loss {event['loss']:.3f}", f"{event.get('tokens_per_second', 0.0):,.0f} tokens/s"]
        parts += [f"MFU {event['mfu']:.0%}"] if "mfu" in event else []
        parts += [f"loader {event['loader_share']:.0%}"] if event.get("loader_share", 0.0) >= _SLOW_LOADER else []
        parts += [f"closure {closure:.2f}"] if closure is not None else []
        update(f"steps ({', '.join(parts)})", step / total)

    return on_progress
