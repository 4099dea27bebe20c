"""A version's MLmodel file: pyfunc loads it by the module that it names, today's or the one before the move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml

from registry import ids
from registry.errors import RefusedError
from training.checkpoint import export
from training.config import TrainConfig
from training.data.tokenizer import train_tokenizer
from training.run.worker import build_model
from training.serving import flavor, mlmodel
from training.serving.router import Router

TEXTS = {7: "the orchard gives apples and pears", 9: "the engine of the ship burns coal"}
REVOKED = 9


@pytest.fixture(scope="module")
def pointer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pointer of a registered version, and the weights that it names."""
    folder = tmp_path_factory.mktemp("model") / "weights"
    config = TrainConfig.preset(
        "demo",
        vocab_size=300,
        context_length=128,
        model={"hidden_size": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "num_backbone": 16}
        | {"num_pool": 64, "num_sinks": 16},
    )
    tokenizer = train_tokenizer(TEXTS.values(), config.vocab_size)
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    pointer = {"snapshot": "ab" * 32, "registry": "", "heldout": [], "layout": model.config.layout.to_dict()}
    digest = export.export_weights(model, tokenizer, folder, pointer)
    Router.build(TEXTS.items()).save(folder / flavor.ROUTER_FILE)
    return pointer | {"weights": str(folder), "weights_sha256": digest, "revoked": [ids.format_id(REVOKED)]}


def test_the_module_that_loads_a_version_is_named_by_its_place_today(tmp_path: Path, pointer: dict[str, Any]) -> None:
    mlmodel.write(tmp_path, pointer, "m-1", None)
    fields = yaml.safe_load((tmp_path / "MLmodel").read_text())
    assert fields["flavors"]["python_function"]["loader_module"] == flavor.__name__ == "training.serving.flavor"
    assert json.loads((tmp_path / "nulls.json").read_text()) == pointer


@pytest.mark.parametrize("loader_module", ["training.serving.flavor", "training.flavor"])
def test_pyfunc_loads_a_version_by_the_module_it_names(
    tmp_path: Path, pointer: dict[str, Any], loader_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NULLS_OFFLINE", "1")  # this version has no registry, so no catalogue
    mlmodel.write(tmp_path, pointer, "m-1", None)
    fields = yaml.safe_load((tmp_path / "MLmodel").read_text())
    fields["flavors"]["python_function"]["loader_module"] = loader_module
    (tmp_path / "MLmodel").write_text(yaml.safe_dump(fields))
    loaded = mlflow.pyfunc.load_model(str(tmp_path))
    asked = {"prompt": "the orchard", "source": ids.format_id(7)}
    expected, _ = flavor._load_pyfunc(str(tmp_path)).served.generate("the orchard", source_id=7)
    assert loaded.predict([asked]) == [{"text": expected, "source": ids.format_id(7), "model_uri": "models:/m-1"}]
    with pytest.raises(RefusedError, match="unlearned"):
        loaded.predict([asked | {"source": ids.format_id(REVOKED)}])


def test_what_the_flavour_made_public_before_is_still_there() -> None:
    names = {"describe", "load", "register", "derive", "versions", "ModelVersion", "POINTER"}
    assert names <= set(flavor.__all__)
    assert all(hasattr(flavor, name) for name in flavor.__all__)
