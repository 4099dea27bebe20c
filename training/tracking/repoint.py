"""Rewrite the artifact URIs of an SQLite tracking store that was moved or copied, for MLflow's own commands.

MLflow writes absolute URIs into its database. `nulls` finds what lies beside the database without this; MLflow's own
`models serve`, `artifacts download` and user interface do not, and in a copy they use the original's files.

Run: ``repoint("sqlite:////new/place/mlflow.db", dry_run=True)``. Cost: one transaction over five columns.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from registry.errors import NotFoundError, ServiceError, UsageError
from training.serving import places

_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def repoint(tracking_uri: str, *, dry_run: bool = False) -> dict[str, int]:
    """Make the artifact URIs of a store name the folders beside its database.

    Only folders for artifacts that have a counterpart beside the database are replaced.

    Args:
        tracking_uri: an SQLite store.
        dry_run: count, and change nothing.

    Returns:
        `TABLE.COLUMN` -> the number of URIs that changed, or would.

    Raises:
        UsageError: the store is not SQLite.
        NotFoundError: there is no such file.
        ServiceError: it cannot be written.
    """
    base = places.folder_of(tracking_uri)
    if base is None:
        raise UsageError(f"{tracking_uri.partition('://')[0]}:// is a server; only an SQLite store can be re-pointed")
    file = Path(tracking_uri.removeprefix(places.SQLITE).partition("?")[0])
    if not file.is_file():
        raise NotFoundError(f"there is no MLflow database at {file}; set MLFLOW_TRACKING_URI to the one that was moved")
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            counts = _rewrite(connection, base)
            connection.execute("ROLLBACK" if dry_run else "COMMIT")
            return counts
    except sqlite3.Error as error:
        raise ServiceError(f"MLflow database {file}: {error}; check the file and its permissions") from error


def _rewrite(connection: sqlite3.Connection, base: Path) -> dict[str, int]:
    roots = [root for (root,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments") if root]
    moved = {root: own for root in roots if (own := _counterpart(root, base)) is not None}
    counts = {}
    for table, column in _COLUMNS:
        rows = connection.execute(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL").fetchall()
        changes = [(new, rowid) for rowid, uri in rows if (new := _moved(uri, moved)) != uri]
        connection.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", changes)
        counts[f"{table}.{column}"] = len(changes)
    return counts


def _counterpart(root: str, base: Path) -> str | None:
    """Return the URI of the folder beside the database that stands for an artifact root elsewhere; None without one."""
    path = places.local_path(root)
    if path is None or path.is_relative_to(base):
        return None
    own = places.own_root(path, base)
    if not own.is_dir():
        return None
    return own.as_uri() if root.startswith("file:") else str(own)


def _moved(uri: str, moved: dict[str, str]) -> str:
    for before, after in moved.items():
        if uri == before or uri.startswith(f"{before}/"):
            return after + uri[len(before) :]
    return uri
