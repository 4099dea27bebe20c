"""Gone is gone: every door, whichever way somebody takes to a source that was unlearned.

A way leads to something that can be loaded (a version's URI, or a folder of weights), after the source was unlearned
from version 1 and recorded in the catalogue. A door is what loads it and asks for the source. Each pair must end in a
refusal (exit code 4), in damage (3) where stored files were altered, or in "not found" (1) where nothing is left.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from orchestration.cli.main import app
from orchestration.settings import Settings
from orchestration.unlearning.audit import audit
from orchestration.unlearning.unlearn import unlearn
from registry import ids
from registry.errors import DamagedError, NotFoundError, RefusedError
from tests.orchestration.corpus import NUM_ARTICLES, heldout_of, key
from training.model.modeling_nulls import NullsForCausalLM
from training.serving import flavor
from training.serving.export.folder import export_version
from training.serving.in_force import in_force
from training.serving.registration import register_folder
from training.tracking import store
from training.tracking.repoint import repoint

FINAL = (RefusedError, DamagedError, NotFoundError)


@dataclasses.dataclass(frozen=True)
class Home:
    """A folder with all stores, a model in it as `models:/m/1`, and one source that was unlearned from it."""

    root: Path
    settings: Settings
    gone: str
    kept: str
    monkeypatch: pytest.MonkeyPatch

    @property
    def client(self) -> MlflowClient:
        return store.client(self.settings.tracking_uri)

    @property
    def weights(self) -> Path:
        return self.root / "runs" / "weights"

    def pointers(self) -> list[Path]:
        return sorted(self.root.glob("mlartifacts/**/nulls.json"))


def stores_of(root: Path) -> Settings:
    return Settings(
        registry=str(root / "registry"),
        catalog=f"sqlite:///{root / 'registry' / 'catalog.db'}",
        tracking=f"sqlite:///{root / 'mlflow.db'}",
    )


@pytest.fixture(scope="module")
def template(
    corpus_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str, str]]:
    root = tmp_path_factory.mktemp("doors") / "home"
    shutil.copytree(corpus_root, root / "registry")
    shutil.copytree(weights, root / "runs" / "weights")
    pointer = json.loads((root / "runs/weights/nulls.json").read_text()) | {"registry": str(root / "registry")}
    (root / "runs/weights/nulls.json").write_text(json.dumps(pointer))
    settings = stores_of(root)
    client = store.client(settings.tracking_uri)
    experiment = client.create_experiment("doors", store.artifact_location(settings.tracking_uri))
    run_id = client.create_run(experiment).info.run_id
    flavor.register(root / "runs/weights", model_name="m", run_id=run_id, tracking_uri=settings.tracking_uri)
    client.set_registered_model_alias("m", "production", "1")
    client.copy_model_version("models:/m/1", "promoted")
    trained = [n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout_of(weights)]
    unlearn(settings, "models:/m/1", [key(trained[0])], reason="asked", measure=False)
    return root, key(trained[0]), key(trained[1])


@pytest.fixture
def home(template: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A copy of the template, at a path of its own."""
    original, gone, kept = template
    root = Path(shutil.copytree(original, tmp_path / "home"))
    repoint(f"sqlite:///{root / 'mlflow.db'}")  # MLflow's own loader would read the template's artifacts
    monkeypatch.chdir(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
    monkeypatch.setenv("NULLS_REGISTRY", str(root / "registry"))
    return Home(root, stores_of(root), gone, kept, monkeypatch)


# ways: each returns a URI or a folder


def the_new_version(home: Home) -> str:
    return "models:/m/2"


def the_version_before(home: Home) -> str:
    return "models:/m/1"


def an_alias_that_stayed_behind(home: Home) -> str:
    return "models:/m@production"


def a_copy_that_was_promoted_before(home: Home) -> str:
    return "models:/promoted/1"


def a_copy_that_is_promoted_after(home: Home) -> str:
    home.client.copy_model_version("models:/m/1", "later")
    return "models:/later/1"


def a_rename(home: Home) -> str:
    home.client.rename_registered_model("m", "renamed")
    return "models:/renamed/1"


def the_unlearned_version_deleted(home: Home) -> str:
    home.client.delete_model_version("m", "2")
    return "models:/m/1"


def the_model_deleted_and_only_a_copy_left(home: Home) -> str:
    home.client.delete_registered_model("m")
    return "models:/promoted/1"


def the_model_deleted_and_registered_again(home: Home) -> str:
    client = home.client
    client.delete_registered_model("m")
    client.delete_registered_model("promoted")
    experiment = client.get_experiment_by_name("doors")
    run_id = client.create_run(experiment.experiment_id).info.run_id
    uri = home.settings.tracking_uri
    return flavor.register(home.weights, model_name="anew", run_id=run_id, tracking_uri=uri)


def the_pointer_edited(home: Home) -> str:
    edited = 0
    for path in home.pointers():
        pointer = json.loads(path.read_text())
        edited += bool(pointer["revoked"])
        path.write_text(json.dumps(pointer | {"revoked": []}))
    assert edited == 1
    return "models:/m/2"


def the_layout_in_the_pointer_edited(home: Home) -> str:
    for path in home.pointers():
        pointer = json.loads(path.read_text())
        pointer["layout"]["seed"] += 1
        path.write_text(json.dumps(pointer))
    return "models:/m/1"


def the_configuration_edited(home: Home) -> str:
    path = home.weights / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sink_seed": 7}))
    return "models:/m/1"


def the_store_moved(home: Home) -> str:
    moved = home.root.with_name("moved")
    home.root.rename(moved)
    repoint(f"sqlite:///{moved / 'mlflow.db'}")  # `nulls repoint`: MLflow's own loader knows absolute paths only
    home.monkeypatch.chdir(moved)
    home.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved / 'mlflow.db'}")
    home.monkeypatch.setenv("NULLS_REGISTRY", str(moved / "registry"))
    object.__setattr__(home, "root", moved)
    object.__setattr__(home, "settings", stores_of(moved))
    return "models:/m/1"


