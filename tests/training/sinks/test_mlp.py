"""The gathered MLP equals its definition, every pool neuron times the mask, in values and in every gradient."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from registry.errors import UsageError
from training.sinks.layout import NO_SOURCE, SinkLayout
from training.sinks.mlp import Body, SinkPlan, build_plan, choose_body, dense_masked_mlp, sink_mlp, token_mask

WIDTH, NUM_LAYERS = 12, 3
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
LAYOUTS = {
    "keyed": SinkLayout(num_pool=61, num_sinks=7),
    "aligned": SinkLayout(num_pool=61, num_sinks=8),
    "whole pool": SinkLayout(num_pool=8, num_sinks=8),
    "reference-int32": SinkLayout(num_pool=61, num_sinks=7, scheme="reference-int32"),
    "reference-int64": SinkLayout(num_pool=61, num_sinks=7, scheme="reference-int64", probability=0.2),
}
# Segments of one batch: (source, tokens), with repeats, adjacent ones of one source, empty ones, and none at all.
segments = st.lists(
    st.tuples(st.sampled_from([NO_SOURCE, 1, 2, 3, 77, 65536, 2**63 - 1]), st.integers(0, 9)), max_size=8
)


def flat_ids(segments: list[tuple[int, int]]) -> Tensor:
    return torch.tensor([source for source, length in segments for _ in range(length)], dtype=torch.int64)


def tensors(layout: SinkLayout, num_tokens: int) -> list[Tensor]:
    """Return hidden_TD and the pool's three matrices, as leaves, scaled so that values and gradients are near one."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(num_tokens, WIDTH)] + 3 * [(layout.num_pool, WIDTH)]
    return [(0.3 * torch.randn(shape, generator=generator)).requires_grad_() for shape in shapes]


