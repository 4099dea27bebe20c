"""What a training is asked for with, and what is said of it: the same for a run here and for a job of a cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from orchestration.output import ProgressUpdate
from registry.errors import UsageError
from training.run.worker_range import Workers

_SLOW_LOADER = 0.05  # share of a step spent waiting for data, from which on it is worth a word


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """The options of `nulls train` that say neither what is trained nor where.

    Attributes:
        model: the name to register under.
        workers: how many, a number or a range.
        runs: the folder of runs.
        storage: an s3:// prefix where checkpoints are kept too.
        resume: whether to go on with the model's newest run.
        new_version: whether the name may exist.
        dry_run: whether only to say what would be done.
    """

    model: str
    workers: Workers
    runs: Path
    storage: str | None
    resume: bool
    new_version: bool
    dry_run: bool


def train_lines(result: dict[str, Any], tracking_uri: str | None = None) -> list[str]:
    """A training for a person."""
    speed = f"{result['tokens']:,} tokens at {result['tokens_per_second']:,.0f} tokens/s"
    return [
        f"model     {result['model_uri']}",
        f"snapshot  {result['snapshot'][:16]}",
        f"run       {result['run_id']}" + (f" in {tracking_uri}" if tracking_uri else ""),
        f"trained   {speed}, loss {result['loss']:.3f}",
    ]


def resolve_config(preset: str | None, overrides: list[str], config_file: Path | None = None) -> Any:
    """The configuration that `--preset` or `--config`, and then each `--set FIELD=VALUE`, give.

    Args:
        preset: a name, or a YAML file; None: `demo`, unless a file is given.
        overrides: as on the command line; values are YAML.
        config_file: YAML of fields, over the preset that it names, if any.

    Raises:
        UsageError: no such preset, file or field, a value out of range, or a preset beside a file.
    """
    if preset and config_file:
        raise UsageError(f"--preset {preset} beside --config {config_file}: write `preset: {preset}` into the file")
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
            raise UsageError(f"--set {override}: {value!r} is no YAML value: {error}") from error
    if config_file or (preset and preset.endswith((".yaml", ".yml"))):
        return TrainConfig.from_yaml(config_file or str(preset), **fields)
    return TrainConfig.preset(preset or "demo", **fields)


def step_progress(update: ProgressUpdate) -> Any:
    """A trainer's progress dicts (`training.tracking.runs.PROGRESS_FIELDS`) as words and a share."""
    closure: float | None = None  # as last measured

    def on_progress(event: dict[str, Any]) -> None:
        step, total = event.get("step", 0), event.get("total_steps", 0)
        if not total:
            update(str(event.get("phase", "starting Ray")), None)
            return
        nonlocal closure
        closure = event.get("watch_closure_backbone", closure)
        words = [f"{step}/{total}", f"loss {event['loss']:.3f}", f"{event.get('tokens_per_second', 0.0):,.0f} tokens/s"]
        words += [f"MFU {event['mfu']:.0%}"] if "mfu" in event else []
        words += [f"loader {event['loader_share']:.0%}"] if event.get("loader_share", 0.0) >= _SLOW_LOADER else []
        words += [f"closure {closure:.2f}"] if closure is not None else []
        update(f"steps ({', '.join(words)})", step / total)

    return on_progress
