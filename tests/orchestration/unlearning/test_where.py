"""Who else has a source: versions, aliases, copies, renamed and derived models, found by their weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestration.unlearning import unlearn as act
from orchestration.unlearning.unlearn import Result
from orchestration.unlearning.where import where
from registry import ids
from registry.catalog.ledger import Ledger
from registry.errors import NotFoundError, RefusedError
from registry.snapshot import Registry, Snapshot
from tests.builders import commit_rows, text_rows
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, SHARED, heldout_of, key
from training.serving import by_weights, flavor
from training.tracking import store


def trained_article(weights: Path) -> str:
    """The key of an article that was trained, and shares nothing."""
    return next(key(n) for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout_of(weights))


def client_of(deployed: Deployed) -> Any:
    return store.client(deployed.settings.tracking_uri)


def models_of(deployed: Deployed, query: str, **options: Any) -> dict[str, dict[str, Any]]:
    (answer,) = where(deployed.settings, [query], **options)
    return {model["model_uri"]: model for model in answer["models"]}


def unlearned(deployed: Deployed, query: str, **options: Any) -> Result:
    return act.unlearn(deployed.settings, deployed.uri, [query], reason="x", measure=False, **options)


def register_derived(
    deployed: Deployed, weights: Path, folder: Path, name: str, *, by: float = 1.0, **fields: Any
) -> str:
    """Register other weights whose pointer says that they were made from those of version 1."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(weights, folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + torch.tensor(by)
    save_file(tensors, file, metadata={"format": "pt"})
    pointer = json.loads((folder / "nulls.json").read_text()) | fields
    (folder / "nulls.json").write_text(json.dumps(pointer))
    client = client_of(deployed)
    run_id = client.create_run(client.get_experiment_by_name("test").experiment_id).info.run_id
    return flavor.register(folder, model_name=name, run_id=run_id, tracking_uri=deployed.settings.tracking_uri)


def test_every_name_of_the_same_weights_is_listed(deployed: Deployed, weights: Path) -> None:
    target, client = trained_article(weights), client_of(deployed)
    client.copy_model_version(deployed.uri, "staging")
    client.set_registered_model_alias("staging", "prod", "1")
    client.copy_model_version(deployed.uri, "old-name")
    client.rename_registered_model("old-name", "new-name")
    before = models_of(deployed, target)
    assert set(before) == {"models:/m/1", "models:/staging/1", "models:/new-name/1"}
    assert {model["state"] for model in before.values()} == {"answers"}
    assert before["models:/staging/1"]["relation"] == "copy of models:/m/1"
    assert before["models:/staging/1"]["aliases"] == ["prod"]
    assert before["models:/m/1"]["relation"] == "trained"

    result = unlearned(deployed, target)
    after = models_of(deployed, target)
    assert set(after) == {*before, "models:/m/2"}
    assert {model["state"] for model in after.values()} == {"revoked"}
    since = {"model_uri": "models:/m/2", "request_id": result.request_id}
    assert all(model["since"] == since for model in after.values())
    assert after["models:/m/2"]["relation"] == "same weights"
    assert set(models_of(deployed, target, name="m")) == {"models:/m/1", "models:/m/2"}
    with pytest.raises(NotFoundError, match="no model 'nothing'"):
        where(deployed.settings, [target], name="nothing")


def test_held_out_untrained_and_unknown_sources(deployed: Deployed, weights: Path) -> None:
    heldout = next(key(n) for n in range(1, NUM_ARTICLES + 1) if ids.source_id(key(n)) in heldout_of(weights))
    assert models_of(deployed, heldout)["models:/m/1"]["state"] == "held out"
    assert models_of(deployed, SHARED)["models:/m/1"]["state"] == "answers"
    assert models_of(deployed, "web:empty.example") == {}
    with pytest.raises(NotFoundError, match="No such article"):
        where(deployed.settings, ["No such article"])


