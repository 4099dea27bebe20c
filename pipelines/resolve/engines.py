"""Choose the engine of the keyed stage. The choice does not shape a snapshot: all engines write the same one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipelines.dedup.minhash import DedupConfig
from pipelines.resolve.beam import engine as beam_engine
from pipelines.resolve.duckdb import engine as duckdb_engine
from pipelines.resolve.resolution import Resolution
from registry.errors import UsageError

ENGINES = ("duckdb", "beam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine and where it runs; constructing one checks that it could start.

    Attributes:
        name: "duckdb" (this machine, out of core) or "beam".
        runner: Beam's runner, one of `pipelines.resolve.beam.engine.RUNNERS`.
        runner_options: Beam's options, as on a command line; passed on unchanged.

    Raises:
        UsageError: there is no such engine or runner, an option is missing, or Beam is not installed.
    """

    name: str = "duckdb"
    runner: str = "local"
    runner_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise UsageError(f"--engine: got {self.name!r}, expected {' or '.join(ENGINES)}")
        if self.name == "beam":
            beam_engine.check_runner(self.runner, self.runner_options)
        elif self.runner != "local" or self.runner_options:
            raise UsageError(f"--runner {self.runner}: the engine is {self.name}, which has none; add --engine beam")


def resolve(engine: Engine, folders: Sequence[Path], config: DedupConfig, *, work: Path, workers: int) -> Resolution:
    """Resolve the staged directories `folders` with `engine`; close what is returned.

    The `resolve` of each engine's module describes arguments and errors.
    """
    if engine.name == "duckdb":
        return duckdb_engine.resolve(folders, config, work=work, threads=workers)
    return beam_engine.resolve(
        folders,
        config,
        work=work,
        runner=engine.runner,
        runner_options=engine.runner_options,
        workers=workers,
    )
