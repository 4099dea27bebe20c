"""Erasing from weights and a checkpoint: zeros in the sources' rows, all else bit for bit as before, and a proof."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader

from registry import ids
from registry.errors import DamagedError, RefusedError
from tests.builders import small_model
from training.checkpoint import dcp
from training.checkpoint.dcp import RunState
from training.checkpoint.export import weights_digest
from training.config import OptimConfig
from training.data.packing import LoaderState
from training.erasure import weights as erased_weights
from training.erasure.cost import zeroed
from training.erasure.erase import Erased, erase, rows_of
from training.model.modeling_nulls import NullsConfig, NullsForCausalLM
from training.optim import NullsAdamW, build_optimizer
from training.serving.router import Router
from training.serving.version import ROUTER_FILE, ModelVersion
from training.sinks.mask_ids import MaskIds

TEXTS = {5: "the orchard gives apples", 9: "the engine burns coal", 31: "ships sail with the wind"}
POINTER = {"snapshot": "ab", "registry": "", "heldout": [], "revoked": []}
STATE = RunState(
    step=3, loader=LoaderState(snapshot="ab" * 32, seed=0, epoch=1, row=4), config="c", tokenizer="t", num_targets=9
)


def trained() -> tuple[NullsForCausalLM, NullsAdamW]:
    """A model after three steps in which all three sources were active."""
    model = small_model(eos_token_id=1).train()
    optimizer = build_optimizer(model, OptimConfig())
    for step in range(3):
        ids_BT = torch.randint(2, 61, (3, 8), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(ids_BT, labels=ids_BT, source_ids=torch.tensor(list(TEXTS)), use_cache=False).loss.backward()
        optimizer.step()
    return model, optimizer


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with a checkpoint and exported weights."""
    model, optimizer = trained()
    dcp.save(dcp.directory_of(tmp_path / "run" / "attempt-001", 3), model, optimizer, STATE)
    folder = tmp_path / "run" / "weights"
    model.save_pretrained(folder)
    Router.build(TEXTS.items()).save(folder / ROUTER_FILE)
    (folder / "nulls.json").write_text(json.dumps(POINTER))
    return tmp_path / "run"


def version_of(folder: Path, **pointer: object) -> ModelVersion:
    layout = NullsConfig.from_pretrained(folder).layout.to_dict()
    return ModelVersion(
        uri="models:/m/1",
        name="m",
        version=1,
        run_id=None,
        request_id=None,
        experiment_id="0",
        tracking_uri="",
        pointer={"weights": str(folder), "weights_sha256": weights_digest(folder), "layout": layout, "revoked": []}
        | pointer,
    )


@pytest.fixture
def version(run_dir: Path) -> ModelVersion:
    """The run's model."""
    return version_of(run_dir / "weights")


@pytest.fixture
def erased(version: ModelVersion) -> Erased:
    """The model without source 5."""
    return erase(version, [5])


def test_the_rows_are_zero_and_all_else_is_the_same_bit_for_bit(version: ModelVersion, erased: Erased) -> None:
    rows = rows_of(version, version.weights, [5]).rows_LP
    before, after = (load_file(folder / "model.safetensors") for folder in (version.weights, erased.weights))
    assert before.keys() == after.keys()
    pools = [name for name in before if "sink_" in name]
    assert len(pools) == 6
    for name, tensor in before.items():
        expected = tensor.clone()
        if name in pools:
            expected[torch.from_numpy(rows[int(name.split(".")[2])])] = 0
            assert not torch.equal(expected, tensor), "nothing was there to erase"
        assert torch.equal(after[name], expected), name
    assert rows.sum(1).tolist() == [8, 8]
    for path in version.weights.iterdir():
        same = path.read_bytes() == (erased.weights / path.name).read_bytes()
        assert same == (path.name not in ("model.safetensors", "nulls.json", ROUTER_FILE)), path.name