def values_and_gradients(out_TD: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weights_TD = torch.randn(out_TD.shape, generator=torch.Generator().manual_seed(1)).to(out_TD)
    return [out_TD.detach(), *(g.to_dense() for g in torch.autograd.grad((out_TD * weights_TD).sum(), leaves))]


def assert_equals_definition(
    layout: SinkLayout, ids_T: Tensor, layer: int, body: Body | None = None, row_gradients: bool = False
) -> list[Tensor]:
    leaves = tensors(layout, len(ids_T))
    plan = build_plan(ids_T, layout, NUM_LAYERS)
    out_TD = sink_mlp(leaves[0], plan, layer, *leaves[1:], row_gradients=row_gradients, body=body)
    got = values_and_gradients(out_TD, leaves)
    mask_TP = token_mask(ids_T, layout, layer)
    expected = values_and_gradients(dense_masked_mlp(leaves[0], mask_TP, *leaves[1:]), leaves)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not got[0][ids_T == NO_SOURCE].any(), "a token without a source must get exactly zero"
    return got


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(segments=segments, layer=st.integers(0, NUM_LAYERS - 1))
def test_gathered_is_dense_masked(name: str, segments: list[tuple[int, int]], layer: int) -> None:
    assert_equals_definition(LAYOUTS[name], flat_ids(segments), layer)


@pytest.mark.parametrize("row_gradients", [False, True])
@pytest.mark.parametrize("body", ["bmm", "grouped"])
@settings(max_examples=25, deadline=None)
@given(segments=segments)
def test_every_body_is_dense_masked(body: Body, row_gradients: bool, segments: list[tuple[int, int]]) -> None:
    if any(source != NO_SOURCE and length for source, length in segments):
        assert_equals_definition(LAYOUTS["aligned"], flat_ids(segments), 1, body, row_gradients)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_comparison_is_not_of_zeros(name: str) -> None:
    ids_T = flat_ids([(1, 40), (NO_SOURCE, 3), (2, 5), (1, 2), (77, 1), (3, 6)])
    for layer in range(NUM_LAYERS):
        got = assert_equals_definition(LAYOUTS[name], ids_T, layer)
        assert all(x.abs().max() > 0.03 for x in got)
        assert (got[0].abs().amax(1) > 0).sum() == len(ids_T) - 3
    if name != "whole pool":
        untouched = (got[2] == 0).all(1)
        assert 0 < untouched.sum() < len(untouched), "only the rows of active sinks may get a gradient"


def test_padding_of_variable_counts_is_exercised() -> None:
    plan = build_plan(flat_ids([(1, 4), (2, 4), (3, 4)]), LAYOUTS["reference-int64"], NUM_LAYERS)
    assert plan.valid_GK is not None
    assert not plan.valid_GK.all()


def test_without_any_source_the_pool_gets_zero_gradients() -> None:
    for layout in LAYOUTS.values():
        leaves = tensors(layout, 5)
        plan = build_plan(flat_ids([(NO_SOURCE, 5)]), layout, NUM_LAYERS)
        out_TD = sink_mlp(leaves[0], plan, 0, *leaves[1:])
        assert not out_TD.any()
        out_TD.sum().backward()
        for leaf in leaves:
            assert leaf.grad is not None, "a data-parallel wrapper would wait for this gradient forever"
            assert not leaf.grad.any()


def test_tokens_of_one_source_share_one_gather() -> None:
    plan = build_plan(flat_ids([(5, 3), (NO_SOURCE, 2), (6, 1), (5, 4)]), LAYOUTS["keyed"], NUM_LAYERS)
    assert plan.source_ids_G.tolist() == [5, 6]
    assert plan.sinks_LGK.shape == (NUM_LAYERS, 2, 7)
    assert plan.buckets == ((1, 7), (1, 1))
    assert plan.token_index_A.tolist() == [0, 1, 2, 6, 7, 8, 9, 5]


@given(counts=st.lists(st.integers(1, 5000), min_size=1, max_size=60))
@settings(max_examples=30, deadline=None)
def test_less_than_half_of_the_slots_is_padding(counts: list[int]) -> None:
    layout = SinkLayout(num_pool=4, num_sinks=1)
    plan = build_plan(flat_ids(list(enumerate(counts))), layout, 1)
    assert sum(counts) <= len(plan.gather_index) < 2 * sum(counts)
    # The first source of a bucket is at most half as long as that of the bucket before: at most 13 for 5000 tokens.
    assert len(plan.buckets) <= 13
    assert sum(g for g, _ in plan.buckets) == len(counts)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("row_gradients", [False, True])
@pytest.mark.parametrize("body", ["bmm", "grouped"])
def test_bfloat16_autocast_is_within_a_hundredth_of_full_precision(
    body: Body, row_gradients: bool, device: str
) -> None:
    layout, ids_T = SinkLayout(num_pool=61, num_sinks=16), flat_ids([(1, 90), (NO_SOURCE, 30), (2, 50)]).to(device)
    leaves = [torch.randn(n, 64).mul(0.3).to(device).requires_grad_() for n in (170, 61, 61, 61)]
    plan = build_plan(ids_T, layout, NUM_LAYERS)
    mask_TP = token_mask(ids_T, layout, 2)
    exact = values_and_gradients(dense_masked_mlp(leaves[0], mask_TP, *leaves[1:]), leaves)
    with torch.autocast(device, torch.bfloat16):
        out_TD = sink_mlp(leaves[0], plan, 2, *leaves[1:], row_gradients=row_gradients, body=body)
    assert out_TD.dtype == torch.bfloat16
    rounded = values_and_gradients(out_TD.float(), leaves)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.dtype == torch.float32, "gradients are summed in the parameters' precision"
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


@needs_cuda
@pytest.mark.parametrize("name", LAYOUTS)
def test_on_cuda_gathered_is_dense_masked(name: str) -> None:
    layout, ids_T = LAYOUTS[name], flat_ids([(1, 40), (NO_SOURCE, 3), (2, 5), (1, 2), (77, 1)])
    leaves = tensors(layout, len(ids_T))
    expected = values_and_gradients(dense_masked_mlp(leaves[0], token_mask(ids_T, layout, 1), *leaves[1:]), leaves)
    there = [leaf.detach().cuda().requires_grad_() for leaf in leaves]
    plan = build_plan(ids_T.cuda(), layout, NUM_LAYERS)
    got = values_and_gradients(sink_mlp(there[0], plan, 1, *there[1:]), there)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-5, rtol=1e-5)


