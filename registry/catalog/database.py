"""The catalogue: one SQL database (SQLite by default, PostgreSQL for a team) of snapshots, models and the ledger.

The content of a snapshot is in its own files; the catalogue records when it was committed, which model versions were
trained on it, every unlearn request (`registry.catalog.ledger`) and what is revoked in which weights. Only alembic
migrations create and change its tables.
Opening an up-to-date SQLite catalogue takes about 10 ms beyond importing SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError

from registry.catalog.tables import HEAD_REVISION, models, now, snapshots
from registry.connectivity import check_listening, within
from registry.errors import DamagedError, ServiceError, UsageError
from registry.messages.masking import masked_url, secrets_of_url, without
from registry.storage import Location, file_lock

_BACKENDS = ("sqlite", "postgresql")
_LOCK_WAIT_S = 60
_CONNECT_TIMEOUT_S = 10
_POSTGRESQL_PORT = 5432


def catalog_url(registry_root: Location, configured: str | None = None) -> str | None:
    """Return the catalogue's URL: `configured`, else NULLS_CATALOG, else SQLite in a local registry; else None."""
    if configured or os.environ.get("NULLS_CATALOG"):
        return configured or os.environ["NULLS_CATALOG"]
    return f"sqlite:///{registry_root / 'catalog.db'}" if isinstance(registry_root, Path) else None


class Catalog:
    """An open catalogue.

    Args:
        url: an SQLAlchemy URL, e.g. `sqlite:///catalog.db`, `postgresql+psycopg://user@host/db`.
        must_exist: raise ServiceError instead of creating the file of an SQLite catalogue. Whoever asks what is
            revoked must not be answered by an empty catalogue that the question made.

    Raises:
        UsageError: the URL is not valid or not supported, or its driver is not installed.
        ServiceError: the database cannot be reached or written.
        DamagedError: the file is not a database, or was written by a newer release.
    """

    def __init__(self, url: str, *, must_exist: bool = False) -> None:
        try:
            self.engine = _make_engine(url)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            hidden, shown = secrets_of_url(url), masked_url(url)
            raise UsageError(
                f"catalogue {shown!r}: expected sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE "
                f"({without(str(error), hidden)}); set NULLS_CATALOG"
            ) from None
        # An engine refers to itself, so without this its connections stay open until the next garbage collection: a
        # process that opens a catalogue for each of many requests would use up the server's.
        weakref.finalize(self, self.engine.dispose)
        file = self.engine.url.database if self.engine.dialect.name == "sqlite" else None
        if must_exist and file and file != ":memory:" and not file.startswith("file:") and not Path(file).is_file():
            self.engine.dispose()
            raise ServiceError(f"there is no catalogue at {file}; set NULLS_CATALOG to the one of this registry")
        try:
            with self._translated():
                _check_server(self.engine)
                self._migrate()
        except BaseException:
            self.engine.dispose()
            raise

    @contextlib.contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """Open a write transaction; in SQLite it holds the only write lock, and other writers wait up to 60 s."""
        with self._translated(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a read transaction: it takes no lock, and works on a read-only database."""
        with self._translated(), self.engine.connect().execution_options(nulls_read=True) as connection:
            yield connection

    @contextlib.contextmanager
    def exclusive(self, name: str) -> Iterator[sa.Connection]:
        """Open a write transaction that excludes others of the same name; a crash ends it, and so unlocks."""
        with self.begin() as connection:
            lock(connection, name)
            yield connection

    def record_snapshot(self, snapshot_id: str, *, registry: str, parent: str | None) -> None:
        """Record that a snapshot was committed; a second call changes nothing."""
        row = {"snapshot_id": snapshot_id, "registry": registry, "parent": parent, "created_at": now()}
        self._insert_once(snapshots, row, snapshots.c.snapshot_id == snapshot_id)

    def snapshot_times(self) -> dict[str, str]:
        """Return when each snapshot was first committed, by snapshot id."""
        with self.read() as connection:
            rows = connection.execute(sa.select(snapshots.c.snapshot_id, snapshots.c.created_at))
            return {row.snapshot_id: row.created_at for row in rows}

    def record_model(self, model_uri: str, *, snapshot_id: str, weights: str, run_id: str | None) -> None:
        """Record which snapshot a model version was trained on; a second call changes nothing."""
        row = {
            "model_uri": model_uri,
            "snapshot_id": snapshot_id,
            "weights": weights,
            "run_id": run_id,
            "created_at": now(),
        }
        self._insert_once(models, row, models.c.model_uri == model_uri)

    def _insert_once(self, table: sa.Table, row: dict[str, Any], same: sa.ColumnElement[bool]) -> None:
        with self.exclusive(table.name) as connection:
            if connection.execute(sa.select(table).where(same)).first() is None:
                connection.execute(sa.insert(table).values(**row))

    def _migrate(self) -> None:
        revision = self._revision()
        if revision == HEAD_REVISION:
            return
        if revision is not None and revision > HEAD_REVISION:
            raise DamagedError(
                f"the catalogue has revision {revision}, this release knows {HEAD_REVISION}: upgrade nulls"
            )
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with _migration_lock(self.engine), self.engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _revision(self) -> str | None:
        with self.read() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
            return None if found is None else str(found)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        url = self.engine.url.render_as_string(hide_password=False)
        hidden, shown = secrets_of_url(url), masked_url(url)
        try:
            yield
        except OperationalError as error:
            reason = without(str(error.orig), hidden)
            raise ServiceError(
                f"catalogue {shown}: {reason}; check NULLS_CATALOG, the server and permissions"
            ) from error
        except DatabaseError as error:
            if "not a database" in str(error) or "malformed" in str(error):
                raise DamagedError(
                    f"catalogue {shown}: {without(str(error.orig), hidden)}; restore it from a copy"
                ) from error
            raise


def lock(connection: sa.Connection, name: str) -> None:
    """Hold the lock `name` until this transaction ends, after waiting for it; in SQLite the write lock suffices."""
    if connection.dialect.name == "postgresql":
        lock_key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_key)))


def _check_server(engine: sa.Engine) -> None:
    """Connect once, within a limit that is for all addresses of the host together; drivers have one for each."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        return
    shown, advice = masked_url(str(url)), "check NULLS_CATALOG, the server and the network"
    if url.host and "," not in url.host and not url.host.startswith("/"):
        check_listening(f"{url.host}:{url.port or _POSTGRESQL_PORT}", service="PostgreSQL server", advice=advice)
    try:
        within(_CONNECT_TIMEOUT_S, lambda: engine.connect().close())
    except TimeoutError as error:
        raise ServiceError(f"catalogue {shown}: the server does not answer: {error}; {advice}") from error


def _make_engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() not in _BACKENDS:
        raise ValueError(f"{parsed.get_backend_name()} is not supported")
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": _CONNECT_TIMEOUT_S})
    engine = sa.create_engine(parsed, connect_args={"timeout": _LOCK_WAIT_S})

    # pysqlite opens transactions late and lets readers upgrade to writers, which deadlocks; BEGIN IMMEDIATE queues.
    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("nulls_read"):
            connection.exec_driver_sql("BEGIN")
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@contextlib.contextmanager
def _migration_lock(engine: sa.Engine) -> Iterator[None]:
    """Keep two processes from creating the tables at the same time."""
    path = engine.url.database
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(0x6E756C6C73)))
            yield
    elif path and path != ":memory:":
        with file_lock(Path(f"{path}.lock")):
            yield
    else:
        yield