def the_run_folder(home: Home) -> Path:
    return home.weights


def an_exported_folder(home: Home) -> Path:
    version = flavor.describe("models:/m/1", tracking_uri=home.settings.tracking_uri)
    found = in_force(version, catalog=home.settings.catalog)
    export_version(version, found, home.root / "exported", registry=home.settings.registry)
    return home.root / "exported"


def an_exported_folder_whose_list_is_edited(home: Home) -> Path:
    folder = an_exported_folder(home)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"nulls_revoked": [], "nulls_revoked_masks": []}))
    return folder


def a_fine_tune(home: Home) -> Path:
    model = NullsForCausalLM.from_pretrained(an_exported_folder(home))
    with torch.no_grad():
        model.lm_head.weight += 0.01
    folder = home.root / "tuned"
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (home.root / "exported" / name).exists():
            shutil.copy(home.root / "exported" / name, folder)
    return folder


def a_fine_tune_registered_again(home: Home) -> str:
    client = home.client
    experiment = client.get_experiment_by_name("doors")
    assert experiment is not None
    return register_folder(
        a_fine_tune(home), model_name="tuned", tracking_uri=home.settings.tracking_uri, catalog=home.settings.catalog
    )


Way = Callable[[Home], "str | Path"]
WAYS: list[Way] = [
    the_new_version,
    the_version_before,
    an_alias_that_stayed_behind,
    a_copy_that_was_promoted_before,
    a_copy_that_is_promoted_after,
    a_rename,
    the_unlearned_version_deleted,
    the_model_deleted_and_only_a_copy_left,
    the_model_deleted_and_registered_again,
    the_pointer_edited,
    the_layout_in_the_pointer_edited,
    the_configuration_edited,
    the_store_moved,
    the_run_folder,
    an_exported_folder,
    an_exported_folder_whose_list_is_edited,
    a_fine_tune,
    a_fine_tune_registered_again,
]


# doors: each asks for a source of a version, by its URI, and returns the answer


def load_and_generate(home: Home, uri: str, source: str) -> Any:
    served = flavor.load(uri, tracking_uri=home.settings.tracking_uri, catalog=home.settings.catalog)
    return served.generate("a", source_id=ids.source_id(source), max_new_tokens=2)


def the_command_generate(home: Home, uri: str, source: str) -> Any:
    return run_command("generate", uri, "a", "--source", source, "--max-new-tokens", "2")


