"""An imported model knows sources by mask ids: its folders refuse those, with or without the table beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from registry.errors import DamagedError, RefusedError
from registry.ids import SourceId
from tests.builders import small_model
from training.model.carried import NO_MASK
from training.serving.export.folder import export_version
from training.serving.folders import carried_by
from training.serving.in_force import InForce
from training.serving.version import ModelVersion, weights_digest, weights_id
from training.sinks.mask_ids import MASK_IDS_FILE, MaskIds

IDS_BT = torch.tensor([[5, 6, 7, 8]])
GONE, KEPT, NEVER = SourceId(1000), SourceId(2000), SourceId(3000)
MASKS = {GONE: 5, KEPT: 6}


@pytest.fixture
def imported(tmp_path: Path) -> ModelVersion:
    """A version of an imported model, whose sources have the mask ids MASKS."""
    folder = tmp_path / "weights"
    model = small_model(sink_scheme="reference-int32", sink_probability=0.2)
    model.save_pretrained(folder)
    MaskIds(np.array(list(MASKS)), np.array(list(MASKS.values()))).save(folder)
    layout, tensors = model.config.layout.to_dict(), weights_digest(folder)
    pointer = {
        "schema": 1,
        "snapshot": "ab" * 32,
        "registry": str(tmp_path / "gone"),
        "layout": layout,
        "heldout": [],
        "revoked": [],
        "weights": str(folder),
        "weights_sha256": tensors,
        "weights_id": weights_id(tensors, layout),
    }
    (folder / "nulls.json").write_text(json.dumps(pointer))
    return ModelVersion(
        uri="models:/imported/1",
        name="imported",
        version=1,
        run_id=None,
        request_id=None,
        experiment_id="0",
        tracking_uri="",
        pointer=pointer,
    )


def test_an_imported_model_is_exported_with_its_mask_ids(imported: ModelVersion, tmp_path: Path) -> None:
    found = InForce(revoked={GONE: "models:/imported/2", NEVER: "models:/imported/2"}, checked=False)
    export_version(imported, found, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["nulls_revoked"] == [f"{GONE:016x}", f"{NEVER:016x}"]
    assert config["nulls_revoked_masks"] == [MASKS[GONE], NO_MASK]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "without asking the catalogue" in card
    assert f"torch.tensor([{MASKS[GONE]}])" in card
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with pytest.raises(RefusedError, match="mask id 5 "):
        model(IDS_BT, source_ids=torch.tensor([MASKS[GONE]]))
    model(IDS_BT, source_ids=torch.tensor([MASKS[KEPT]]))
    model.save_pretrained(tmp_path / "tuned")
    assert not (tmp_path / "tuned" / MASK_IDS_FILE).exists()
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    with pytest.raises(RefusedError, match="mask id 5 "):
        tuned(IDS_BT, source_ids=torch.tensor([MASKS[GONE]]))


def test_without_its_table_an_imported_model_is_damaged(imported: ModelVersion, tmp_path: Path) -> None:
    (imported.weights / MASK_IDS_FILE).unlink()
    with pytest.raises(DamagedError):
        export_version(imported, InForce(revoked={GONE: ""}, checked=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pointer_that_cannot_be_read_or_draws_otherwise_is_damage(imported: ModelVersion) -> None:
    folder, layout = imported.weights, imported.layout.to_dict()
    found = carried_by(folder, None, layout, offline=True)
    assert found is not None
    assert (found.weights_id, found.revoked) == (imported.weights_id, ())
    with pytest.raises(DamagedError, match="draws sinks differently"):
        carried_by(folder, None, layout | {"seed": 9}, offline=True)
    for text in ("", "[1]"):
        (folder / "nulls.json").write_text(text)
        with pytest.raises(DamagedError):
            carried_by(folder, None, layout, offline=True)
    (folder / "nulls.json").unlink()
    assert carried_by(folder, None, layout) is None