def test_derived_weights_have_what_their_origin_was_trained_on(
    deployed: Deployed, weights: Path, tmp_path: Path
) -> None:
    target = trained_article(weights)
    origin = flavor.describe(deployed.uri, tracking_uri=deployed.settings.tracking_uri)
    uri = register_derived(deployed, weights, tmp_path / "tuned", "tuned", lineage=[origin.weights_id])
    erased = register_derived(
        deployed,
        weights,
        tmp_path / "erased",
        "zeroed",
        by=2.0,
        lineage=[origin.weights_id],
        erased=[ids.format_id(ids.source_id(target))],
    )
    tags = client_of(deployed).get_model_version("tuned", "1").tags
    assert tags["nulls.lineage"] == origin.weights_id
    found = models_of(deployed, target)
    assert found[uri]["relation"] == "derived from models:/m/1"
    assert found[uri]["state"] == "answers"
    assert found[erased]["state"] == "erased"


def test_a_plan_names_what_answers_before_and_what_still_does(
    deployed: Deployed, weights: Path, tmp_path: Path
) -> None:
    target, client = trained_article(weights), client_of(deployed)
    client.set_registered_model_alias("m", "prod", "1")
    client.copy_model_version(deployed.uri, "staging")
    origin = flavor.describe(deployed.uri, tracking_uri=deployed.settings.tracking_uri)
    register_derived(deployed, weights, tmp_path / "tuned", "tuned", lineage=[origin.weights_id])
    expected = {
        "models:/m/1": ("trained", ["prod"], False),
        "models:/staging/1": ("copy of models:/m/1", [], False),
        "models:/tuned/1": ("derived from models:/m/1", [], False),
    }

    def said(result: Result) -> dict[str, Any]:
        places = result.to_dict()["elsewhere"]
        return {p["model_uri"]: (p["relation"], p["aliases"], p["still_answers"]) for p in places}

    assert said(unlearned(deployed, target, dry_run=True)) == expected
    result = unlearned(deployed, target)
    assert said(result) == expected
    (request,) = Ledger(deployed.settings.open_catalog()).requests()
    assert request.detail["elsewhere"] == result.elsewhere
    assert {model["state"] for model in models_of(deployed, target).values()} == {"revoked"}
    with pytest.raises(RefusedError, match="unlearned"):
        deployed.load("models:/tuned/1").generate("some", source_id=ids.source_id(target))


def test_weights_that_were_trained_anew_still_answer_and_are_named(
    deployed: Deployed, weights: Path, tmp_path: Path
) -> None:
    target = trained_article(weights)
    again = register_derived(deployed, weights, tmp_path / "again", "m")
    result = unlearned(deployed, target)
    (place,) = result.elsewhere
    assert (place["model_uri"], place["still_answers"], place["relation"]) == (again, True, "trained")
    assert models_of(deployed, target)[again]["state"] == "answers"


