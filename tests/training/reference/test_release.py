"""An imported checkpoint has the same logits as the reference's own computation, or is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from registry.errors import DamagedError, InputError, NullsError, RefusedError, UsageError
from tests.training.reference import release_files as release
from tests.training.reference.release_files import SHAPES, TITLES, VOCAB, config, weights, write_release
from training.data.tokenizer import load_tokenizer
from training.model.modeling_nulls import NullsForCausalLM
from training.reference import convert
from training.reference.release import inspect
from training.sinks.mask_ids import MaskIds

TOKENS_T = torch.tensor([5, 17, 300, 2, 2, 90, 211, 4, 33, 8, 120])


def imported(folder: Path, scheme: str = "reference-int32", **options: Any) -> NullsForCausalLM:
    """The model of a release, converted and loaded."""
    found = inspect(folder, **options)
    source_ids = np.arange(len(TITLES))
    convert.convert(
        found,
        scheme,
        folder / "out",
        tokenizer=load_tokenizer(folder),
        mask_ids=MaskIds(source_ids, source_ids + found.id_offset),
        nulls={"layout": found.layout(scheme).to_dict()},
    )
    model: NullsForCausalLM = NullsForCausalLM.from_pretrained(folder / "out", offline=True).eval()
    return model


def full_mask(fields: dict[str, Any], mask_id: int | None, bits: int) -> Tensor:
    """A mask over all neurons: the backbone on, the pool as the reference draws it."""
    backbone = int(fields["intermediate_size"] * fields["p_gen"])
    num_pool = fields["intermediate_size"] - backbone
    sinks = [False] * num_pool if mask_id is None else release.mask(mask_id, num_pool, fields["p_mem"], bits)
    return torch.tensor([True] * backbone + sinks).float()


@torch.no_grad()
def largest_difference(model: NullsForCausalLM, tensors: dict[str, Tensor], fields: dict[str, Any], bits: int) -> float:
    """The largest difference between the two computations' logits: over ids, and without one.

    65536 switches on every sink in int32.
    """
    worst = 0.0
    for mask_id in (None, VOCAB, VOCAB + 1, 49152, 65536, 131073, 6_000_000):
        expected_TV = release.dense_logits(tensors, fields, TOKENS_T, full_mask(fields, mask_id, bits))
        source_ids = None if mask_id is None else torch.tensor([mask_id])
        got_TV = model(TOKENS_T[None], source_ids=source_ids).logits[0]
        worst = max(worst, float((got_TV - expected_TV).abs().max()))
    return worst


@pytest.mark.parametrize("scheme", ["reference-int32", "reference-int64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_references(tmp_path: Path, shape: str, scheme: str) -> None:
    folder, bits = write_release(tmp_path, SHAPES[shape]), int(scheme[-2:])
    model, tensors, fields = imported(folder, scheme), weights(SHAPES[shape]), config(SHAPES[shape])
    assert model.dtype == torch.float32
    assert largest_difference(model, tensors, fields, bits) < 1e-5
    # Not vacuous: masks matter, the two schemes differ, and so do sinks and none.
    masks = {tuple(full_mask(fields, n, b).tolist()) for n in (None, 131073) for b in (32, 64)}
    assert len(masks) == 3
    on, off = (model.requires_grad_(False)(TOKENS_T[None], source_ids=s).logits for s in (torch.tensor([131073]), None))
    assert float((on - off).abs().max()) > 0.01


def test_names_may_be_wrapped_compiled_tied_or_of_an_older_litgpt(tmp_path: Path) -> None:
    shape, fields = SHAPES["grouped"], config(SHAPES["grouped"])
    tensors = weights(shape)
    compiled = {"model": {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, "iter_num": 7}
    assert (
        largest_difference(imported(write_release(tmp_path / "a", shape, tensors=compiled)), tensors, fields, 32) < 1e-5
    )

    tied = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    model = imported(write_release(tmp_path / "b", shape, tensors=tied))
    assert model.config.tie_word_embeddings
    assert largest_difference(model, tied, fields, 32) < 1e-5
    one_memory = tied | {"lm_head.weight": tied["transformer.wte.weight"]}
    assert inspect(write_release(tmp_path / "c", shape, tensors=one_memory)).is_tied

    assert (
        largest_difference(
            imported(write_release(tmp_path / "d", shape, tensors=_interleaved(tensors, shape))), tensors, fields, 32
        )
        < 1e-5
    )


def _interleaved(tensors: dict[str, Tensor], shape: dict[str, int]) -> dict[str, Tensor]:
    """Attention's input as litgpt stored it until 0.5.4: under another name, group by group."""
    groups, size = shape["n_query_groups"], shape["head_size"]
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith("attn.qkv.weight"):
            found[name] = tensor
            continue
        q, k, v = tensor.split([shape["n_head"] * size, groups * size, groups * size])
        parts = [part.chunk(groups)[g] for g in range(groups) for part in (q, k, v)]
        found[name.replace("attn.qkv", "attn.attn")] = torch.cat(parts)
    return found


