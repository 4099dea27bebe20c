"""`nulls repoint`: make an MLflow database that was moved or copied name its own artifacts."""

from __future__ import annotations

import dataclasses

from orchestration.cli.parameters.options import DryRunOption, JsonOption
from orchestration.output import Output
from orchestration.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepointRequest:
    """The parameters of `nulls repoint`."""

    dry_run: DryRunOption = False
    as_json: JsonOption = False


def run(request: RepointRequest, settings: Settings, output: Output) -> None:
    """Rewrite the artifact paths in an SQLite MLflow store (MLFLOW_TRACKING_URI) that was moved or copied.

    The commands of nulls find artifacts, weights and registry beside a moved database without this. MLflow's own
    commands follow the absolute paths in it, and in a copy use the original's files.
    """
    from training.tracking.repoint import repoint

    counts = repoint(settings.tracking_uri, dry_run=request.dry_run)
    changed = sum(counts.values())
    data = {"tracking_uri": settings.tracking_uri, "changed": counts, "dry_run": request.dry_run}
    verb = "would be changed" if request.dry_run else "changed"
    output.result(data, lambda: [f"{name}: {count} {verb}" for name, count in counts.items() if count] or [_none()])
    output.note(f"{changed} paths {verb}")


def _none() -> str:
    return "nothing to change: no artifact folder of this store lies elsewhere and has a counterpart beside it"
