"""A folder with all stores is moved or copied, or one version is downloaded: what lies beside the database is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest

from orchestration.settings import Settings
from orchestration.unlearning import unlearn
from registry import ids
from registry.errors import DamagedError, NotFoundError, RefusedError, UsageError
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, heldout_of, key, text
from training.serving import flavor
from training.tracking import store
from training.tracking.repoint import repoint


@pytest.fixture(scope="module")
def original_template(corpus_root: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with registry, runs, database and artifacts, as `nulls train` leaves it."""
    root = tmp_path_factory.mktemp("home") / "original"
    shutil.copytree(corpus_root, root / "nulls-registry")
    shutil.copytree(weights, root / "nulls-runs" / "m" / "run-1" / "weights")
    return root


def home(root: Path) -> Deployed:
    """The stores of a folder, as the commands find them when it is the current one."""
    return Deployed(
        Settings(registry=str(root / "nulls-registry"), tracking=f"sqlite:///{root / 'mlflow.db'}"), "models:/m/1"
    )


@pytest.fixture
def original(original_template: Path, tmp_path: Path, weights: Path) -> Deployed:
    """A model as version 1 of `m`, and version 2 that an unlearn made; the pointer says where the registry is."""
    root = Path(shutil.copytree(original_template, tmp_path / "original"))
    deployed = home(root)
    exported = root / "nulls-runs" / "m" / "run-1" / "weights"
    pointer = json.loads((exported / "nulls.json").read_text()) | {"registry": str(root / "nulls-registry")}
    (exported / "nulls.json").write_text(json.dumps(pointer))
    client = store.client(deployed.settings.tracking_uri)
    at = store.artifact_location(deployed.settings.tracking_uri)
    run_id = client.create_run(client.create_experiment("test", artifact_location=at)).info.run_id
    flavor.register(exported, model_name="m", run_id=run_id, tracking_uri=deployed.settings.tracking_uri)
    deployed.settings.open_catalog().engine.dispose()
    unlearn.unlearn(deployed.settings, deployed.uri, [key(numbers(weights)[0])], reason="x", measure=False)
    return deployed


def numbers(weights: Path) -> list[int]:
    """Return the numbers of articles that were trained and share no text with others."""
    return [n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout_of(weights)]


def root_of(deployed: Deployed) -> Path:
    """Return the folder of the stores."""
    return Path(str(deployed.settings.registry)).parent


def files_of(root: Path) -> dict[str, Any]:
    """Return the content of every file that is not a database."""
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and ".db" not in path.name}


def absolute_pointers(deployed: Deployed) -> None:
    """Make the pointers those of an earlier release, which were absolute and had no digest."""
    client = store.client(deployed.settings.tracking_uri)
    for version in flavor.versions("m", tracking_uri=deployed.settings.tracking_uri):
        folder = Path(client.get_model_version("m", str(version.version)).source.removeprefix("file://"))
        pointer = version.pointer | {"weights": str(version.weights), "registry": version.registry}
        (folder / "nulls.json").write_text(json.dumps(pointer))
        digest = flavor.pointer_digest(pointer)
        client.set_model_version_tag("m", str(version.version), "nulls.pointer", digest)
        model = folder / "MLmodel"
        model.write_text(model.read_text().replace(flavor.pointer_digest(version.pointer), digest))


def test_a_pointer_names_what_lies_under_the_store_relative_to_it(original: Deployed) -> None:
    for version in flavor.versions("m", tracking_uri=original.settings.tracking_uri):
        assert version.pointer["weights"] == "nulls-runs/m/run-1/weights"
        assert version.pointer["registry"] == "nulls-registry"
        assert version.weights == root_of(original) / "nulls-runs" / "m" / "run-1" / "weights"
        assert version.registry == str(root_of(original) / "nulls-registry")
        assert str(root_of(original)) not in json.dumps(version.pointer)