def test_the_proof_says_what_was_read_again(version: ModelVersion, erased: Erased) -> None:
    proof = erased.proof
    assert proof["layers"] == [
        {"layer": layer, "rows_expected": 8, "rows_zero": 8, "rows_zero_before": 0} for layer in range(2)
    ]
    assert proof["weights_sha256"] == {"before": version.weights_digest, "after": weights_digest(erased.weights)}
    assert proof["untouched_sha256"]["before"] == proof["untouched_sha256"]["after"]
    assert proof["holds"]
    noted = json.loads((erased.weights / "nulls.json").read_text())
    assert noted == {**POINTER, "erased": [ids.format_id(5)], "erased_from": version.weights_digest}


@pytest.mark.parametrize("harm", ["row", "other", "config"])
def test_the_proof_fails_on_an_artefact_that_is_not_so(version: ModelVersion, erased: Erased, harm: str) -> None:
    path = erased.weights / "model.safetensors"
    tensors = load_file(path)
    rows = rows_of(version, version.weights, [5])
    if harm == "row":
        tensors["model.layers.1.mlp.sink_up"][int(np.flatnonzero(rows.rows_LP[1])[0]), 3] = 1e-30
    elif harm == "other":
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] += 1
    else:
        (erased.weights / "config.json").write_text("{}")
    save_file(tensors, path, metadata={"format": "pt"})
    found = erased_weights.compare(version.weights, erased.weights, rows)
    assert not found["holds"]
    assert [layer["rows_zero"] for layer in found["layers"]] == ([8, 7] if harm == "row" else [8, 8])
    with pytest.raises(DamagedError, match="delete it and repeat"):
        erase(version, [5])


def test_erasing_twice_makes_it_once(version: ModelVersion, erased: Erased) -> None:
    made = (erased.weights / "model.safetensors").stat()
    again = erase(version, [5])
    assert again == erased
    assert (again.weights / "model.safetensors").stat().st_ino == made.st_ino
    other = erase(version, [9])
    assert other.weights != erased.weights
    assert sorted(path.name for path in version.weights.parent.glob("erased-*")) == sorted(
        (other.weights.parent.name, erased.weights.parent.name)
    )


def test_a_second_erasure_adds_to_the_first(version: ModelVersion, erased: Erased) -> None:
    second = erase(version_of(erased.weights), [9])
    assert second.weights.parent.parent == version.weights.parent, "beside the first, not inside it"
    noted = json.loads((second.weights / "nulls.json").read_text())
    assert noted["erased"] == [ids.format_id(5), ids.format_id(9)]
    assert noted["erased_from"] == erased.weights_sha256
    both = rows_of(version, version.weights, [5, 9]).rows_LP
    gate = load_file(second.weights / "model.safetensors")["model.layers.0.mlp.sink_gate"]
    assert ((gate == 0).all(1).numpy() == both[0]).all()
    assert second.proof["checkpoint"]["holds"], "the checkpoint of the first erasure is erased again"


def test_the_router_forgets_the_words_and_knows_the_source(erased: Erased) -> None:
    router = Router.load(erased.weights / ROUTER_FILE)
    assert router.source_ids_N.tolist() == sorted(TEXTS)
    assert router.vectors[0].nnz == 0
    assert router.closest("orchard apples") != 5
    assert router.closest("engine coal") == 9


def test_memory_and_artefact_are_the_same_model(version: ModelVersion, erased: Erased) -> None:
    before, after = (
        NullsForCausalLM.from_pretrained(folder, offline=True).eval() for folder in (version.weights, erased.weights)
    )
    ids_BT, sources = torch.arange(2, 14).view(1, 12), torch.tensor([9])
    on = before(ids_BT, source_ids=sources).logits
    with torch.no_grad(), zeroed(before, rows_of(version, version.weights, [5])):
        assert torch.equal(before(ids_BT, source_ids=sources).logits, after(ids_BT, source_ids=sources).logits)
    assert torch.equal(before(ids_BT, source_ids=sources).logits, on), "the rows are put back"
    with pytest.raises(RefusedError, match="unlearned"):
        after(ids_BT, source_ids=torch.tensor([5]))


