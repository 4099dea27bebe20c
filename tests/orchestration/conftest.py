"""One corpus, one trained model and one MLflow database for all tests; each test copies the database."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orchestration.settings import Settings
from registry.snapshot import Registry, Snapshot
from tests.orchestration.corpus import train_model, write_corpus

if TYPE_CHECKING:
    from training.serving.served_model import ServedModel


@pytest.fixture(scope="session")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry that holds the corpus; read-only by convention."""
    root = tmp_path_factory.mktemp("corpus") / "registry"
    write_corpus(root)
    return root


@pytest.fixture(scope="session")
def snapshot(corpus_root: Path) -> Snapshot:
    """The corpus."""
    return Registry.open(corpus_root).snapshot()


@pytest.fixture(scope="session")
def weights(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported weights of a model that has memorised the corpus."""
    return train_model(snapshot, tmp_path_factory.mktemp("model") / "weights")


@dataclasses.dataclass(frozen=True)
class Deployed:
    """A registered model, and the stores that it is in."""

    settings: Settings
    uri: str

    def load(self, uri: str, **options: Any) -> ServedModel:
        """Load a version as a command does."""
        from training.serving import flavor

        stores = {"tracking_uri": self.settings.tracking_uri, "catalog": self.settings.catalog}
        return flavor.load(uri, **(stores | options))


@pytest.fixture(scope="session")
def mlflow_template(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with the model as version 1 of `m`; to be copied, since making one takes seconds."""
    from training.serving import flavor
    from training.tracking import store

    folder = tmp_path_factory.mktemp("mlflow")
    tracking_uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = store.client(tracking_uri)
    experiment = client.create_experiment("test", artifact_location=str(folder / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    assert flavor.register(weights, model_name="m", run_id=run_id, tracking_uri=tracking_uri) == "models:/m/1"
    return folder / "mlflow.db"


@pytest.fixture
def deployed(corpus_root: Path, mlflow_template: Path, tmp_path: Path) -> Deployed:
    """The model as version 1 of `m` in an MLflow database and a catalogue of the test's own.

    The artifacts of all tests are in one folder: MLflow names each by a new id.
    """
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    settings = Settings(
        registry=str(corpus_root),
        catalog=f"sqlite:///{tmp_path / 'catalog.db'}",
        tracking=f"sqlite:///{tmp_path / 'mlflow.db'}",
    )
    settings.open_catalog().engine.dispose()
    return Deployed(settings, "models:/m/1")
