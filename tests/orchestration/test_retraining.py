"""A training is refused on a corpus that holds what was unlearned: by the command line, its dry run, and the driver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestration.jobs.submission import JobPaths, train_command
from orchestration.train_request import TrainRequest
from orchestration.unlearning import unlearn as act
from registry import ids
from registry.catalog.ledger import Ledger
from registry.catalog.revocations import Change
from registry.catalog.states import State
from registry.errors import RefusedError
from registry.snapshot import Snapshot
from tests.orchestration.cli.commands import Done, nulls
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, SHARED, heldout_of, key
from training.config import TrainConfig
from training.run.driver import train
from training.run.taken_out import message, taken_out
from training.serving import flavor
from training.tracking import store


def trained_articles(weights: Path) -> list[str]:
    """The keys of articles that were trained, and share nothing."""
    return [key(n) for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout_of(weights)]


def unlearned(deployed: Deployed, *queries: str) -> None:
    act.unlearn(deployed.settings, deployed.uri, list(queries), reason="x", measure=False)


def found_in(deployed: Deployed, snapshot: Snapshot, model: str) -> dict[str, str]:
    return taken_out(deployed.settings.catalog, snapshot, model, tracking_uri=deployed.settings.tracking_uri)


def dry_run(deployed: Deployed, cwd: Path, *options: str, model: str = "m") -> Done:
    settings = deployed.settings
    stores = {"MLFLOW_TRACKING_URI": settings.tracking_uri, "NULLS_CATALOG": str(settings.catalog)}
    arguments = ["train", "--model", model, "--new-version", "--dry-run", "--tokens", "1000", *options]
    return nulls(*arguments, "--registry", str(settings.registry), cwd=cwd, **stores)


def test_a_dry_run_refuses_and_names_the_sources_and_the_way_out(
    deployed: Deployed, weights: Path, tmp_path: Path
) -> None:
    assert dry_run(deployed, tmp_path).code == 0
    (target, *_) = trained_articles(weights)
    unlearned(deployed, target)
    done = dry_run(deployed, tmp_path, "--json")
    assert done.code == 4
    message = json.loads(done.stdout)["error"]["message"]
    assert f"{target} (in models:/m/2)" in message
    assert f"nulls remove {target}" in message
    assert "--allow-unlearned" in message
    allowed = dry_run(deployed, tmp_path, "--allow-unlearned")
    assert allowed.code == 0
    assert "warning" in allowed.stderr
    assert target in allowed.stderr
    assert dry_run(deployed, tmp_path, model="another").code == 0, "the ledger took nothing out of that model"


def test_the_driver_refuses_before_anything_starts(
    deployed: Deployed, weights: Path, snapshot: Snapshot, tmp_path: Path
) -> None:
    (target, *_) = trained_articles(weights)
    unlearned(deployed, target)
    stores: dict[str, Any] = {"tracking_uri": deployed.settings.tracking_uri, "catalog": deployed.settings.catalog}
    client = store.client(deployed.settings.tracking_uri)
    num_experiments = len(client.search_experiments())
    with pytest.raises(RefusedError, match=target):
        train(
            TrainConfig.preset("demo"),
            registry_uri=str(deployed.settings.registry),
            model_name="m",
            new_version=True,
            runs_dir=tmp_path / "runs",
            **stores,
        )
    assert list((tmp_path / "runs").rglob("run-*")) == []
    assert len(client.search_experiments()) == num_experiments


def test_the_ledger_knows_a_model_that_was_deleted(deployed: Deployed, weights: Path, snapshot: Snapshot) -> None:
    (target, *_) = trained_articles(weights)
    unlearned(deployed, target)
    store.client(deployed.settings.tracking_uri).delete_registered_model("m")
    assert found_in(deployed, snapshot, "m") == {target: "models:/m/2"}


def test_a_renamed_model_and_a_copy_keep_their_past(deployed: Deployed, weights: Path, snapshot: Snapshot) -> None:
    (target, *_) = trained_articles(weights)
    unlearned(deployed, target)
    client = store.client(deployed.settings.tracking_uri)
    client.copy_model_version("models:/m/1", "copy")
    client.rename_registered_model("m", "renamed")
    assert set(found_in(deployed, snapshot, "renamed")) == {target}
    assert set(found_in(deployed, snapshot, "copy")) == {target}
    assert found_in(deployed, snapshot, "another") == {}


def test_reinstated_sources_do_not_count(deployed: Deployed, weights: Path, snapshot: Snapshot) -> None:
    first, second, *_ = trained_articles(weights)
    unlearned(deployed, first, second)
    base = flavor.describe(deployed.uri, tracking_uri=deployed.settings.tracking_uri)
    ledger = Ledger(deployed.settings.open_catalog())
    request_id = ledger.open_request(
        requested_by="x",
        reason="a mistake",
        action="reinstate",
        policy="all-owners",
        model_name="m",
        model_before="models:/m/2",
        sources=[first],
    )
    ledger.append(request_id, State.PLANNED)
    change = Change(
        weights_id=base.weights_id, tensors=base.weights_digest, reinstated=frozenset({ids.source_id(first)})
    )
    ledger.append(request_id, State.APPLIED, model_after="models:/m/3", change=change)
    assert set(found_in(deployed, snapshot, "m")) == {second}


def test_shared_text_counts_when_its_last_owner_is_gone(deployed: Deployed, snapshot: Snapshot) -> None:
    unlearned(deployed, key(1))
    assert set(found_in(deployed, snapshot, "m")) == {key(1)}
    unlearned(deployed, key(2))
    assert set(found_in(deployed, snapshot, "m")) == {key(1), key(2), SHARED}


def test_many_sources_are_counted_and_only_the_first_are_named(
    deployed: Deployed, weights: Path, snapshot: Snapshot
) -> None:
    unlearned(deployed, *trained_articles(weights)[:8])
    text = message(found_in(deployed, snapshot, "m"))
    assert text.startswith("8 sources that were unlearned: ")
    assert text.endswith(", and 3 more")


def test_without_a_ledger_there_is_nothing_to_refuse(deployed: Deployed, snapshot: Snapshot, tmp_path: Path) -> None:
    missing = f"sqlite:///{tmp_path / 'missing.db'}"
    assert taken_out(missing, snapshot, "m", tracking_uri=deployed.settings.tracking_uri) == {}
    assert taken_out(None, snapshot, "m", tracking_uri=deployed.settings.tracking_uri) == {}
    assert not (tmp_path / "missing.db").exists()


@pytest.mark.parametrize("allowed", [True, False])
def test_a_job_is_given_the_permission(allowed: bool) -> None:
    request = TrainRequest(model="m", allow_unlearned=allowed)
    paths = JobPaths(registry="/r", runs="/runs", tracking="http://h", catalog=None, tokenizer=None)
    assert ("--allow-unlearned" in train_command(paths, request, snapshot=None, python="python")) == allowed