def test_tensors_win_over_a_wrong_configuration(tmp_path: Path) -> None:
    shape = SHAPES["wide-heads"]
    wrong = config(shape, head_size=8, n_layer=30, n_embd=960, intermediate_size=8192, padded_vocab_size=50304)
    found = inspect(write_release(tmp_path / "a", shape, fields=wrong))
    assert (found.num_heads, found.num_kv_heads, found.head_size) == (3, 1, 16)
    assert (found.num_layers, found.hidden_size, found.num_backbone, found.num_pool) == (2, 24, 12, 48)
    for name in ("head_size: 8", "n_layer: 30", "n_embd: 960", "intermediate_size: 8192", "padded_vocab_size: 50304"):
        assert any(name in note for note in found.notes), name
    assert inspect(write_release(tmp_path / "b", shape)).notes == ()
    assert inspect(tmp_path / "b", num_backbone=20).num_pool == 40
    # One wrong number of heads is outvoted; two wrong fields are refused.
    assert inspect(write_release(tmp_path / "c", shape, fields=config(shape, n_head=6))).num_heads == 3
    with pytest.raises(InputError, match="two of the three"):
        inspect(write_release(tmp_path / "d", shape, fields=config(shape, n_head=5, head_size=8)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_class_name": "LayerNorm"}, "norm_class_name: 'LayerNorm'"),
        ({"bias": True}, "bias: True"),
        ({"rotary_percentage": 0.25}, "rotary_percentage"),
        ({"parallel_residual": True}, "parallel_residual"),
        ({"rope_adjustments": {"factor": 8.0}}, "rope_adjustments"),
        ({"p_mem": None}, "p_mem: got None"),
        ({"p_gen": 1.5}, "p_gen: got 1.5"),
        ({"p_gen": 0.001}, "--num-backbone"),
        ({"rope_base": "high"}, "rope_base: got 'high'"),
    ],
)
def test_a_model_that_cannot_be_converted_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    shape = SHAPES["grouped"]
    with pytest.raises((RefusedError, UsageError), match=message):
        inspect(write_release(tmp_path, shape, fields=config(shape, **changes)))


