"""Unlearns by 16 processes on PostgreSQL, killed all the time and started again: nothing is lost or doubled.

A killed process is replaced by one that gives the same commands again from where its predecessor's notes end, as a
person or a job queue would. NULLS_STRESS_SOURCES=1000 makes it the run that
`benchmarks/RESULTS.md` reports.
"""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from registry import ids
from registry.catalog import revocations
from registry.catalog.database import Catalog
from registry.catalog.ledger import Ledger
from registry.catalog.states import State
from tests.registry import postgres

NUM_SOURCES, NUM_PROCESSES = int(os.environ.get("NULLS_STRESS_SOURCES", "150")), 16
NUM_KILLS = NUM_SOURCES // 7
FORK = multiprocessing.get_context("fork")


def set_up(folder: Path, catalog: str, tracking: str) -> None:
    """Make the model; in a process of its own, whose connections no worker inherits."""
    from tests.many import registered

    registered(folder, num_sources=NUM_SOURCES, catalog=catalog, tracking=tracking)


def work(folder: Path, catalog: str, tracking: str, keys: list[str], number: int) -> None:
    """Unlearn these sources one by one; what is done is noted, and left out by the next process."""
    from orchestration.settings import Settings
    from orchestration.unlearning.unlearn import unlearn

    settings = Settings(registry=str(folder / "registry"), catalog=catalog, tracking=tracking)
    notes = folder / f"done-{number}"
    done = set(notes.read_text().split()) if notes.exists() else set()
    with notes.open("a") as file:
        for key in keys:
            if key not in done:
                unlearn(settings, "models:/m/1", [key], reason=f"process {number}", measure=False)
                print(key, file=file, flush=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_unlearns_by_processes_that_are_killed(tmp_path: Path) -> None:
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - imported once, before the forks

    import training.serving.flavor  # noqa: F401

    with postgres.server() as server:
        catalog = postgres.new_schema(server, "catalog")
        tracking = postgres.new_schema(server, "tracking")
        setup = FORK.Process(target=set_up, args=(tmp_path, catalog, tracking))
        setup.start()
        setup.join()
        assert setup.exitcode == 0
        keys = [f"wiki:enwiki:{number}" for number in range(13, NUM_SOURCES + 13)]
        kills = _run_with_kills(tmp_path, catalog, tracking, keys)
        assert kills >= NUM_KILLS // 2, "the processes were hardly ever killed, so this shows nothing"
        _check(Catalog(catalog), keys, tmp_path)


def _run_with_kills(folder: Path, catalog: str, tracking: str, keys: list[str]) -> int:
    shares = [keys[number::NUM_PROCESSES] for number in range(NUM_PROCESSES)]

    def start(number: int) -> multiprocessing.process.BaseProcess:
        process = FORK.Process(target=work, args=(folder, catalog, tracking, shares[number], number))
        process.start()
        return process

    processes = {number: start(number) for number in range(NUM_PROCESSES)}
    rng, kills = random.Random(0), 0
    while processes:
        time.sleep(rng.uniform(0.1, 0.6))
        for number, process in list(processes.items()):
            if process.is_alive():
                continue
            process.join()
            del processes[number]
            assert process.exitcode in (0, -signal.SIGKILL)
            if process.exitcode:
                processes[number] = start(number)
        if processes and kills < NUM_KILLS:
            victim = processes[rng.choice(sorted(processes))]
            if victim.is_alive() and victim.pid:
                os.kill(victim.pid, signal.SIGKILL)
                kills += 1
    return kills


def _check(catalog: Catalog, keys: list[str], folder: Path) -> None:
    ledger = Ledger(catalog)
    ledger.verify()  # one chain, and the table of revocations is the fold of the events
    requests = ledger.requests()
    assert collections.Counter(key for request in requests for key in request.sources) == collections.Counter(keys)
    assert {request.state for request in requests} == {State.APPLIED}
    assert len({request.model_after for request in requests}) == len(keys)
    for request in requests:
        states = [event["state"] for event in ledger.history(request.request_id)]
        assert states == [State.REQUESTED, State.PLANNED, State.APPLIED]
    with catalog.read() as connection:
        (weights_id,) = {
            change["weights_id"]
            for request in requests
            if (change := ledger.request(request.request_id, within=connection).detail["revocations"])
        }
        known = revocations.read(connection, [weights_id])
    assert known.revoked.keys() == {ids.source_id(key) for key in keys}
    catalog.engine.dispose()
    done = itertools.chain.from_iterable(path.read_text().split() for path in folder.glob("done-*"))
    assert set(done) == set(keys)
