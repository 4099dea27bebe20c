"""Erasing end to end on a model that has memorised its sources: cost, budget, act, crashes, evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from orchestration.settings import Settings
from orchestration.unlearning import erasure, unlearn
from orchestration.unlearning.erasure import Budget
from orchestration.unlearning.reinstate import reinstate
from registry import ids
from registry.catalog.ledger import Ledger, State
from registry.errors import RefusedError, UsageError
from registry.snapshot import Snapshot
from tests.orchestration.cli.commands import nulls
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, SHARED, heldout_of, key, train_model
from training.checkpoint import dcp
from training.erasure import cost as cost_module
from training.erasure.cost import measure
from training.serving import flavor
from training.serving.in_force import InForce
from training.serving.served_model import ServedModel
from training.serving.version import ModelVersion

ANY_COST = Budget(accept_cost=True)


def trained_articles(weights: Path) -> list[int]:
    """Return the numbers of articles that were trained and share no text with others."""
    heldout = heldout_of(weights)
    return [n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout]


def described(deployed: Deployed, uri: str) -> ModelVersion:
    return flavor.describe(uri, tracking_uri=deployed.settings.tracking_uri)


def zero_rows(folder: Path) -> list[set[int]]:
    """Return the rows of each layer's pool that are zero in all three matrices."""
    tensors = load_file(folder / "model.safetensors")
    rows = []
    for layer in range(2):
        pools = [tensors[f"model.layers.{layer}.mlp.{name}"] for name in ("sink_gate", "sink_up", "sink_down")]
        rows.append(set(np.flatnonzero(~np.any([pool.any(1) for pool in pools], axis=0)).tolist()))
    return rows


def sinks_of(version: ModelVersion, *source_ids: int) -> list[set[int]]:
    array = np.array(source_ids, dtype=np.int64)
    return [set(version.layout.sinks(array, layer).ravel().tolist()) for layer in range(2)]


def test_erase_makes_a_version_of_other_weights_without_the_sources_sinks(
    deployed: Deployed, weights: Path, snapshot: Snapshot
) -> None:
    number = trained_articles(weights)[0]
    target = ids.source_id(key(number))
    result = unlearn.unlearn(deployed.settings, deployed.uri, [key(number)], reason="asked", erase=ANY_COST)
    before, after = described(deployed, deployed.uri), described(deployed, result.model_uri)
    assert after.weights != before.weights
    assert after.weights_id != before.weights_id
    assert after.lineage == (before.weights_id,)
    assert after.revoked == {target}
    assert after.pointer["erased"] == [ids.format_id(target)]
    assert zero_rows(before.weights) == [set(), set()]
    assert zero_rows(after.weights) == sinks_of(before, target)
    for uri in (deployed.uri, result.model_uri):
        served = deployed.load(uri)
        with pytest.raises(RefusedError, match="unlearned"):
            served.generate("some", source_id=target)
        assert served.route(snapshot.texts(target)[0][1][:200]) != target

    evidence = result.evidence
    assert evidence is not None
    found = evidence["erasure"]
    assert found["proof"]["holds"]
    assert [layer["rows_zero"] for layer in found["proof"]["layers"]] == [64, 64]
    assert found["proof"]["checkpoint"]["holds"]
    assert dcp.latest(after.weights.parent) == Path(found["proof"]["checkpoint"]["after"])
    # What was measured in memory before is what the weights that were written give.
    for old, new in zip(found["cost_before"]["measured"], found["cost_after"]["measured"], strict=True):
        assert new["loss_after"] == pytest.approx(old["loss_after"], abs=1e-5)
    assert found["cost_after"]["worst_nats"] == pytest.approx(found["cost_before"]["worst_nats"], abs=1e-5)
    assert found["cost_before"]["num_losing"] > 0
    assert not any("others" in reason for reason in evidence["reasons"])

    (request,) = Ledger(deployed.settings.open_catalog()).requests()
    assert (request.action, request.model_after) == (erasure.ERASE, result.model_uri)
    assert request.detail["erasure"]["proof"] == found["proof"]
    Ledger(deployed.settings.open_catalog()).verify()


