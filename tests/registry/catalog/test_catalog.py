"""The catalogue and its ledger: the same behaviour on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from registry.catalog import database as catalog_module
from registry.catalog import ledger as ledger_module
from registry.catalog import tables
from registry.catalog.chain import evidence_digest
from registry.catalog.database import Catalog, catalog_url
from registry.catalog.ledger import Ledger, State
from registry.catalog.tables import HEAD_REVISION, metadata
from registry.errors import DamagedError, NotFoundError, ServiceError, UsageError
from tests.registry import postgres

ROOT = Path(__file__).parents[2]
REQUEST: dict[str, Any] = {
    "requested_by": "Ada Lovelace <ada@example.org>",
    "reason": "a letter of 3 May, “bitte löschen” 請刪除",
    "action": "revoke",
    "policy": "all-owners",
    "model_name": "demo",
    "model_before": "models:/demo/1",
    "sources": ["wiki:enwiki:13", "wiki:enwiki:12"],
}
TABLES = ("events", "requests")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def pg_server() -> Iterator[sa.URL]:
    with postgres.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    return postgres.new_schema(request.getfixturevalue("pg_server"), f"test{next(_numbers)}")


@pytest.fixture
def open_catalog() -> Iterator[Callable[[str], Catalog]]:
    """A function that opens catalogues; their connections are closed after the test."""
    with contextlib.ExitStack() as stack:

        def open_(url: str) -> Catalog:
            opened = Catalog(url)
            stack.callback(opened.engine.dispose)
            return opened

        yield open_


@pytest.fixture
def catalog(url: str, open_catalog: Callable[[str], Catalog]) -> Catalog:
    return open_catalog(url)


@pytest.fixture
def ledger(catalog: Catalog) -> Ledger:
    return Ledger(catalog)


def filled(ledger: Ledger) -> list[str]:
    """Record two requests with interleaved events, and return their ids."""
    first, second = (ledger.open_request(**REQUEST | {"sources": [key]}) for key in ("wiki:enwiki:12", "web:a.example"))
    for state in (State.PLANNED, State.APPLIED):
        for request_id in (first, second):
            ledger.append(request_id, state, detail={"step": state.value})
    return [first, second]


# the schema


def test_migrations_create_the_tables_that_the_code_declares(catalog: Catalog) -> None:
    with catalog.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        extra = sa.MetaData()
        sa.Table("more", extra, sa.Column("x", sa.Integer))
        assert compare_metadata(MigrationContext.configure(connection), extra)  # the comparison does find differences
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == HEAD_REVISION


def test_head_revision_is_that_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(catalog_module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD_REVISION]


def test_opening_again_changes_nothing(url: str, catalog: Catalog, open_catalog: Callable[[str], Catalog]) -> None:
    catalog.record_snapshot("ab" * 32, registry="/r", parent=None)
    assert open_catalog(url).snapshot_times() == catalog.snapshot_times()


def test_a_failed_migration_leaves_no_tables_and_can_be_run_again(
    url: str, open_catalog: Callable[[str], Catalog]
) -> None:
    def crash(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("CREATE TRIGGER"):
            raise KeyboardInterrupt

    sa.event.listen(sa.Engine, "before_cursor_execute", crash)
    try:
        with pytest.raises(KeyboardInterrupt):
            Catalog(url)
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", crash)
    plain = sa.create_engine(url)
    assert set(sa.inspect(plain).get_table_names()) <= {"alembic_version"}
    plain.dispose()
    assert Ledger(open_catalog(url)).verify() == 0


def test_a_catalogue_of_a_newer_release_is_refused(url: str, catalog: Catalog) -> None:
    with catalog.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DamagedError, match="revision 9999, this release knows"):
        Catalog(url)


# snapshots and models


def test_recording_twice_changes_nothing(catalog: Catalog) -> None:
    catalog.record_snapshot("ab" * 32, registry="/r", parent=None)
    before = catalog.snapshot_times()
    catalog.record_snapshot("ab" * 32, registry="/elsewhere", parent="cd" * 32)
    assert catalog.snapshot_times() == before
    assert list(before) == ["ab" * 32]
    for weights in ("first", "second"):
        catalog.record_model("models:/m/1", snapshot_id="ab" * 32, weights=weights, run_id=None)
    with catalog.read() as connection:
        assert connection.scalars(sa.select(tables.models.c.weights)).all() == ["first"]


# the ledger


def test_a_request_from_its_opening_to_its_last_state(ledger: Ledger) -> None:
    request_id = ledger.open_request(**REQUEST)
    request = ledger.request(request_id)
    assert (request.state, request.model_after, request.evidence_digest) == (State.REQUESTED, None, None)
    assert request.sources == ("wiki:enwiki:12", "wiki:enwiki:13")
    assert (request.reason, request.requested_by) == (REQUEST["reason"], REQUEST["requested_by"])
    ledger.append(request_id, State.PLANNED, detail={"plan": [1, 2], "cost": 0.1})
    ledger.append(request_id, State.APPLIED, model_after="models:/demo/2", detail={"cost": 0.2})
    evidence = {"p_value": 0.25, "losses": [3.5, 3.25], "name": "é"}
    digest = ledger.append(request_id, State.VERIFIED, evidence=evidence)
    request = ledger.request(request_id)
    assert (request.state, request.model_after) == (State.VERIFIED, "models:/demo/2")
    assert request.evidence_digest == digest == evidence_digest(evidence)
    assert request.detail == {"plan": [1, 2], "cost": 0.2, "evidence": evidence}
    assert [event["state"] for event in ledger.history(request_id)] == ["requested", "planned", "applied", "verified"]
    assert request.to_dict()["state"] == "verified"
    assert ledger.verify() == 4


def test_requests_are_listed_in_order_with_their_own_events(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "now", lambda: "2026-01-01T00:00:00.000Z")  # all at the same time
    opened = [ledger.open_request(**REQUEST | {"sources": [f"wiki:enwiki:{i}"]}) for i in range(20)]
    ledger.append(opened[3], State.REFUSED)
    assert [request.request_id for request in ledger.requests()] == opened
    states = [request.state for request in ledger.requests()]
    assert states == [State.REFUSED if i == 3 else State.REQUESTED for i in range(20)]


def test_terminal_states() -> None:
    assert {s for s in State if s.is_terminal} == {State.VERIFIED, State.FAILED, State.REFUSED}


def test_an_unknown_request_is_not_found(ledger: Ledger) -> None:
    filled(ledger)
    with pytest.raises(NotFoundError, match="nulls ledger"):
        ledger.request("0" * 16)
    with pytest.raises(NotFoundError):
        ledger.append("0" * 16, State.APPLIED)
    assert ledger.history("0" * 16) == []
    assert ledger.verify() == 6


@pytest.mark.parametrize(
    "detail",
    [
        {10: "a", 9: "b"},
        {1: 1, "a": 2},
        {"t": (1, 2)},
        {"x": 1e-320, "y": 0.1 + 0.2, "z": 2**60},
        {"u": "é \U0001f600 \0"},
        {"n": None},
    ],
)
def test_digests_verify_whatever_json_the_detail_holds(ledger: Ledger, detail: dict[Any, Any]) -> None:
    (first, _) = filled(ledger)
    ledger.append(first, State.APPLIED, detail=detail, evidence=detail)
    assert ledger.verify() == 7


@pytest.mark.parametrize("bad", [{"p": float("nan")}, {"p": float("inf")}, {"p": object()}, {"p": "\ud800"}])
def test_detail_that_is_not_json_is_refused_and_nothing_is_written(ledger: Ledger, bad: dict[Any, Any]) -> None:
    (first, _) = filled(ledger)
    with pytest.raises(UsageError, match="must be JSON"):
        ledger.append(first, State.VERIFIED, evidence=bad)
    with pytest.raises(UsageError, match="must be JSON"):
        ledger.append(first, State.APPLIED, detail=bad)
    assert ledger.verify() == 6


@pytest.mark.parametrize("bad", [{"reason": "a\0b"}, {"requested_by": "caf\udce9"}, {"sources": ["\ud800"]}])
def test_text_that_a_database_cannot_store_is_refused(ledger: Ledger, bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(bad))):
        ledger.open_request(**REQUEST | bad)
    assert ledger.requests() == []


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("verb", ["UPDATE", "DELETE", "TRUNCATE"])
def test_the_database_refuses_to_change_or_delete_rows(ledger: Ledger, table: str, verb: str) -> None:
    filled(ledger)
    engine = ledger.catalog.engine
    if verb == "TRUNCATE" and engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    before = ledger.requests()
    statement = {
        "UPDATE": f"UPDATE {table} SET request_id = request_id",
        "DELETE": f"DELETE FROM {table}",
        "TRUNCATE": f"TRUNCATE {table} CASCADE",
    }[verb]
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(sa.text(statement))
    assert ledger.requests() == before
    assert len(before) == 2


def tamper(ledger: Ledger, *statements: str) -> None:
    """Run statements as an owner of the database can: after dropping the triggers."""
    with ledger.catalog.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            for table in TABLES:
                connection.execute(sa.text(f"DROP TRIGGER {table}_append_only ON {table}"))
        else:
            for name in connection.scalars(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
                connection.execute(sa.text(f"DROP TRIGGER {name}"))
        for statement in statements:
            assert connection.execute(sa.text(statement)).rowcount > 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET state = 'failed' WHERE event_id = 3",
        "UPDATE events SET at = '2020-01-01T00:00:00.000Z' WHERE event_id = 1",
        "UPDATE events SET detail = '{}' WHERE event_id = 4",
        "UPDATE events SET model_after = 'models:/demo/9' WHERE event_id = 6",
        "UPDATE events SET digest = 'x' || substr(digest, 2) WHERE event_id = 6",
        "UPDATE events SET request_id = (SELECT request_id FROM events WHERE event_id = 2) WHERE event_id = 3",
        "DELETE FROM events WHERE event_id = 3",
        "DELETE FROM events WHERE event_id = 1",
        "UPDATE requests SET reason = 'another'",
        "UPDATE requests SET sources = '[]'",
        "INSERT INTO requests SELECT 'forged', created_at, requested_by, reason, action, policy, model_name, "
        "model_before, sources FROM requests WHERE request_id = (SELECT request_id FROM events WHERE event_id = 1)",
    ],
)
def test_verify_finds_a_row_altered_without_the_triggers(ledger: Ledger, statement: str) -> None:
    filled(ledger)
    assert ledger.verify() == 6
    tamper(ledger, statement)
    with pytest.raises(DamagedError, match="altered") as caught:
        ledger.verify()
    assert caught.value.exit_code == 3


def test_a_request_without_its_events_is_damage(ledger: Ledger) -> None:
    filled(ledger)
    tamper(ledger, "DELETE FROM events")
    for read in (ledger.requests, ledger.verify):
        with pytest.raises(DamagedError, match="altered"):
            read()


WRITER = """
import sys
from registry.catalog.database import Catalog
from registry.catalog.ledger import Ledger, State
url, name = sys.argv[1:]
catalog = Catalog(url)
for i in range(6):
    ledger = Ledger(catalog)
    catalog.record_snapshot(f"{i}" * 64, registry="/r", parent=None)
    request = ledger.open_request(requested_by=name, reason=str(i), action="revoke", policy="all-owners",
                                  model_name="m", model_before="models:/m/1", sources=[f"web:{name}{i}.example"])
    for state in (State.PLANNED, State.APPLIED):
        ledger.append(request, state)
