"""A version's weights come from their own folder, from a remote copy, or not at all, with an error that says why."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from registry.errors import DamagedError
from registry.storage.s3 import S3Path
from tests.s3 import bucket, keys, proxy, put, s3_proxy, s3_server  # noqa: F401 - fixtures
from training.checkpoint.export import weights_digest
from training.checkpoint.remote_copy import RemoteRuns
from training.serving.version import ModelVersion
from training.serving.weights import local_weights


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder laid out as training exports it; the bytes do not matter here."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "router.npz").write_bytes(b"router")
    return folder


def version(folder: Path, copy: str | None = None) -> ModelVersion:
    pointer = {"weights": str(folder), "weights_sha256": weights_digest(folder)}
    return ModelVersion(
        uri="models:/m/1",
        name="m",
        version=1,
        run_id=None,
        request_id=None,
        experiment_id="0",
        tracking_uri="",
        pointer=pointer if copy is None else pointer | {"weights_copy": copy},
    )


@pytest.fixture
def copied(exported: Path, bucket: S3Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelVersion:  # noqa: F811
    """A version with a remote copy, on a machine that lost the folder."""
    monkeypatch.setenv("NULLS_WORK", str(tmp_path / "work"))
    copy = RemoteRuns.of(f"s3://{bucket.bucket}/runs", "m").of_run("run-001").put_weights(exported)
    found = version(exported, copy)
    assert local_weights(found) == exported
    shutil.rmtree(exported)
    return found


def test_without_a_copy_what_is_gone_or_changed_is_an_error(exported: Path) -> None:
    found = version(exported)
    (exported / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DamagedError, match="not what was registered"):
        local_weights(found)
    shutil.rmtree(exported)
    with pytest.raises(DamagedError, match="weights are gone"):
        local_weights(found)


def test_a_copy_is_downloaded_once(copied: ModelVersion) -> None:
    folder = local_weights(copied)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", "router.npz"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    for key in keys(S3Path.parse(str(copied.weights_copy))):
        S3Path(S3Path.parse(str(copied.weights_copy)).bucket, key).delete()
    assert local_weights(copied) == folder


def test_a_copy_that_changed_is_an_error(copied: ModelVersion) -> None:
    put(S3Path.parse(str(copied.weights_copy)) / "model.safetensors", b"other")
    with pytest.raises(DamagedError, match="not what was registered"):
        local_weights(copied)


def test_a_copy_that_is_gone_is_an_error(copied: ModelVersion) -> None:
    copy = S3Path.parse(str(copied.weights_copy))
    for key in keys(copy):
        S3Path(copy.bucket, key).delete()
    with pytest.raises(DamagedError, match=r"gone, from .* and from s3://"):
        local_weights(copied)
