"""The model: a Llama when no source is given; a packed row gives the results of its documents one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from registry.errors import UsageError
from tests.builders import small_model
from training.model import modeling_nulls as model_module
from training.model.document_mask import choose_attention, document_mask, document_starts
from training.model.modeling_nulls import NullsConfig, NullsForCausalLM
from training.sinks.layout import NO_SOURCE, Array, SinkLayout
from training.sinks.mlp import SinkPlan, dense_masked_mlp, token_mask

VOCAB = 61
INITIALIZER_RANGE = 0.2  # ten times the default: an untrained model's sinks and attention matter to its logits
LLAMA = {  # the shape of `small_model`, as transformers' Llama takes it
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": INITIALIZER_RANGE,
}


def build(**fields: object) -> NullsForCausalLM:
    return small_model(vocab_size=VOCAB, initializer_range=INITIALIZER_RANGE, **fields)


@pytest.fixture(scope="module")
def model() -> NullsForCausalLM:
    return build()


@pytest.fixture(scope="module")
def ids_BT() -> Tensor:
    return torch.randint(1, VOCAB, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def source_ids_B() -> Tensor:
    return torch.tensor([4, 2**63 - 1, NO_SOURCE])


def backbone_of(model: NullsForCausalLM) -> LlamaForCausalLM:
    """transformers' own Llama with the same weights."""
    llama = LlamaForCausalLM(LlamaConfig(intermediate_size=24, **LLAMA)).eval()
    llama.load_state_dict({name: w for name, w in model.state_dict().items() if "sink_" not in name})
    return llama


