"""One corpus and one trained model for all tests of orchestration; each test registers the model anew."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from orchestration.settings import Settings
from registry.snapshot import Registry, Snapshot
from tests.orchestration.corpus import train_model, write_corpus


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
    """Exported weights that know the corpus by heart."""
    return train_model(snapshot, tmp_path_factory.mktemp("model") / "weights")


@dataclasses.dataclass(frozen=True)
class Deployed:
    """A registered model, and where things are."""

    settings: Settings
    uri: str


@pytest.fixture
def deployed(corpus_root: Path, weights: Path, tmp_path: Path) -> Deployed:
    """The model as version 1 of `m` in an MLflow store and a catalogue of the test's own."""
    from training.serving import flavor
    from training.tracking import store

    settings = Settings(
        registry=str(corpus_root),
        catalog=f"sqlite:///{tmp_path / 'catalog.db'}",
        tracking=f"sqlite:///{tmp_path / 'mlflow.db'}",
    )
    client = store.client(settings.tracking_uri)
    experiment = client.create_experiment("test", artifact_location=str(tmp_path / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    uri = flavor.register(weights, model_name="m", run_id=run_id, tracking_uri=settings.tracking_uri)
    return Deployed(settings, uri)
