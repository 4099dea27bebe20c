"""Paths inside SQL."""

from __future__ import annotations

from pathlib import Path


def literal(path: Path) -> str:
    """A path as a SQL string that DuckDB does not take for a pattern."""
    text = "".join(f"[{char}]" if char in "*?[" else char for char in str(path))
    return "'" + text.replace("'", "''") + "'"