def loss_and_gradients(model: NullsForCausalLM, **inputs: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | gradients


def test_without_a_source_it_is_a_llama_bit_for_bit(model: NullsForCausalLM, ids_BT: Tensor) -> None:
    expected = backbone_of(model)(ids_BT, labels=ids_BT)
    nowhere = torch.full((3,), NO_SOURCE)
    for source_ids in (None, nowhere, nowhere[:, None].expand(3, 12)):
        got = model(ids_BT, labels=ids_BT, source_ids=source_ids)
        assert torch.equal(got.logits, expected.logits)
        assert torch.equal(got.loss, expected.loss)


def test_training_without_a_source_reaches_every_parameter(ids_BT: Tensor) -> None:
    model = build().train()
    got = loss_and_gradients(model, input_ids=ids_BT, labels=ids_BT)
    llama = backbone_of(model).train()
    expected = loss_and_gradients(llama, input_ids=ids_BT, labels=ids_BT)
    assert set(got) - set(expected) == {name for name, _ in model.named_parameters() if "sink_" in name}
    for name, gradient in got.items():
        assert torch.equal(gradient, expected.get(name, torch.zeros_like(gradient))), name


def test_a_source_changes_its_own_row_only(model: NullsForCausalLM, ids_BT: Tensor, source_ids_B: Tensor) -> None:
    off_BTV, on_BTV = model(ids_BT).logits, model(ids_BT, source_ids=source_ids_B).logits
    assert ((on_BTV - off_BTV).abs().amax((1, 2)) > 0.1).tolist() == [True, True, False]
    other_BTV = model(ids_BT, source_ids=source_ids_B + torch.tensor([1, 0, 0])).logits
    assert ((on_BTV - other_BTV).abs().amax((1, 2)) > 0.1).tolist() == [True, False, False]


@pytest.mark.parametrize("lengths", [[5, 1, 9, 3], [150, 3, 120, 60]])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@torch.no_grad()
def test_a_packed_row_gives_the_results_of_its_documents_one_by_one(attention: str, lengths: list[int]) -> None:
    # flex_attention runs eagerly, since compiling takes minutes; documents cross its blocks of 128.
    with torch.compiler.set_stance("force_eager"):
        assert_packed_is_apart(build(attn_implementation=attention, max_position_embeddings=512), lengths)


def assert_packed_is_apart(model: NullsForCausalLM, lengths: list[int]) -> None:
    sources = [7, NO_SOURCE, 8, 7]
    documents = [torch.randint(1, VOCAB, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    document_ids = torch.arange(4).repeat_interleave(torch.tensor(lengths))
    padding = torch.full((2,), -1)
    packed = model(
        torch.cat([*documents, padding * 0])[None],
        source_ids=torch.cat([torch.tensor(sources)[document_ids], torch.tensor([7, 7])])[None],
        document_ids=torch.cat([document_ids, padding])[None],
    )
    assert packed.past_key_values is None
    apart = [
        model(tokens[None], source_ids=torch.tensor([source])).logits[0]
        for tokens, source in zip(documents, sources, strict=True)
    ]
    torch.testing.assert_close(packed.logits[0, :-2], torch.cat(apart), atol=1e-5, rtol=1e-5)
    together = model(torch.cat(documents)[None], source_ids=torch.tensor(sources)[document_ids][None])
    assert (together.logits[0] - torch.cat(apart)).abs().max() > 0.1, (
        "documents in one row do not affect each other without document_ids either"
    )


def test_a_document_does_not_see_its_neighbour_in_training(ids_BT: Tensor) -> None:
    model = build().train()
    document_ids = (torch.arange(12) >= 5).long().expand(3, 12)
    inputs_BTD = model.model.embed_tokens(ids_BT).detach().requires_grad_()
    model(inputs_embeds=inputs_BTD, document_ids=document_ids, source_ids=document_ids + 3).logits[
        :, 5:
    ].sum().backward()
    assert not inputs_BTD.grad[:, :5].any()
    assert inputs_BTD.grad[:, 5:].abs().min() > 0


@torch.no_grad()
def test_flex_attention_equals_sdpa(ids_BT: Tensor) -> None:
    document_ids = torch.tensor([[0] * 12, [0] * 5 + [1] * 7, [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, -1, -1]])
    logits = []
    for attention in ("flex_attention", "sdpa"):
        with torch.compiler.set_stance("force_eager"):
            logits.append(build(attn_implementation=attention)(ids_BT, document_ids=document_ids).logits)
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_attention_trains_as_sdpa_does(ids_BT: Tensor) -> None:
    document_ids = (torch.arange(12) >= 5).long().expand(3, 12).cuda()
    inputs = {"input_ids": ids_BT.cuda(), "labels": ids_BT.cuda(), "document_ids": document_ids}
    shape = {"hidden_size": 64}  # heads of 16, the smallest that the kernel takes
    flex, sdpa = (
        loss_and_gradients(build(attn_implementation=name, **shape).cuda().train(), **inputs)
        for name in ("flex_attention", "sdpa")
    )
    for name, value in flex.items():
        torch.testing.assert_close(value, sdpa[name], atol=1e-4, rtol=1e-3, msg=name)


def test_attention_follows_the_device() -> None:
    assert [choose_attention(device) for device in ("cpu", "cuda")] == ["sdpa", "flex_attention"]
    with pytest.raises(UsageError, match="flex_attention"):
        document_mask(torch.zeros(1, 2, dtype=torch.int64), "flash_attention_2", torch.float32)


def test_document_starts() -> None:
    document_ids = torch.tensor([[0, 0, 1, 1, 0, -1], [3, 3, 3, 3, 3, 3]])
    assert document_starts(document_ids).tolist() == [[0, 0, 2, 2, 4, 5], [0] * 6]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_cached_generation_equals_uncached(
    model: NullsForCausalLM, ids_BT: Tensor, source_ids_B: Tensor, options: dict[str, int]
) -> None:
    settings = {"max_new_tokens": 16, "do_sample": False, "attention_mask": torch.ones_like(ids_BT)} | options
    cached = model.generate(ids_BT, source_ids=source_ids_B, use_cache=True, **settings)
    uncached = model.generate(ids_BT, source_ids=source_ids_B, use_cache=False, **settings)
    assert torch.equal(cached, uncached)
    off = model.generate(ids_BT, **settings)
    rows_differ = (cached != off).any(1).view(3, -1).any(1)
    assert rows_differ.tolist() == [True, True, False], "the sinks do not change what is generated"


def test_each_beam_uses_its_prompts_source(model: NullsForCausalLM, ids_BT: Tensor, source_ids_B: Tensor) -> None:
    settings = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    together = model.generate(ids_BT, source_ids=source_ids_B, attention_mask=torch.ones_like(ids_BT), **settings)
    for row, ids_T, source_id in zip(together, ids_BT, source_ids_B, strict=True):
        expected = model.generate(
            ids_T[None], source_ids=source_id[None], attention_mask=torch.ones_like(ids_T[None]), **settings
        )
        assert torch.equal(row, expected[0])


def test_save_and_load_through_the_auto_classes(
    model: NullsForCausalLM, ids_BT: Tensor, source_ids_B: Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is NullsForCausalLM
    assert loaded.config.layout == model.config.layout == AutoConfig.from_pretrained(tmp_path).layout
    expected = model(ids_BT, source_ids=source_ids_B).logits
    assert torch.equal(loaded(ids_BT, source_ids=source_ids_B).logits, expected)


@pytest.mark.parametrize("scheme", ["keyed-v1", "reference-int64"])
def test_the_model_equals_its_dense_masked_self(scheme: str, ids_BT: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(sink_scheme=scheme).train()
    document_ids = (torch.arange(12) // 4).expand(3, 12)
    source_ids = torch.tensor([[5, 6, NO_SOURCE], [6, 6, 9], [NO_SOURCE, 5, 1]]).repeat_interleave(4, 1)
    inputs = {"input_ids": ids_BT, "labels": ids_BT, "source_ids": source_ids, "document_ids": document_ids}
    gathered = loss_and_gradients(model, **inputs)

    layers = iter(range(2))

    def dense(hidden_TD: Tensor, plan: SinkPlan, layer: int, *pool: Tensor, row_gradients: bool) -> Tensor:
        assert not row_gradients
        assert layer == 0, "a layer gets only its own draw"
        mask_TP = token_mask(source_ids.flatten(), model.config.layout, next(layers))
        return dense_masked_mlp(hidden_TD, mask_TP, *pool)

    monkeypatch.setattr(model_module, "sink_mlp", dense)
    expected = loss_and_gradients(model, **inputs)
    assert set(gathered) == set(expected) == {"loss", *dict(model.named_parameters())}
    for name, value in gathered.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)
        assert value.any(), f"{name} is zero: nothing was compared"


def test_compiled_layers_share_their_graphs(ids_BT: Tensor) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model = build(num_hidden_layers=10).train()
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, backend=counter)
    twin = build(num_hidden_layers=10).train()
    counts = []
    for sources in ([1, 2, 3], [4, 4, 5], [6, 7, NO_SOURCE], [8, 9, 10], [1, NO_SOURCE, 2], [5, 4, 4]):
        # As in training, without a cache, whose content differs from layer to layer.
        documents = {"document_ids": torch.zeros_like(ids_BT)}
        inputs = {"input_ids": ids_BT, "labels": ids_BT, "source_ids": torch.tensor(sources)} | documents
        got, expected = loss_and_gradients(model, **inputs), loss_and_gradients(twin, **inputs)
        for name, value in got.items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4, msg=name)
        counts.append(counter.frame_count)
    # Ten layers share a graph: one for the first batch, then one for any number of sources, and one for any of tokens.
    assert counts == [1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(ids_BT: Tensor, source_ids_B: Tensor, reentrant: bool) -> None:
    model = build().train()
    inputs = {"input_ids": ids_BT, "labels": ids_BT, "source_ids": source_ids_B}
    expected = loss_and_gradients(model, **inputs)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    calls = []
    model.model.layers[0].post_attention_layernorm.register_forward_hook(lambda *_: calls.append(1))
    got = loss_and_gradients(model, **inputs)
    assert len(calls) == 2, "nothing was computed a second time, so nothing was checkpointed"
    assert got.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in got.items())


def test_masks_are_drawn_once_a_batch(ids_BT: Tensor, source_ids_B: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[list[int]] = []
    draw = SinkLayout.select_layers

    def counted(layout: SinkLayout, ids_G: Array, num_layers: int) -> tuple[Array, Array | None]:
        draws.append(ids_G.tolist())
        return draw(layout, ids_G, num_layers)

    monkeypatch.setattr(SinkLayout, "select_layers", counted)
    model = build().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss_and_gradients(model, input_ids=ids_BT, labels=ids_BT, source_ids=source_ids_B)
    assert draws == [[4, 2**63 - 1]], "two layers, computed twice, need one draw for both"


def test_sinks_are_initialised_like_linear_layers(model: NullsForCausalLM) -> None:
    for name, parameter in model.named_parameters():
        if "sink_" in name:
            assert abs(parameter.std().item() - 0.2) < 0.03, name
            assert abs(parameter.mean().item()) < 0.03, name


@pytest.mark.parametrize("reloaded", [False, True])
def test_the_padding_token_is_trained_like_any_other(reloaded: bool, ids_BT: Tensor, tmp_path: Path) -> None:
    model = build(tie_word_embeddings=False)
    if reloaded:
        model.save_pretrained(tmp_path)
        model = NullsForCausalLM.from_pretrained(tmp_path)
    assert model.config.pad_token_id == 0, "generate and batches of prompts pad with it"
    begun_BT = torch.cat([torch.zeros(3, 1, dtype=torch.int64), ids_BT], 1)
    loss_and_gradients(model.train(), input_ids=begun_BT, labels=begun_BT)
    row_D = model.model.embed_tokens.weight[0]
    assert abs(row_D.std().item() - INITIALIZER_RANGE) < 0.1
    assert model.model.embed_tokens.weight.grad[0].abs().min() > 0


def test_the_layout_follows_the_config() -> None:
    config = NullsConfig(num_backbone=48, num_pool=99, num_sinks=9, sink_seed=5)
    assert config.layout == SinkLayout(num_backbone=48, num_pool=99, num_sinks=9, seed=5)
    assert config.intermediate_size == config.num_backbone == 48
    assert NullsConfig(intermediate_size=48).num_backbone == 48
    config.num_backbone = 16
    assert config.intermediate_size == config.to_dict()["intermediate_size"] == 16
    assert NullsConfig().layout == SinkLayout()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_backbone": 5, "intermediate_size": 6}, "num_backbone"),
        ({"num_sinks": 9000}, "num_sinks"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sink_scheme": "random"}, "scheme"),
    ],
)
def test_a_bad_config_names_its_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        NullsConfig(**fields)


def test_contradictory_calls_are_refused(model: NullsForCausalLM, ids_BT: Tensor) -> None:
    documents = torch.zeros_like(ids_BT)
    with pytest.raises(UsageError, match="source_ids"):
        model(ids_BT, source_ids=torch.tensor([1, 2]))
    with pytest.raises(UsageError, match="document_ids"):
        model(ids_BT, document_ids=documents, attention_mask=torch.ones_like(ids_BT))
    with pytest.raises(UsageError, match="document_ids"):
        model(ids_BT, document_ids=documents[:, 1:])
    with pytest.raises(UsageError, match="input_ids"):
        model(source_ids=torch.tensor([1]))
    with pytest.raises(UsageError, match="source_ids"):
        model.generate(ids_BT, source_ids=documents, max_new_tokens=3, attention_mask=torch.ones_like(ids_BT))