def pyfunc_predict(home: Home, uri: str, source: str) -> Any:
    mlflow.set_tracking_uri(home.settings.tracking_uri)
    model = mlflow.pyfunc.load_model(uri)
    asked = [{"prompt": "a", "source": ids.format_id(ids.source_id(source))}]
    return model.predict(asked, params={"max_new_tokens": 2})


def routing(home: Home, uri: str, source: str) -> Any:
    """The prompt is the source's own text, so nothing is closer; its sinks must not be used all the same."""
    served = flavor.load(uri, tracking_uri=home.settings.tracking_uri, catalog=home.settings.catalog)
    (text,) = [t for _, t in home.settings.open_registry().snapshot().texts(ids.source_id(source))][:1]
    if served.route(text[:100]) != ids.source_id(source):
        raise RefusedError("routed elsewhere")
    return text


def the_export(home: Home, uri: str, source: str) -> Any:
    version = flavor.describe(uri, tracking_uri=home.settings.tracking_uri)
    found = in_force(version, catalog=home.settings.catalog)
    folder = home.root / "out"
    export_version(version, found, folder, registry=home.settings.registry)
    return from_pretrained(home, folder, source)


DOORS = [load_and_generate, the_command_generate, pyfunc_predict, routing, the_export]


def from_pretrained(home: Home, folder: Path, source: str) -> Any:
    return _forward(NullsForCausalLM.from_pretrained(folder), source)


def auto_from_pretrained(home: Home, folder: Path, source: str) -> Any:
    return _forward(AutoModelForCausalLM.from_pretrained(folder), source)


FOLDER_DOORS = [from_pretrained, auto_from_pretrained]


def _forward(model: Any, source: str) -> Any:
    with torch.no_grad():
        return model(torch.tensor([[1, 2, 3]]), source_ids=torch.tensor([ids.source_id(source)])).logits


def run_command(*arguments: str) -> Any:
    """Run a command in this process, and raise what its exit code means."""
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, list(arguments))
    code = done.exit_code
    if isinstance(done.exception, FINAL):
        raise done.exception
    kinds = {1: NotFoundError, 3: DamagedError, 4: RefusedError}
    if code:
        raise kinds[code](done.output)
    return done.output


def doors_of(place: str | Path) -> list[Any]:
    return FOLDER_DOORS if isinstance(place, Path) else DOORS


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_door_refuses_whichever_way_is_taken(home: Home, way: Way) -> None:
    place = way(home)
    altered = "edited" in way.__name__
    for door in doors_of(place):
        shutil.rmtree(home.root / "out", ignore_errors=True)
        with pytest.raises(FINAL) as caught:
            door(home, place, home.gone)
        if altered:
            assert isinstance(caught.value, DamagedError), (door.__name__, caught.value)
        else:
            assert isinstance(caught.value, RefusedError), (door.__name__, caught.value)


@pytest.mark.parametrize(
    "way", [the_new_version, the_version_before, a_fine_tune_registered_again], ids=lambda way: way.__name__
)
def test_other_sources_pass_each_door(home: Home, way: Way) -> None:
    """Otherwise doors that are always shut would pass the test above."""
    place = way(home)
    for door in doors_of(place):
        shutil.rmtree(home.root / "out", ignore_errors=True)
        assert door(home, place, home.kept) is not None


def test_an_audit_counts_the_source_as_revoked_whichever_version_it_is_given(home: Home) -> None:
    for uri in ("models:/m/1", "models:/promoted/1"):
        (row,) = audit(home.settings, uri, [home.gone])["sources"]
        assert row["revoked"]


def test_where_the_catalogue_cannot_be_asked_nothing_is_loaded(home: Home) -> None:
    (home.root / "registry" / "catalog.db").unlink()
    for door in (load_and_generate, the_command_generate, pyfunc_predict):
        with pytest.raises(RefusedError, match="cannot be asked"):
            door(home, "models:/m/2", home.kept)
    assert not (home.root / "registry" / "catalog.db").exists()
    output = run_command("generate", "models:/m/2", "a", "--source", home.kept, "--offline", "--max-new-tokens", "2")
    assert output
    with pytest.raises(RefusedError, match="unlearned"):
        run_command("generate", "models:/m/2", "a", "--source", home.gone, "--offline", "--max-new-tokens", "2")