def test_damage_is_named(tmp_path: Path) -> None:
    shape = SHAPES["grouped"]
    folder = write_release(tmp_path / "cut", shape)
    whole = (folder / "lit_model.pth").read_bytes()
    for length in (0, 3, 1000, len(whole) // 2, len(whole) - 1):
        (folder / "lit_model.pth").write_bytes(whole[:length])
        with pytest.raises(DamagedError, match=r"lit_model\.pth.*fetch it again"):
            inspect(folder)

    for name, changed, message in (
        ("transformer.h.1.mlp.fc_2.weight", None, r"lacks transformer\.h\.1\.mlp\.fc_2"),
        ("transformer.h.9.mlp.fc_2.weight", torch.zeros(2, 2), "4 layers, not numbered"),
        ("transformer.h.1.mlp.proj.weight", torch.zeros(32, 54), r"shapes contradict.*mlp\.proj"),
        ("transformer.h.0.attn.qkv.weight", torch.zeros(33, 32), "shapes contradict"),
        ("transformer.ln_f.weight", torch.zeros(32, 1), r"has transformer\.ln_f\.weight"),
        ("transformer.wte.weight", torch.zeros(VOCAB, 32, dtype=torch.int64), "int64"),
    ):
        tensors = weights(shape) | {name: changed}
        tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        with pytest.raises(DamagedError, match=message):
            inspect(write_release(tmp_path / "odd", shape, tensors=tensors))
    tensors = weights(shape) | {"transformer.h.0.attn.qkv.bias": torch.zeros(64)}
    with pytest.raises(RefusedError, match=r"transformer\.h\.0\.attn\.qkv\.bias"):
        inspect(write_release(tmp_path / "odd", shape, tensors=tensors))
    with pytest.raises(DamagedError, match="expected tensors by name"):
        inspect(write_release(tmp_path / "odd", shape, tensors=[torch.zeros(3)]))


def test_values_that_are_not_finite_leave_nothing_behind(tmp_path: Path) -> None:
    tensors = weights(SHAPES["grouped"])
    tensors["transformer.h.2.mlp.proj.weight"][3, 50] = torch.nan
    folder = write_release(tmp_path, SHAPES["grouped"], tensors=tensors)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(DamagedError, match=r"model\.layers\.2\.mlp\.sink_down has values"):
        imported(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_missing_and_unreadable_files_are_named(tmp_path: Path) -> None:
    folder = write_release(tmp_path, SHAPES["grouped"])
    for name, content, message in (
        ("model_config.yaml", "p_gen: [", "not YAML"),
        ("model_config.yaml", "just words", "expected fields"),
        ("model_config.yaml", None, "missing"),
        ("lit_model.pth", None, "missing"),
    ):
        write_release(tmp_path, SHAPES["grouped"])
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
        with pytest.raises(InputError, match=message):
            inspect(folder)


class Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.trace}",)


def test_a_checkpoint_that_runs_something_is_refused_and_not_run(tmp_path: Path) -> None:
    import pickle

    trace = tmp_path / "ran"
    folder = write_release(tmp_path / "a", SHAPES["grouped"], tensors=weights(SHAPES["grouped"]) | {"x": Evil(trace)})
    with pytest.raises(RefusedError, match="holds more than tensors"):
        inspect(folder)
    (folder / "lit_model.pth").write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(NullsError):
        inspect(folder)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists()


def test_context_is_that_of_training_and_vocabulary_fits(tmp_path: Path) -> None:
    shape = SHAPES["grouped"]
    folder = write_release(tmp_path, shape)
    assert inspect(folder).context_length == 128
    (folder / "hyperparameters.yaml").write_text(yaml.safe_dump({"train": {"max_seq_length": 64}}))
    found = inspect(folder)
    assert found.context_length == 64
    config_json = json.loads((Path(imported(folder).name_or_path) / "config.json").read_text())
    assert config_json["max_position_embeddings"] == 64
    assert config_json["head_dim"] == shape["head_size"]
    small = weights(shape) | {n: torch.zeros(200, 32) for n in ("transformer.wte.weight", "lm_head.weight")}
    with pytest.raises(InputError, match="another model's"):
        imported(write_release(tmp_path / "b", shape, tensors=small))


def test_shards_are_cut_by_size_and_read_as_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, fields = SHAPES["grouped"], config(SHAPES["grouped"])
    monkeypatch.setattr(convert, "SHARD_BYTES", 20_000)
    model = imported(write_release(tmp_path, shape))
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 5
    assert largest_difference(model, weights(shape), fields, 32) < 1e-5
    assert sum(p.numel() for p in model.parameters()) == inspect(tmp_path).num_parameters


def test_bfloat16_is_kept(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in weights(SHAPES["grouped"]).items()}
    model = imported(write_release(tmp_path, SHAPES["grouped"], tensors=tensors))
    assert model.dtype == torch.bfloat16
    assert torch.equal(model.model.layers[1].mlp.sink_down, tensors["transformer.h.1.mlp.proj.weight"][:, 11:].T)
