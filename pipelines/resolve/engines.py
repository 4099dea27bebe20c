"""Which engine does the keyed stage. None of this shapes a snapshot: all engines write the same one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipelines.dedup.minhash import DedupConfig
from pipelines.resolve.beam import engine as resolve_beam
from pipelines.resolve.duckdb import engine as resolve_duckdb
from registry.errors import UsageError

ENGINES = ("duckdb", "beam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine and where it runs; making one finds out whether it could begin.

    Attributes:
        name: "duckdb" (this machine, out of core) or "beam".
        runner: of Beam (`pipelines.resolve.beam.engine.RUNNERS`).
        runner_options: Beam's, as on a command line, handed on as they are.
    """

    name: str = "duckdb"
    runner: str = "local"
    runner_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise UsageError(f"--engine: got {self.name!r}, expected {' or '.join(ENGINES)}")
        if self.name == "beam":
            resolve_beam.check_runner(self.runner, self.runner_options)
        elif self.runner != "local" or self.runner_options:
            raise UsageError(f"--runner {self.runner}: the engine is {self.name}, which has none; add --engine beam")


def resolve(
    engine: Engine, folders: Sequence[Path], config: DedupConfig, *, work: Path, workers: int
) -> resolve_duckdb.DuckResolution:
    """Resolves `folders` with `engine`; see there, also for errors. Close what is returned."""
    if engine.name == "duckdb":
        return resolve_duckdb.resolve(folders, config, work=work, threads=workers)
    return resolve_beam.resolve(
        folders,
        config,
        work=work,
        runner=engine.runner,
        runner_options=engine.runner_options,
        workers=workers,
    )