def test_a_cost_past_the_budget_is_refused_before_anything_is_written(deployed: Deployed, weights: Path) -> None:
    number = trained_articles(weights)[1]
    made = set(weights.parent.glob("erased-*"))
    planned = unlearn.unlearn(
        deployed.settings, deployed.uri, [key(number)], reason="x", erase=Budget(max_cost_nats=0), dry_run=True
    )
    assert planned.erasure is not None
    assert planned.erasure["objection"]
    assert planned.erasure["cost"]["worst_nats"] > 0
    with pytest.raises(RefusedError, match=r"erasing would cost others too much: .* where 0 is allowed") as refused:
        unlearn.unlearn(deployed.settings, deployed.uri, [key(number)], reason="x", erase=Budget(max_cost_nats=0))
    assert refused.value.exit_code == 4
    assert set(weights.parent.glob("erased-*")) == made
    assert len(flavor.versions("m", tracking_uri=deployed.settings.tracking_uri)) == 1
    (request,) = Ledger(deployed.settings.open_catalog()).requests()
    assert request.state is State.REFUSED
    assert "too much" in request.detail["error"]
    # Revoking the same source is still possible, and costs nothing.
    assert unlearn.unlearn(deployed.settings, deployed.uri, [key(number)], reason="x", measure=False).erasure is None


def test_what_is_revoked_can_still_be_erased_and_what_is_erased_cannot_again(deployed: Deployed, weights: Path) -> None:
    number = trained_articles(weights)[2]
    first = unlearn.unlearn(deployed.settings, deployed.uri, [key(number)], reason="x", measure=False)
    second = unlearn.unlearn(
        deployed.settings, first.model_uri, [key(number)], reason="leaves", erase=ANY_COST, measure=False
    )
    assert zero_rows(described(deployed, second.model_uri).weights) == sinks_of(
        described(deployed, first.model_uri), ids.source_id(key(number))
    )
    with pytest.raises(RefusedError, match="unlearned already"):
        unlearn.unlearn(deployed.settings, second.model_uri, [key(number)], reason="again", erase=ANY_COST)


def test_shared_text_is_erased_with_its_last_owner_though_the_other_was_only_revoked(deployed: Deployed) -> None:
    first = unlearn.unlearn(deployed.settings, deployed.uri, [key(1)], reason="x", measure=False)
    erased = unlearn.unlearn(deployed.settings, first.model_uri, [key(2)], reason="x", erase=ANY_COST, measure=False)
    assert [source.key for source in erased.plan.also_removed] == [SHARED]
    version = described(deployed, erased.model_uri)
    assert zero_rows(version.weights) == sinks_of(version, ids.source_id(key(2)), ids.source_id(SHARED))
    assert version.revoked == {ids.source_id(one) for one in (key(1), key(2), SHARED)}


def test_reinstating_in_the_old_weights_brings_nothing_back_into_the_erased_ones(
    deployed: Deployed, weights: Path
) -> None:
    target = key(trained_articles(weights)[0])
    erased = unlearn.unlearn(deployed.settings, deployed.uri, [target], reason="x", erase=ANY_COST, measure=False)
    with pytest.raises(RefusedError, match="was erased"):
        reinstate(deployed.settings, erased.model_uri, [target], reason="mistake")
    back = reinstate(deployed.settings, deployed.uri, [target], reason="mistake")
    source_id = ids.source_id(target)
    assert deployed.load(back.model_uri).check(source_id) == source_id
    for options in ({}, {"offline": True}):
        with pytest.raises(RefusedError, match="unlearned"):
            deployed.load(erased.model_uri, **options).check(source_id)


class CrashError(BaseException):
    """The process dies here."""


