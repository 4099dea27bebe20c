"""A temporary PostgreSQL server on loopback, for machines with its programs and a driver installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa


def programs() -> Path | None:
    """Return the directory of `initdb` and `postgres`, or None."""
    folders = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


@contextlib.contextmanager
def server() -> Iterator[sa.URL]:
    """Start a server and yield the URL of its first database; skip the test if that is not possible."""
    folder = programs()
    if folder is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("needs PostgreSQL's initdb and postgres, and `pip install psycopg[binary]`")
    user = "nobody" if os.geteuid() == 0 else None  # the server refuses to run as root
    with tempfile.TemporaryDirectory(prefix="nulls-pg-") as name:
        if user:
            shutil.chown(name, user)
        data = f"{name}/data"
        initdb = [folder / "initdb", "-D", data, "-U", "nulls", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        subprocess.run(initdb, user=user, cwd=name, check=True, capture_output=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [folder / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", name, "-F"]
        with open(f"{name}/log", "wb") as log:
            process = subprocess.Popen(command, user=user, cwd=name, stdout=log, stderr=log)
        try:
            url = sa.URL.create("postgresql+psycopg", "nulls", host="127.0.0.1", port=port, database="postgres")
            _wait_for(url)
            yield url
        finally:
            process.send_signal(signal.SIGQUIT)  # immediate shutdown: its data is not needed
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(url: sa.URL) -> None:
    engine = sa.create_engine(url)
    end = time.monotonic() + 60
    while True:
        try:
            engine.connect().close()
            return engine.dispose()
        except sa.exc.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def new_schema(server: sa.URL, name: str) -> str:
    """Create an empty schema, and return a URL that sees only it: a database for each test would take 300 files."""
    engine = sa.create_engine(server)
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {name}"))
    engine.dispose()
    return server.update_query_dict({"options": f"-csearch_path={name}"}).render_as_string(hide_password=False)