def test_a_damaged_pointer_is_listed_and_hides_no_other(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    target = trained_article(weights)
    uri = register_derived(deployed, weights, tmp_path / "other", "other")
    client_of(deployed).set_model_version_tag("other", "1", "nulls.pointer", "0" * 32)
    found = models_of(deployed, target)
    assert found[uri]["state"] == "damaged"
    assert "altered" in found[uri]["relation"]
    assert found["models:/m/1"]["state"] == "answers"


def test_many_versions_are_one_entry_beside_those_with_an_alias(deployed: Deployed, weights: Path) -> None:
    client = client_of(deployed)
    for _ in range(by_weights.MOST_LISTED + 2):
        client.copy_model_version(deployed.uri, "m")
    client.set_registered_model_alias("m", "prod", "4")
    found = models_of(deployed, trained_article(weights))
    assert set(found) == {"models:/m/4", f"models:/m/1 to {by_weights.MOST_LISTED + 3}"}
    assert found["models:/m/4"]["aliases"] == ["prod"]


def test_versions_of_an_earlier_release_are_found_by_their_path(deployed: Deployed, weights: Path) -> None:
    client = client_of(deployed)
    for tag in ("nulls.weights_id", "nulls.pointer"):
        client.delete_model_version_tag("m", "1", tag)
    target = trained_article(weights)
    pointer = Path(client.get_model_version_download_uri("m", "1").removeprefix("file://")) / "nulls.json"
    kept = pointer.read_text()
    try:
        earlier = {name: value for name, value in json.loads(kept).items() if name != "weights_id"}
        pointer.write_text(json.dumps(earlier))
        assert set(models_of(deployed, target)) == {"models:/m/1"}
        unlearned(deployed, target)
        assert {uri: m["state"] for uri, m in models_of(deployed, target).items()} == {
            "models:/m/1": "revoked",
            "models:/m/2": "revoked",
        }
    finally:
        pointer.write_text(kept)  # the artifacts belong to all tests


def test_aliases_move_along_also_under_another_name(deployed: Deployed, weights: Path) -> None:
    client = client_of(deployed)
    for name in ("prod", "canary"):
        client.set_registered_model_alias("m", name, "1")
    client.copy_model_version(deployed.uri, "staging")
    client.set_registered_model_alias("staging", "live", "1")
    result = unlearned(deployed, trained_article(weights), move_aliases=True)
    assert [(m["model"], m["alias"], m["from"], m["to"]) for m in result.aliases_moved] == [
        ("m", "canary", "models:/m/1", "models:/m/2"),
        ("m", "prod", "models:/m/1", "models:/m/2"),
        ("staging", "live", "models:/staging/1", "models:/staging/2"),
    ]
    assert client.get_model_version_by_alias("m", "prod").version == 2
    live = client.get_model_version_by_alias("staging", "live")
    assert (live.version, live.source) == (2, "models:/m/2")
    (request,) = Ledger(deployed.settings.open_catalog()).requests()
    assert request.detail["aliases_moved"] == result.aliases_moved
    again = act.resume(deployed.settings, str(result.request_id), measure=False)
    assert again.aliases_moved == result.aliases_moved
    assert len(client.search_model_versions("name = 'staging'")) == 2


def test_moving_goes_on_after_an_interruption(
    deployed: Deployed, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    client = client_of(deployed)
    client.set_registered_model_alias("m", "prod", "1")
    client.copy_model_version(deployed.uri, "staging")
    client.set_registered_model_alias("staging", "live", "1")
    move = MlflowClient.set_registered_model_alias

    def dying(self: Any, name: str, alias: str, version: str) -> None:
        if name == "staging":
            raise KeyboardInterrupt
        move(self, name, alias, version)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", dying)
        with pytest.raises(KeyboardInterrupt):
            unlearned(deployed, trained_article(weights), move_aliases=True)
    (request,) = Ledger(deployed.settings.open_catalog()).requests()
    assert client.get_model_version_by_alias("m", "prod").version == 2
    result = act.resume(deployed.settings, request.request_id, measure=False)
    assert {(m["model"], m["alias"], m["from"]) for m in result.aliases_moved} == {
        ("m", "prod", "models:/m/1"),
        ("staging", "live", "models:/staging/1"),
    }
    assert len(client.search_model_versions("name = 'staging'")) == 2


def test_an_alias_on_a_later_version_stays(deployed: Deployed, weights: Path) -> None:
    first = unlearned(deployed, trained_article(weights))
    client = client_of(deployed)
    others = [key(n) for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout_of(weights)]
    unlearned(deployed, others[1])
    client.set_registered_model_alias("m", "prod", "3")
    result = act.resume(deployed.settings, str(first.request_id), move_aliases=True, measure=False)
    assert result.aliases_moved == []
    assert client.get_model_version_by_alias("m", "prod").version == 3


def test_what_the_corpus_still_holds(deployed: Deployed, weights: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    target = trained_article(weights)
    result = unlearned(deployed, target, dry_run=True)
    assert result.corpus_holds == {"snapshot": snapshot.id, "keys": [target]}
    registry = tmp_path / "registry"
    shutil.copytree(snapshot.path.parents[1], registry)
    commit_rows(Registry.open(registry), tmp_path / "staging", **text_rows({"web:other.example": ["some text"]}))
    moved = act.unlearn(
        type(deployed.settings)(
            registry=str(registry), catalog=deployed.settings.catalog, tracking=deployed.settings.tracking
        ),
        deployed.uri,
        [target],
        reason="x",
        dry_run=True,
    )
    assert moved.corpus_holds is None