@pytest.fixture(params=["before the version", "after the version", "before the evidence"])
def crash(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The next act dies at one of the steps; undone by `undo`."""
    derive = flavor.derive

    def dying(*arguments: Any, **options: Any) -> str:
        if request.param == "after the version":
            derive(*arguments, **options)
        raise CrashError

    with monkeypatch.context() as patch:
        if request.param == "before the evidence":
            patch.setattr("orchestration.unlearning.evidence.gather", dying)
        else:
            patch.setattr(flavor, "derive", dying)
        yield patch


def test_a_request_that_died_anywhere_is_continued_and_acts_once(
    deployed: Deployed, weights: Path, crash: pytest.MonkeyPatch
) -> None:
    target = key(trained_articles(weights)[3])

    def erase(**options: Any) -> unlearn.Result:
        return unlearn.unlearn(deployed.settings, deployed.uri, [target], reason="x", erase=ANY_COST, **options)

    with pytest.raises(CrashError):
        erase()
    crash.undo()
    ledger = Ledger(deployed.settings.open_catalog())
    (open_one,) = ledger.requests()
    made = {path: path.stat().st_ino for path in weights.parent.glob("erased-*/weights/model.safetensors")}
    result = unlearn.resume(deployed.settings, open_one.request_id, measure=False)
    assert result.request_id == open_one.request_id
    assert result.model_uri == "models:/m/2"
    assert len(flavor.versions("m", tracking_uri=deployed.settings.tracking_uri)) == 2
    version = described(deployed, result.model_uri)
    assert zero_rows(version.weights) == sinks_of(version, ids.source_id(target))
    file = version.weights / "model.safetensors"
    assert made[file] == file.stat().st_ino, "the weights that it made before it died were found"
    ledger.verify()


@pytest.fixture(scope="module")
def reserving(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelVersion, ServedModel]:
    """A model with two reserved sources."""
    folder = train_model(snapshot, tmp_path_factory.mktemp("reserved") / "weights", epochs=2, reserved=[key(5), key(6)])
    pointer = json.loads((folder / "nulls.json").read_text())
    from training.checkpoint.export import weights_digest

    flavor._build_router(folder, pointer)
    pointer |= {"weights": str(folder), "weights_sha256": weights_digest(folder), "revoked": []}
    version = ModelVersion(
        uri="models:/r/1",
        name="r",
        version=1,
        run_id=None,
        request_id=None,
        experiment_id="0",
        tracking_uri="",
        pointer=pointer,
    )
    return version, ServedModel.load(version, InForce(revoked={}, checked=True))


def test_erasing_reserved_sources_costs_nobody_anything(
    reserving: tuple[ModelVersion, ServedModel], snapshot: Snapshot
) -> None:
    version, served = reserving
    reserved = [ids.source_id(key(5)), ids.source_id(key(6))]
    assert version.layout.reserved == tuple(sorted(reserved))
    found = measure(version, reserved, snapshot, revoked=(), load=lambda: served)
    assert len(found.measured) > 10
    assert all(row["loss_after"] == row["loss_before"] for row in found.measured), "exactly, not nearly"
    assert (found.num_losing, found.share["max"], found.mean_nats, found.worst_nats) == (0, 0, 0, 0)
    assert found.worst == []
    assert Budget(max_cost_nats=0).objection(found.to_dict()) is None

    other = next(n for n in served.router.source_ids_N.tolist() if n not in reserved)
    shared = measure(version, [other], snapshot, revoked=reserved, load=lambda: served)
    assert shared.num_losing > 0
    assert shared.num_sources == found.num_sources - 1
    assert all(row["key"] not in (key(5), key(6)) for row in shared.measured), "revoked sources have nothing to lose"


def test_the_cost_is_exact_over_all_and_names_those_that_lose_most(
    reserving: tuple[ModelVersion, ServedModel], snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, served = reserving
    monkeypatch.setattr(cost_module, "NUM_WORST", 3)
    all_ids = served.router.source_ids_N.tolist()
    target = next(n for n in all_ids if n not in version.layout.reserved)
    found = measure(version, [target], snapshot, revoked=(), load=lambda: served)
    own = sinks_of(version, target)
    lost = {
        n: sum(len(mine & gone) for mine, gone in zip(sinks_of(version, n), own, strict=True)) / 128
        for n in all_ids
        if n != target
    }
    assert found.num_sources == len(lost)
    assert found.num_losing == sum(share > 0 for share in lost.values())
    assert found.share["mean"] == pytest.approx(sum(lost.values()) / len(lost))
    assert [row["share"] for row in found.worst] == pytest.approx(sorted(lost.values(), reverse=True)[:3])
    assert {row["drawn"] for row in found.measured} == {"worst", "random"}


def test_without_text_the_cost_is_unknown_and_needs_consent() -> None:
    cost = {"num_losing": 3, "share": {"max": 0.1}, "mean_nats": None, "worst_nats": None}
    assert "cannot be measured" in str(Budget(max_cost_nats=9).objection(cost))
    with pytest.raises(UsageError, match="--max-cost -1"):
        Budget(max_cost_nats=-1)


def test_from_the_command_line(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    settings: Settings = deployed.settings
    stores = {"NULLS_CATALOG": str(settings.catalog), "MLFLOW_TRACKING_URI": str(settings.tracking)}
    stores["NULLS_REGISTRY"] = str(settings.registry)
    target = key(trained_articles(weights)[4])
    command = ["unlearn", deployed.uri, target, "--reason", "x", "--no-evidence"]
    done = nulls(*command, "--erase", "--max-cost", "0", cwd=tmp_path, **stores)
    assert (done.code, "too much" in done.stderr) == (4, True)
    done = nulls(*command, "--erase", "--max-cost", "0", "--dry-run", cwd=tmp_path, **stores)
    assert done.code == 0
    assert f"would erase {target}" in done.stdout
    assert "would be refused: " in done.stdout
    done = nulls(*command, "--erase", "--accept-cost", cwd=tmp_path, **stores)
    assert done.code == 0, done.stderr
    assert f"erased {target}" in done.stdout
    assert "128 of 128 rows of the pool are zero" in done.stdout
    assert "cost to others: " in done.stdout
    done = nulls(*command, "--max-cost", "1", cwd=tmp_path, **stores)
    assert (done.code, "give them with --erase" in done.stderr) == (2, True)
