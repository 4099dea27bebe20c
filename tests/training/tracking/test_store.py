"""The door to MLflow: which store a call means."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from training.tracking import store


@pytest.mark.parametrize("configured", [None, "sqlite:////elsewhere/mlflow.db"])
def test_a_store_that_is_named_once_is_not_the_default_of_later_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if configured:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", configured)
    default, named = store.tracking_uri(), f"sqlite:///{tmp_path}/named.db"
    store.client(named)
    assert mlflow.get_tracking_uri() == named
    assert store.tracking_uri() == default == (configured or f"sqlite:///{tmp_path}/mlflow.db")