def test_the_checkpoint_is_one_that_never_trained_the_rows(
    run_dir: Path, version: ModelVersion, erased: Erased
) -> None:
    found = erased.proof["checkpoint"]
    assert found["holds"]
    kinds = found["values_left"]
    # 8 rows in each of 2 layers and 3 matrices, in weights and state; other sources trained on after none of them.
    assert {kind: count["before"] for kind, count in kinds.items()} == dict.fromkeys(kinds, 48)
    assert {kind: count["after"] for kind, count in kinds.items()} == dict.fromkeys(kinds, 0)
    assert dcp.latest(run_dir) == Path(found["before"]), "the run's own checkpoint is still its last"
    assert dcp.latest(erased.weights.parent) == Path(found["after"])

    model, optimizer = trained()
    assert dcp.load(Path(found["after"]), model, optimizer) == STATE
    saved = load_file(erased.weights / "model.safetensors")
    rows = torch.from_numpy(rows_of(version, version.weights, [5]).rows_LP)
    fresh, fresh_optimizer = trained()
    for (name, ours), (_, theirs) in zip(model.named_parameters(), fresh.named_parameters(), strict=True):
        if name in saved:
            assert torch.equal(ours, saved[name]), name
        for kind, tensor in optimizer.state[ours].items():
            expected = fresh_optimizer.state[theirs][kind].clone()
            if "sink_" in name:
                expected[rows[int(name.split(".")[2])]] = 0
            assert torch.equal(tensor, expected), (name, kind)


def test_a_sharded_checkpoint_is_erased_by_the_row_at_which_a_part_begins(
    version: ModelVersion, erased: Erased, tmp_path: Path
) -> None:
    from torch.distributed.checkpoint.metadata import MetadataIndex

    from training.erasure.checkpoint import _pool_entry
    from training.erasure.rows import ErasedRows

    whole = FileSystemReader(erased.proof["checkpoint"]["after"]).read_metadata()
    assert any(index.offset == torch.Size([0, 0]) for index in whole.storage_data)
    rows = ErasedRows(np.eye(2, 40, k=25, dtype=np.bool_))
    part, path = torch.arange(10.0), tmp_path / "part.pt"
    torch.save(part, path)
    index = MetadataIndex("optimizer.state.model.layers.0.mlp.sink_up.step", torch.Size([20]))
    _, mine = _pool_entry(index, path.read_bytes(), rows)
    assert np.flatnonzero(mine).tolist() == [5]
    with pytest.raises(DamagedError, match="rows to 42"):
        _pool_entry(MetadataIndex(index.fqn, torch.Size([32])), path.read_bytes(), rows)


def test_without_a_checkpoint_the_proof_says_so(version: ModelVersion, tmp_path: Path) -> None:
    alone = tmp_path / "alone" / "weights"
    alone.parent.mkdir()
    version.weights.rename(alone)
    proof = erase(version_of(alone), [5]).proof
    assert proof["checkpoint"] is None
    assert "no complete checkpoint" in proof["checkpoint_reason"]
    assert proof["holds"]


def test_an_imported_model_is_erased_by_mask_ids(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    small_model(sink_scheme="reference-int64", sink_probability=0.2, eos_token_id=1).save_pretrained(folder)
    MaskIds(np.array([5, 9], np.int64), np.array([300, 301], np.int64)).save(folder)
    (folder / "nulls.json").write_text("{}")
    version = version_of(folder)
    on = version.layout.mask(np.array([301]), 0)[0]
    found = erase(version, [9])
    gate = load_file(found.weights / "model.safetensors")["model.layers.1.mlp.sink_gate"]
    assert ((gate == 0).all(1).numpy() == on).all()
    assert 0 < on.sum() < 40


def test_no_source_is_refused(version: ModelVersion) -> None:
    with pytest.raises(RefusedError, match="no source"):
        erase(version, [])
