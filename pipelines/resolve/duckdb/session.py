"""DuckDB as this project uses it: in memory up to a limit, then in a directory; full disks become ServiceErrors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import duckdb

from registry.errors import ServiceError

DEFAULT_MEMORY_BYTES = 400 << 20


def connect(work: Path, *, memory_bytes: int = DEFAULT_MEMORY_BYTES, threads: int = 1) -> duckdb.DuckDBPyConnection:
    """Open an empty database of at most `memory_bytes`, which spills to `work` and does not outlive the process."""
    settings = {"memory_limit": f"{memory_bytes}B", "threads": threads, "temp_directory": str(work / "spill")}
    return duckdb.connect(config=settings)


def literal(path: Path) -> str:
    """Return a path as a SQL string that DuckDB does not treat as a pattern."""
    text = "".join(f"[{char}]" if char in "*?[" else char for char in str(path))
    return "'" + text.replace("'", "''") + "'"


def scan(paths: list[Path]) -> str:
    """Return a table function that reads these Parquet files; there must be at least one."""
    return f"read_parquet([{', '.join(map(literal, paths))}], hive_partitioning = false)"


@contextlib.contextmanager
def service_errors(work: Path) -> Iterator[None]:
    """Turn a full disk or too little memory into a ServiceError; other errors are bugs, and pass unchanged."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        is_memory = isinstance(error, duckdb.OutOfMemoryException)
        advice = "give it more memory or fewer --workers" if is_memory else "free some space"
        message = str(error).strip().partition("\n")[0]
        raise ServiceError(
            f"cannot resolve documents in {work}: {message}; {advice}, run the same command again"
        ) from error