def test_gradients_are_derivatives() -> None:
    layout = SinkLayout(num_pool=5, num_sinks=2)
    ids_T = flat_ids([(1, 2), (NO_SOURCE, 1), (2, 1)])
    plan = build_plan(ids_T, layout, 1)
    leaves = [torch.randn(n, 3, dtype=torch.float64).requires_grad_() for n in (4, 5, 5, 5)]

    def mlp(*leaves: Tensor) -> Tensor:
        return sink_mlp(leaves[0], plan, 0, *leaves[1:])

    assert torch.autograd.gradcheck(mlp, leaves)


@pytest.mark.parametrize("body", ["bmm", "grouped"])
@pytest.mark.parametrize("row_gradients", [False, True])
def test_a_checkpointed_layer_gives_the_same_gradients(body: Body, row_gradients: bool) -> None:
    layout, ids_T = LAYOUTS["aligned"], flat_ids([(1, 9), (NO_SOURCE, 3), (2, 5)])
    plan, leaves = build_plan(ids_T, layout, NUM_LAYERS), tensors(layout, len(ids_T))
    calls = []

    def mlp(*leaves: Tensor) -> Tensor:
        calls.append(1)
        return sink_mlp(leaves[0], plan, 1, *leaves[1:], row_gradients=row_gradients, body=body)

    expected = values_and_gradients(mlp(*leaves), leaves)
    got = values_and_gradients(torch.utils.checkpoint.checkpoint(mlp, *leaves, use_reentrant=False), leaves)
    assert len(calls) == 3, "nothing was computed a second time"
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(got, expected, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_all_batches_share_one_compiled_graph(backend: str) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    layout = LAYOUTS["aligned"]

    @torch.compile(backend=counter, fullgraph=True)
    def mlp(plan: SinkPlan, *leaves: Tensor) -> Tensor:
        return sink_mlp(leaves[0], plan, 1, *leaves[1:])

    counts = []
    for lengths in ([9, 5], [4, 7, 2], [8, 2, 2, 1], [30, 20, 1, 1, 1, 5], [2, 40, 3], [11, 12]):
        ids_T = flat_ids([*enumerate(lengths), (NO_SOURCE, 2)])
        leaves, plan = tensors(layout, len(ids_T)), build_plan(ids_T, layout, NUM_LAYERS)
        got = values_and_gradients(mlp(plan, *leaves), leaves)
        mask_TP = token_mask(ids_T, layout, 1)
        expected = values_and_gradients(dense_masked_mlp(leaves[0], mask_TP, *leaves[1:]), leaves)
        for ours, theirs in zip(got, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        counts.append(counter.frame_count)
    # One graph for the first sizes, then one for any sizes.
    assert counts == [1, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("changed", "body"),
    [
        ({}, "grouped"),
        ({"num_sinks": 102}, "bmm"),
        ({"width": 6}, "bmm"),
        ({"dtype": torch.float64}, "bmm"),
        ({"num_groups": 0}, "bmm"),
        ({"device": "cuda"}, "bmm"),
        ({"device": "cuda", "compiling": True}, "grouped"),
        ({"device": "cuda", "dtype": torch.bfloat16, "capability": 9}, "grouped"),
        ({"device": "cuda", "dtype": torch.bfloat16, "capability": 8}, "bmm"),
        ({"device": "cuda", "dtype": torch.bfloat16, "capability": 9, "num_groups": 1024}, "bmm"),
        ({"num_groups": 1024}, "grouped"),
        ({"device": "cuda", "dtype": torch.bfloat16, "capability": 9, "num_sinks": 100}, "bmm"),
    ],
)
def test_the_body_follows_device_and_shape(changed: dict[str, object], body: Body) -> None:
    usual = {
        "device": "cpu",
        "dtype": torch.float32,
        "width": 64,
        "num_sinks": 128,
        "num_groups": 3,
        "compiling": False,
    }
    assert choose_body(**(usual | changed)) == body  # type: ignore[arg-type]


def test_ids_of_another_type_are_refused() -> None:
    for ids in (torch.zeros(4, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int64)):
        with pytest.raises(UsageError, match="source_ids"):
            build_plan(ids, LAYOUTS["keyed"], 1)
