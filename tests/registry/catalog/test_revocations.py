"""Revocations by weights: what is read, what an alteration looks like, and what earlier releases left."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from hypothesis import given
from hypothesis import strategies as st

from registry import ids
from registry.catalog import database, revocations
from registry.catalog.database import Catalog
from registry.catalog.ledger import Ledger, State
from registry.catalog.revocations import Change
from registry.errors import DamagedError, ServiceError

WEIGHTS, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    catalog = Catalog(f"sqlite:///{tmp_path / 'catalog.db'}")
    yield Ledger(catalog)
    catalog.engine.dispose()


def enter(ledger: Ledger, change: Change, *, model_name: str = "m", action: str = "revoke") -> str:
    """Record a whole request with this change; each has sources of its own."""
    number = len(ledger.requests()) + 2
    request_id = ledger.open_request(
        requested_by="a",
        reason="x",
        action=action,
        policy="all-owners",
        model_name=model_name,
        model_before=f"models:/{model_name}/1",
        sources=[f"web:{number}.example"],
    )
    ledger.append(request_id, State.PLANNED)
    ledger.append(request_id, State.APPLIED, model_after=f"models:/{model_name}/{number}", change=change)
    return request_id


def known(ledger: Ledger, *scopes: str) -> revocations.Known:
    with ledger.catalog.read() as connection:
        return revocations.read(connection, scopes)


def test_revocations_belong_to_weights_and_to_what_was_made_of_them(ledger: Ledger) -> None:
    enter(ledger, Change(weights_id=WEIGHTS, tensors="1", revoked=[1, 2]))
    enter(ledger, Change(weights_id=WEIGHTS, tensors="1", revoked=[3]))
    assert known(ledger, WEIGHTS).revoked == {1: "models:/m/2", 2: "models:/m/2", 3: "models:/m/3"}
    assert known(ledger, OTHER).revoked == {}
    assert known(ledger, OTHER, WEIGHTS).revoked.keys() == {1, 2, 3}


def test_a_reinstated_source_is_revoked_again_by_a_later_request(ledger: Ledger) -> None:
    enter(ledger, Change(weights_id=WEIGHTS, tensors="1", revoked=[1, 2]))
    enter(ledger, Change(weights_id=WEIGHTS, tensors="1", reinstated=[1]), action="reinstate")
    found = known(ledger, WEIGHTS)
    assert (found.revoked.keys(), found.reinstated) == ({2}, {1})
    # The word of the weights themselves outranks that of those that they were made of.
    enter(ledger, Change(weights_id=OTHER, tensors="2", revoked=[1]))
    assert known(ledger, OTHER, WEIGHTS).revoked.keys() == {1, 2}
    assert known(ledger, WEIGHTS, OTHER).revoked.keys() == {2}
    enter(ledger, Change(weights_id=WEIGHTS, tensors="1", revoked=[1]))
    assert known(ledger, WEIGHTS).reinstated == frozenset()
    ledger.verify()


def test_what_was_taken_out_of_a_model_name_is_found_whatever_its_weights(ledger: Ledger) -> None:
    enter(ledger, Change(weights_id=WEIGHTS, tensors="1", revoked=[1]))
    enter(ledger, Change(weights_id=OTHER, tensors="2", revoked=[2]))
    enter(ledger, Change(weights_id=OTHER, tensors="2", revoked=[3]), model_name="another")
    with ledger.catalog.read() as connection:
        assert revocations.taken_out_of(connection, "m") == {1: "models:/m/2", 2: "models:/m/3"}


def test_the_same_tensors_under_another_configuration_are_noticed(ledger: Ledger) -> None:
    enter(ledger, Change(weights_id=WEIGHTS, tensors="1", revoked=[1]))
    with ledger.catalog.read() as connection:
        assert revocations.other_configurations(connection, OTHER, "1") == [WEIGHTS]
        assert revocations.other_configurations(connection, WEIGHTS, "1") == []
        assert revocations.other_configurations(connection, OTHER, "2") == []


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM revocations WHERE source_id = 2",
        "DELETE FROM revocations",
        "UPDATE revocations SET state = 'reinstated' WHERE source_id = 1",
        "UPDATE revocations SET weights_id = 'cc' WHERE source_id = 1",
        f"INSERT INTO revocations VALUES ('{WEIGHTS}', 9, 'revoked', 3)",
    ],
)
def test_an_altered_row_is_damage_to_whoever_reads_it(ledger: Ledger, statement: str) -> None:
    enter(ledger, Change(weights_id=WEIGHTS, tensors="1", revoked=[1, 2]))
    with ledger.catalog.engine.begin() as connection:
        assert connection.execute(sa.text(statement)).rowcount > 0
    with pytest.raises(DamagedError):
        known(ledger, WEIGHTS)
    with pytest.raises(DamagedError):
        ledger.verify()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET detail = replace(detail, '2:', '1:') WHERE weights_id IS NOT NULL",
        "UPDATE events SET weights_id = NULL WHERE weights_id IS NOT NULL",
        "UPDATE events SET state = 'planned' WHERE state = 'applied'",
    ],
)
def test_an_altered_event_is_damage_to_whoever_decides_by_it(ledger: Ledger, statement: str) -> None:
    request_id = enter(ledger, Change(weights_id=WEIGHTS, tensors="1", revoked=[1, 2]))
    with ledger.catalog.engine.begin() as connection:
        for name in connection.scalars(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            connection.execute(sa.text(f"DROP TRIGGER {name}"))
        assert connection.execute(sa.text(statement)).rowcount > 0
    for read in (lambda: known(ledger, WEIGHTS), lambda: ledger.request(request_id), ledger.requests, ledger.verify):
        with pytest.raises(DamagedError):
            read()


@given(
    changes=st.lists(
        st.tuples(
            st.sampled_from([WEIGHTS, OTHER]), st.sets(st.integers(0, 6), max_size=3), st.sets(st.integers(7, 9))
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_table_is_the_fold_of_the_events(
    changes: list[tuple[str, set[int], set[int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fold")
    ledger = Ledger(Catalog(f"sqlite:///{folder / 'catalog.db'}"))
    expected: dict[tuple[str, int], str] = {}
    for weights, revoked, reinstated in changes:
        enter(ledger, Change(weights_id=weights, tensors=weights, revoked=revoked, reinstated=reinstated))
        expected |= {(weights, i): "revoked" for i in revoked} | {(weights, i): "reinstated" for i in reinstated}
    ledger.verify()
    for weights in (WEIGHTS, OTHER):
        stated = {i for (w, i), state in expected.items() if (w, state) == (weights, "revoked")}
        assert known(ledger, weights).revoked.keys() == stated
    ledger.catalog.engine.dispose()
    shutil.rmtree(folder)


def test_a_catalogue_of_an_earlier_release_keeps_what_it_revoked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    _fill_revision_0001(url)
    ledger = Ledger(Catalog(url))
    assert [request.state for request in ledger.requests()] == [State.VERIFIED, State.REFUSED, State.REQUESTED]
    taken = {ids.source_id("web:a.example"), ids.source_id("shared:0123456789abcdef")}
    assert known(ledger, WEIGHTS, revocations.name_scope("m")).revoked.keys() == taken
    with ledger.catalog.read() as connection:
        assert revocations.taken_out_of(connection, "m").keys() == taken
    ledger.verify()
    open_id = ledger.open_request(**_request("web:c.example"))
    assert open_id == "3" * 16, "the request that was open is continued"
    ledger.catalog.engine.dispose()


def _request(key: str) -> dict[str, object]:
    return {
        "requested_by": "a",
        "reason": "x",
        "action": "revoke",
        "policy": "all-owners",
        "model_name": "m",
        "model_before": "models:/m/1",
        "sources": [key],
    }


def _fill_revision_0001(url: str) -> None:
    """Write a ledger as the release before revocations by weights did."""
    from registry.catalog.chain import digest_of

    engine = sa.create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    plan = {"plan": {"also_removed": ["shared:0123456789abcdef"]}}
    trails = {
        "1" * 16: ("web:a.example", [("requested", {}), ("planned", plan), ("applied", {}), ("verified", {})]),
        "2" * 16: ("web:b.example", [("requested", {}), ("refused", {})]),
        "3" * 16: ("web:c.example", [("requested", {})]),
    }
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    previous = ""
    with engine.begin() as connection:
        for request_id, (key, trail) in trails.items():
            row = _request(key) | {"request_id": request_id, "created_at": "2026-01-01T00:00:00.000Z"}
            table = sa.Table("requests", sa.MetaData(), autoload_with=connection)
            events = sa.Table("events", sa.MetaData(), autoload_with=connection)
            connection.execute(sa.insert(table).values(**row))
            for state, detail in trail:
                event = {
                    "request_id": request_id,
                    "at": "2026-01-01T00:00:00.000Z",
                    "state": state,
                    "model_after": "models:/m/2" if state == "applied" else None,
                    "detail": {"request": row} if state == "requested" else detail,
                    "evidence_digest": None,
                }
                previous = digest_of(previous, event)
                connection.execute(sa.insert(events).values(**event, digest=previous))
    engine.dispose()


def test_whoever_asks_makes_no_empty_catalogue(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="no catalogue"):
        Catalog(f"sqlite:///{tmp_path / 'catalog.db'}", must_exist=True)
    assert list(tmp_path.iterdir()) == []
