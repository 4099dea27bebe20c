"""A model refuses the sinks of revoked sources itself, before it computes anything, however it is called."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from registry.errors import DamagedError, RefusedError
from tests.builders import small_model
from training.model.carried import NO_MASK, Carried
from training.model.modeling_nulls import NullsForCausalLM
from training.sinks.layout import NO_SOURCE

IDS_BT = torch.tensor([[5, 6, 7, 8]])
OTHER, GONE = 11, 12
REFERENCE = {"sink_scheme": "reference-int32", "sink_probability": 0.2}
HEX = "0123456789abcdef" * 4


def refusing(*revoked: int, masks: tuple[int, ...] | None = None, **fields: object) -> NullsForCausalLM:
    """A small model that refuses these sources."""
    model = small_model(**fields)
    model.carry(Carried(weights_id=HEX, revoked=revoked, masks=masks))  # type: ignore[arg-type]
    return model


def computed(model: NullsForCausalLM) -> list[str]:
    """The modules of the model that computed anything since, by a hook on each."""
    ran: list[str] = []
    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    return ran


@pytest.mark.parametrize("source_ids", [[GONE], [[OTHER, OTHER, GONE, NO_SOURCE]]])
@pytest.mark.parametrize("training", [False, True])
def test_a_revoked_source_is_refused_before_anything_is_computed(source_ids: list[object], training: bool) -> None:
    model = refusing(GONE).train(training)
    ran = computed(model)
    with pytest.raises(RefusedError, match="source 000000000000000c is unlearned"):
        model(IDS_BT, source_ids=torch.tensor(source_ids))
    assert ran == []
    model(IDS_BT, source_ids=torch.tensor([OTHER]))
    assert "model.layers.1.mlp" in ran


def test_generate_refuses_and_without_the_source_it_does_what_it_did() -> None:
    model, free = refusing(GONE), small_model()
    settings = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(IDS_BT)}
    with pytest.raises(RefusedError):
        model.generate(IDS_BT, source_ids=torch.tensor([GONE]), **settings)
    for source_ids in (None, torch.tensor([OTHER])):
        assert torch.equal(
            model.generate(IDS_BT, source_ids=source_ids, **settings),
            free.generate(IDS_BT, source_ids=source_ids, **settings),
        )
    assert free.refusals is None


def test_padding_has_no_source_even_where_its_id_is_revoked() -> None:
    model = refusing(GONE)
    model.set_attn_implementation("eager")
    documents_BT, sources_BT = torch.tensor([[3, 3, -1, -1]]), torch.tensor([[OTHER, OTHER, GONE, GONE]])
    model(IDS_BT, document_ids=documents_BT, source_ids=sources_BT)
    with pytest.raises(RefusedError):
        model(IDS_BT, document_ids=documents_BT, source_ids=sources_BT.flip(1))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("whole", [True, False])
def test_compiled_models_refuse_too(whole: bool) -> None:
    model = refusing(GONE)
    expected = model(IDS_BT, source_ids=torch.tensor([OTHER])).logits
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager") if whole else model
    for layer in () if whole else model.model.layers:
        layer.compile(backend="eager")
    with pytest.raises(RefusedError):
        compiled(IDS_BT, source_ids=torch.tensor([GONE]))
    torch.testing.assert_close(compiled(IDS_BT, source_ids=torch.tensor([OTHER])).logits, expected)


def test_an_imported_model_refuses_every_mask_id_with_those_sinks() -> None:
    model = refusing(GONE, 99, masks=(5, NO_MASK), **REFERENCE)
    layout = model.config.layout
    same, other = 5 + (1 << 16), 6
    masks_NP = layout.mask(np.array([5, same, other, 1 << 16]), 0)
    assert (masks_NP[0] == masks_NP[1]).all()
    assert (masks_NP[0] != masks_NP[2]).any()
    assert masks_NP[3].all(), "this id switches on every sink, the refused ones too"
    for mask_id in (5, same, 1 << 16):
        with pytest.raises(RefusedError, match=f"mask id {mask_id} "):
            model(IDS_BT, source_ids=torch.tensor([mask_id]))
    model(IDS_BT, source_ids=torch.tensor([other]))
    model(IDS_BT, source_ids=torch.tensor([GONE]))  # a source's own id is not a mask id here


def test_a_saved_model_refuses_when_it_is_loaded_and_the_digest_covers_each_field(tmp_path: Path) -> None:
    refusing(GONE).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    whole = json.loads(path.read_text())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with pytest.raises(RefusedError):
        loaded(IDS_BT, source_ids=torch.tensor([GONE]))
    for field, value in {
        "nulls_revoked": [],
        "nulls_weights_id": "f" * 64,
        "nulls_lineage": ["f" * 64],
        "nulls_revoked_masks": [3],
        "nulls_digest": None,
    }.items():
        path.write_text(json.dumps(whole | {field: value}))
        for load in (AutoModelForCausalLM.from_pretrained, AutoConfig.from_pretrained):
            with pytest.raises(DamagedError, match="nulls_revoked"):
                load(tmp_path / "saved")


def test_weights_of_others_carry_nothing(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {value for name, value in config.items() if name.startswith("nulls_")} <= {None}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.refusals is None
    loaded(IDS_BT, source_ids=torch.tensor([GONE]))
