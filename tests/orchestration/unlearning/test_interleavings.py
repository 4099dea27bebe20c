"""Every interleaving of two requests over every point at which one of them can crash, against a model of what is right.

A request has three parts (open it, act, measure). It can crash before or after the new version is made, after the act
is on record, and before its evidence is. A crashed part is done again later, by `resume` or by the same command. The
versions are kept in memory instead of MLflow, so that thousands of runs take a minute; catalogue and flow are the real
ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.settings import Settings
from orchestration.unlearning import evidence, unlearn, where
from registry import ids
from registry.catalog import revocations
from registry.catalog.database import Catalog
from registry.catalog.ledger import Ledger
from registry.catalog.states import NEXT, State
from registry.errors import RefusedError
from registry.snapshot import Registry, Snapshot
from tests.builders import alias_rows, commit_rows, text_rows
from training.serving import flavor, versions
from training.serving.version import ModelVersion

KEYS = ("web:a.example", "web:b.example", "web:c.example")
PARTS = ("open", "act", "measure")
CRASHES = ("none", "before the version", "after the version", "after the act", "before the evidence")


class CrashError(BaseException):
    """The process dies here."""


@dataclasses.dataclass
class Store:
    """MLflow, as far as the flow sees it: versions in the order in which they were made, and the next crash."""

    versions: list[ModelVersion]
    crash: str = "none"

    def die(self, point: str) -> None:
        if self.crash == point:
            self.crash = "none"
            raise CrashError(point)

    def describe(self, uri: str, *, tracking_uri: str) -> ModelVersion:
        return next(version for version in self.versions if version.uri == uri)

    def made_by(self, request_id: str, *, tracking_uri: str) -> ModelVersion | None:
        return next((version for version in self.versions if version.request_id == request_id), None)

    def revoked_by_others(self, version: ModelVersion, known: Any = ()) -> frozenset[Any]:
        return self.versions[-1].revoked

    def derive(self, base: ModelVersion, *, revoked: Any, request_id: str, by_request: Any) -> str:
        self.die("before the version")
        made = self.made_by(request_id, tracking_uri="")
        if made is None:
            pointer = base.pointer | {
                "revoked": [ids.format_id(i) for i in sorted(revoked)],
                "revoked_by_request": [ids.format_id(i) for i in sorted(by_request)],
            }
            number = len(self.versions) + 1
            made = dataclasses.replace(
                base, uri=f"models:/m/{number}", version=number, request_id=request_id, pointer=pointer
            )
            self.versions.append(made)
        self.die("after the version")
        return made.uri

    def gather(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.die("before the evidence")
        return {"verdict": "supported", "reasons": []}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    root = tmp_path_factory.mktemp("interleavings") / "registry"
    aliases = alias_rows([(key, key.removeprefix("web:"), "host", None, None) for key in KEYS])
    return commit_rows(
        Registry.open(root, create=True),
        root / "staging",
        aliases=aliases,
        **text_rows({key: [f"text of {key}"] for key in KEYS}),
    )


@pytest.fixture(scope="module")
def empty_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalog") / "catalog.db"
    Catalog(f"sqlite:///{path}").engine.dispose()
    return path


def first_version(snapshot: Snapshot) -> ModelVersion:
    layout = {"num_backbone": 32, "num_pool": 1024, "num_sinks": 64, "seed": 0, "scheme": "keyed-v1"}
    pointer = {
        "snapshot": snapshot.id,
        "registry": str(snapshot.path.parents[1]),
        "weights": "/weights",
        "weights_sha256": "0" * 64,
        "layout": layout,
        "heldout": [],
        "revoked": [],
    }
    return ModelVersion(
        uri="models:/m/1",
        name="m",
        version=1,
        run_id=None,
        request_id=None,
        experiment_id="0",
        tracking_uri="memory",
        pointer=pointer,
    )


Stores = Callable[[], tuple[Store, Settings]]


@pytest.fixture
def stores(snapshot: Snapshot, empty_catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stores:
    store = Store([])
    monkeypatch.setattr(flavor, "describe", store.describe)
    monkeypatch.setattr(flavor, "made_by", store.made_by)
    monkeypatch.setattr(flavor, "derive", store.derive)
    monkeypatch.setattr(versions, "revoked_by_others", store.revoked_by_others)
    monkeypatch.setattr(evidence, "gather", store.gather)
    monkeypatch.setattr(where, "surroundings", lambda *_: {})  # asks MLflow, and decides nothing
    monkeypatch.setattr(Catalog, "record_model", lambda *_, **__: store.die("after the act"))
    path = tmp_path / "catalog.db"
    shutil.copy(empty_catalog, path)
    catalog = Catalog(f"sqlite:///{path}")  # one engine, which compiles each statement once
    monkeypatch.setattr(Settings, "open_catalog", lambda _: catalog)

    def fresh() -> tuple[Store, Settings]:
        catalog.engine.dispose()
        shutil.copy(empty_catalog, path)
        store.versions[:], store.crash = [first_version(snapshot)], "none"
        settings = Settings(
            registry=str(snapshot.path.parents[1]), catalog=f"sqlite:///{path}", tracking="sqlite:////nowhere.db"
        )
        return store, settings

    return fresh


class Requester:
    """One requester's program: which part is next, and whether its next attempt crashes."""

    def __init__(self, key: str, crash: str) -> None:
        self.key, self.crash = key, crash
        self.request_id: str | None = None
        self.refused = False

    def step(self, store: Store, settings: Settings, part: str) -> None:
        """Do what is left of the request, up to `part`."""
        if self.refused:
            return
        store.crash = self.crash
        try:
            if part == "open":
                ledger = Ledger(settings.open_catalog())
                self.request_id = ledger.open_request(
                    requested_by="a", reason="x", action="revoke", policy="all-owners", model_name="m",
                    model_before="models:/m/1", sources=[self.key],
                )  # fmt: skip
                return
            assert self.request_id
            request = Ledger(settings.open_catalog()).request(self.request_id)
            if request.state is not State.VERIFIED:  # the other one, with the same request, was faster
                unlearn.resume(settings, self.request_id, measure=part == "measure")
        except CrashError:
            pass
        except RefusedError:
            self.refused = True
        finally:
            self.crash, store.crash = store.crash, "none"  # one that did not come up is still to come


