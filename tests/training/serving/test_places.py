"""Paths of a store that was moved: beside the database first, then as recorded."""

from __future__ import annotations

from pathlib import Path

from training.serving import places


def test_what_lies_under_the_folder_of_the_database_is_relative(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'a' / 'mlflow.db'}"
    assert places.relative(str(tmp_path / "a" / "runs" / "m"), store) == "runs/m"
    assert places.relative(str(tmp_path / "b"), store) == str(tmp_path / "b")
    assert places.relative(str(tmp_path / "a"), store) == str(tmp_path / "a")
    assert places.relative("s3://bucket/runs", store) == "s3://bucket/runs"
    assert places.relative(str(tmp_path / "a" / "runs"), "http://server") == str(tmp_path / "a" / "runs")


def test_a_copy_finds_its_own_files_beside_a_living_original(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    for root in (original, copy):
        (root / "runs" / "m").mkdir(parents=True)
    recorded = str(original / "runs" / "m")
    assert places.find(recorded, [copy], Path.is_dir) == copy / "runs" / "m"
    assert places.find((original / "runs" / "m").as_uri(), [copy], Path.is_dir) == copy / "runs" / "m"
    assert places.find("runs/m", [copy], Path.is_dir) == copy / "runs" / "m"
    (copy / "runs" / "m").rmdir()
    assert places.find(recorded, [copy], lambda path: path.name == "m" and path.is_dir()) == original / "runs" / "m"
    assert places.find("s3://bucket/m", [copy], Path.is_dir) is None


def test_new_artifacts_go_beside_the_database_that_names_a_folder_elsewhere(tmp_path: Path) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    (original / "mlartifacts").mkdir(parents=True)
    root = (original / "mlartifacts").as_uri()
    at = f"{root}/models/m-1/artifacts"
    assert places.own_artifacts(at, root, f"sqlite:///{original / 'mlflow.db'}") == at
    assert places.own_artifacts("s3://b/m-1", "s3://b", f"sqlite:///{copy / 'mlflow.db'}") == "s3://b/m-1"
    (copy / "mlartifacts").mkdir(parents=True)
    own = (copy / "mlartifacts" / "models" / "m-1" / "artifacts").as_uri()
    assert places.own_artifacts(at, root, f"sqlite:///{copy / 'mlflow.db'}") == own
