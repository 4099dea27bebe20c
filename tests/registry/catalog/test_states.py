"""The table of states, pair by pair, through the ledger; and what it must never allow."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from registry.catalog.database import Catalog
from registry.catalog.ledger import Ledger
from registry.catalog.states import NEXT, State, TransitionError

PATHS = {
    State.REQUESTED: [],
    State.PLANNED: [State.PLANNED],
    State.APPLIED: [State.PLANNED, State.APPLIED],
    State.VERIFIED: [State.PLANNED, State.APPLIED, State.VERIFIED],
    State.FAILED: [State.FAILED],
    State.REFUSED: [State.REFUSED],
}


def reachable(state: State) -> set[State]:
    """All states that can follow, at any distance."""
    found: set[State] = set()
    todo = [state]
    while todo:
        new = NEXT[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_nothing_that_was_carried_out_is_called_refused_or_failed() -> None:
    assert reachable(State.APPLIED) == {State.APPLIED, State.VERIFIED}
    assert {state for state in State if not reachable(state)} == {State.VERIFIED, State.FAILED, State.REFUSED}
    assert NEXT.keys() == {None, *State}


def test_every_pair_of_states_is_allowed_or_refused_as_the_table_says(tmp_path: Path) -> None:
    ledger = Ledger(Catalog(f"sqlite:///{tmp_path / 'catalog.db'}"))
    for number, (before, after) in enumerate(itertools.product(State, State)):
        request_id = ledger.open_request(
            requested_by="a",
            reason="x",
            action="revoke",
            policy="all-owners",
            model_name="m",
            model_before="models:/m/1",
            sources=[f"web:{number}.example"],
        )
        for state in PATHS[before]:
            ledger.append(request_id, state)
        if after in NEXT[before]:
            ledger.append(request_id, after)
            assert ledger.request(request_id).state is after
        else:
            with pytest.raises(TransitionError, match=before.value):
                ledger.append(request_id, after)
            assert ledger.request(request_id).state is before
    ledger.verify()
    ledger.catalog.engine.dispose()