"""


def test_four_processes_at_once_lose_nothing(url: str, open_catalog: Callable[[str], Catalog]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    names = [f"writer{i}" for i in range(4)]  # all of them also create the tables at the same time
    commands = [[sys.executable, "-c", WRITER, url, name] for name in names]
    writers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for command in commands]
    errors = [writer.communicate()[1].decode() for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, errors
    catalog = open_catalog(url)
    requests = Ledger(catalog).requests()
    assert sorted((r.requested_by, r.reason) for r in requests) == sorted((n, str(i)) for n in names for i in range(6))
    assert {request.state for request in requests} == {State.APPLIED}
    assert Ledger(catalog).verify() == 4 * 6 * 3
    assert len(catalog.snapshot_times()) == 6


def test_a_failed_transaction_writes_nothing(catalog: Catalog) -> None:
    with pytest.raises(RuntimeError), catalog.exclusive("x") as connection:  # noqa: PT012
        row = {"snapshot_id": "ab", "registry": "", "parent": None, "created_at": ""}
        connection.execute(sa.insert(tables.snapshots).values(**row))
        raise RuntimeError
    assert catalog.snapshot_times() == {}


# catalogues that cannot be opened


def test_a_read_only_database_can_be_read(tmp_path: Path, open_catalog: Callable[[str], Catalog]) -> None:
    (first, _) = filled(Ledger(open_catalog(f"sqlite:///{tmp_path / 'c.db'}")))
    ledger = Ledger(open_catalog(f"sqlite:///file:{tmp_path / 'c.db'}?mode=ro&uri=true"))
    assert ledger.verify() == 6
    assert ledger.request(first).state is State.APPLIED
    with pytest.raises(ServiceError, match="readonly"):
        ledger.append(first, State.VERIFIED)


@pytest.mark.parametrize("content", [b"not a database at all" * 99, b"SQLite format 3\0" + b"\xff" * 4080])
def test_a_file_that_is_not_a_database_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.db").write_bytes(content)
    with pytest.raises(DamagedError, match="restore it from a copy"):
        Catalog(f"sqlite:///{tmp_path / 'c.db'}")


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "c.db", tmp_path / "file" / "c.db", Path("/proc/nulls.db"), tmp_path):
        with pytest.raises(ServiceError):
            Catalog(f"sqlite:///{path}")


@pytest.mark.parametrize(
    "text", ["", "nonsense", "nosuch://h/d", "mysql://u:secret@h/d", "sqlite+nosuch:///x", "http://h:x/"]
)
def test_the_message_for_an_invalid_url_says_what_was_expected(text: str) -> None:
    with pytest.raises(UsageError, match="expected sqlite:///FILE or postgresql") as caught:
        Catalog(text)
    assert "secret" not in str(caught.value)


def test_an_unreachable_server_is_reported_quickly_and_without_the_password() -> None:
    pytest.importorskip("psycopg")
    start = time.monotonic()
    with pytest.raises(ServiceError, match="check NULLS_CATALOG") as caught:
        Catalog("postgresql+psycopg://u:secret@127.0.0.1:1/d")
    assert time.monotonic() - start < 30
    assert "secret" not in str(caught.value)


def test_catalog_url_prefers_the_argument_then_the_environment_then_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NULLS_CATALOG", raising=False)
    assert catalog_url(tmp_path) == f"sqlite:///{tmp_path}/catalog.db"
    monkeypatch.setenv("NULLS_CATALOG", "postgresql://h/d")
    assert catalog_url(tmp_path) == "postgresql://h/d"
    assert catalog_url(tmp_path, "sqlite:///x.db") == "sqlite:///x.db"