@pytest.mark.parametrize("pointers", ["relative", "absolute"])
@pytest.mark.parametrize("living", [False, True], ids=["moved", "copied beside the living original"])
def test_a_store_elsewhere_uses_and_writes_its_own_files(
    original: Deployed, weights: Path, tmp_path: Path, living: bool, pointers: str
) -> None:
    if pointers == "absolute":
        absolute_pointers(original)
    root, other = root_of(original), tmp_path / "elsewhere" / "deeper"
    shutil.copytree(root, other)
    before = files_of(root)
    if not living:
        shutil.rmtree(root)
    moved = home(other)
    gone, more = numbers(weights)[:2]
    for uri in ("models:/m/1", "models:/m/latest"):
        version = flavor.describe(uri, tracking_uri=moved.settings.tracking_uri)
        assert version.weights == other / "nulls-runs" / "m" / "run-1" / "weights"
        assert version.registry == str(other / "nulls-registry")
        served = flavor.load(uri, tracking_uri=moved.settings.tracking_uri)  # asks the catalogue that moved along
        assert served.in_force.checked
        assert served.generate(text(more)[:60], max_new_tokens=2)[1] == ids.source_id(key(more))
        with pytest.raises(RefusedError, match="unlearned"):
            served.generate("x", source_id=ids.source_id(key(gone)))

    made = unlearn.unlearn(moved.settings, "models:/m/2", [key(more)], reason="y", measure=False)
    source = store.client(moved.settings.tracking_uri).get_model_version("m", "3").source
    assert source.startswith(other.as_uri())
    assert (other / source.removeprefix(f"{other.as_uri()}/") / "nulls.json").is_file()
    with pytest.raises(RefusedError, match="unlearned"):
        moved.load(made.model_uri).generate("x", source_id=ids.source_id(key(more)))
    if living:
        assert files_of(root) == before, "nothing is written to the original"
        assert len(flavor.versions("m", tracking_uri=original.settings.tracking_uri)) == 2
        assert original.load("models:/m/2").generate("x", source_id=ids.source_id(key(more)), max_new_tokens=1)
    else:
        assert not root.exists()


def test_a_copy_reads_its_own_pointer_not_the_living_originals(original: Deployed, tmp_path: Path) -> None:
    other = Path(shutil.copytree(root_of(original), tmp_path / "copy"))
    for path in root_of(original).glob("mlartifacts/models/*/artifacts/nulls.json"):
        path.write_text("{}")
    assert len(flavor.versions("m", tracking_uri=home(other).settings.tracking_uri)) == 2
    with pytest.raises(DamagedError):
        flavor.versions("m", tracking_uri=original.settings.tracking_uri)


def test_repoint_makes_mlflows_own_paths_those_of_the_copy(original: Deployed, tmp_path: Path) -> None:
    root = root_of(original)
    other = Path(shutil.copytree(root, tmp_path / "copy"))
    uri = home(other).settings.tracking_uri
    client = store.client(uri)
    for dry_run in (True, False):
        counts = repoint(uri, dry_run=dry_run)
        assert counts["model_versions.source"] == counts["logged_models.artifact_location"] == 2
        expected = root if dry_run else other
        assert client.get_model_version("m", "2").source.startswith(expected.as_uri())
    assert not any(repoint(uri).values())
    run_id = client.get_model_version("m", "1").run_id
    assert client.get_run(run_id).info.artifact_uri.startswith(other.as_uri())
    assert not any(repoint(original.settings.tracking_uri).values()), "a store that did not move has nothing to change"
    shutil.rmtree(root)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        (row,) = mlflow.pyfunc.load_model("models:/m/2").predict("some", params={"max_new_tokens": 1})
    finally:
        mlflow.set_tracking_uri(before)
    assert row["model_uri"] == "models:/m/2"
    with pytest.raises(UsageError, match="server"):
        repoint("http://127.0.0.1:1")
    with pytest.raises(NotFoundError, match="no MLflow database"):
        repoint(f"sqlite:///{tmp_path / 'none.db'}")


def test_a_downloaded_version_needs_its_weights_and_says_so(
    original: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = store.client(original.settings.tracking_uri).get_model_version("m", "2").source
    downloaded = Path(shutil.copytree(source.removeprefix("file://"), tmp_path / "deploy" / "model"))
    exported = root_of(original) / "nulls-runs" / "m" / "run-1" / "weights"
    shutil.copytree(exported, tmp_path / "exported")
    shutil.copy(root_of(original) / "nulls-registry" / "catalog.db", tmp_path / "catalog.db")
    shutil.rmtree(root_of(original))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(RefusedError, match=r"catalogue cannot be asked.*NULLS_CATALOG"):
        mlflow.pyfunc.load_model(str(downloaded))
    with monkeypatch.context() as patch:
        patch.setenv("NULLS_OFFLINE", "1")
        with pytest.raises(DamagedError, match=r"weights are gone.*NULLS_WEIGHTS.*nulls export"):
            mlflow.pyfunc.load_model(str(downloaded))
    monkeypatch.setenv("NULLS_WEIGHTS", str(tmp_path / "exported"))
    for name, value in (("NULLS_CATALOG", f"sqlite:///{tmp_path / 'catalog.db'}"), ("NULLS_OFFLINE", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            (row,) = mlflow.pyfunc.load_model(str(downloaded)).predict("some", params={"max_new_tokens": 1})
            assert row["model_uri"].startswith("models:/m-")
    (tmp_path / "exported" / "model.safetensors").write_bytes(b"other")
    monkeypatch.setenv("NULLS_OFFLINE", "1")
    with pytest.raises(DamagedError, match="not what was registered"):
        mlflow.pyfunc.load_model(str(downloaded))