def schedules() -> Iterator[tuple[int, ...]]:
    """All orders of two requesters with four steps each: open, act, measure, and one more, after a crash."""
    for first in itertools.combinations(range(8), 4):
        yield tuple(0 if step in first else 1 for step in range(8))


STEPS = ("open", "act", "measure", "measure")


def check(store: Store, settings: Settings, requesters: tuple[Requester, Requester]) -> None:
    """What is right at the end, whatever happened on the way."""
    catalog = settings.open_catalog()
    ledger = Ledger(catalog)
    ledger.verify()
    requests = {request.request_id: request for request in ledger.requests()}
    revoked: set[int] = set()
    for request in requests.values():
        states = [State(event["state"]) for event in ledger.history(request.request_id)]
        assert all(after in NEXT[before] for before, after in itertools.pairwise(states))
        assert (State.APPLIED in states) != (states[-1] is State.REFUSED)
        if State.APPLIED in states:
            assert states[-1] is State.VERIFIED
            assert sum(version.request_id == request.request_id for version in store.versions) == 1
            revoked |= {ids.source_id(key) for key in request.sources}
    assert set(store.versions[-1].revoked) == revoked
    with catalog.read() as connection:
        known = revocations.read(connection, [store.versions[0].weights_id])
    assert set(known.revoked) == revoked
    assert revoked == {ids.source_id(requester.key) for requester in requesters}
    for earlier, later in itertools.pairwise(store.versions):
        assert earlier.revoked <= later.revoked, "an unlearn lost what another one revoked"


@pytest.mark.parametrize("keys", [KEYS[:2], (KEYS[0], KEYS[0])], ids=["two sources", "the same request"])
@pytest.mark.parametrize(
    "crashes",
    [
        pytest.param(pair, marks=() if pair[1] == "none" and "before" not in pair[0] else pytest.mark.slow)
        for pair in itertools.product(CRASHES, CRASHES)
    ],
    ids="/".join,
)
def test_every_interleaving_ends_right(stores: Stores, keys: tuple[str, str], crashes: tuple[str, str]) -> None:
    for schedule in schedules():
        store, settings = stores()
        requesters = (Requester(keys[0], crashes[0]), Requester(keys[1], crashes[1]))
        done = [0, 0]
        for who in schedule:
            requesters[who].step(store, settings, STEPS[done[who]])
            done[who] += 1
        if keys[0] == keys[1] and requesters[0].request_id != requesters[1].request_id:
            # The second was opened after the first had ended: it is refused, and says where the source went.
            assert requesters[0].refused != requesters[1].refused
        else:
            assert not requesters[0].refused
            assert not requesters[1].refused
        check(store, settings, requesters)
