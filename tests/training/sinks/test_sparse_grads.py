"""Sparse gradients of the pool train the same weights as dense ones, in one process and in two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.training.distributed.ranks import run_ranks
from tests.training.test_optim import CONFIG, LAYOUT, POOL, TinyNulls, backward, batch, parameters_of
from training.optim import build_optimizer, clip_gradients
from training.sinks.layout import NO_SOURCE
from training.sinks.sparse_grads import average_over_ranks, gather_rows, names_with_row_gradients, use_row_gradients


def trained(*, row_gradients: bool, steps: int = 6, ranks: int = 1) -> tuple[TinyNulls, list[Tensor]]:
    """Return a model after some steps, and the step counts of its rows."""
    model = TinyNulls()
    if row_gradients:
        use_row_gradients(model)
    optimizer = build_optimizer(model, CONFIG)
    for step in range(steps):
        backward(model, step, ranks=ranks, micro_batches=2)
        assert all(getattr(model, name).grad.is_sparse == row_gradients for name in POOL)
        assert clip_gradients(model.parameters(), 1.0) > 1, "the gradient was not clipped"
        optimizer.step()
    return model, [optimizer.state[getattr(model, name)]["step"] for name in POOL]


def assert_same_training(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(got) == set(expected)
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_sparse_and_dense_gradients_train_the_same_weights() -> None:
    (sparse, sparse_steps), (dense, dense_steps) = trained(row_gradients=True), trained(row_gradients=False)
    assert_same_training(parameters_of(sparse), parameters_of(dense))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(sparse_steps, dense_steps, strict=True))
    assert 0 == sparse_steps[0].min() < sparse_steps[0].max()


def test_clipping_treats_sparse_and_dense_gradients_alike() -> None:
    models = TinyNulls(), TinyNulls()
    use_row_gradients(models[0])
    norms = []
    for model in models:
        backward(model, 0, micro_batches=3)
        norms.append(clip_gradients(model.parameters(), 0.25))
    torch.testing.assert_close(*norms)
    assert norms[0] > 0.25
    for (name, ours), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours.grad.to_dense(), theirs.grad, msg=name)


def test_a_row_with_a_gradient_of_zero_is_not_active() -> None:
    model = TinyNulls()
    use_row_gradients(model)
    optimizer = build_optimizer(model, CONFIG)
    hidden_TD, source_ids_T = batch(0, 0, 0)
    (model(hidden_TD, source_ids_T) * 0).sum().backward()
    assert model.sink_up.grad._nnz() > 0
    optimizer.step()
    assert not optimizer.state[model.sink_up]["step"].any()


def test_memory_stays_bounded_over_micro_batches() -> None:
    model = TinyNulls()
    use_row_gradients(model)
    for micro_batch in range(40):
        model(*batch(0, 0, micro_batch)).square().mean().backward()
        # Three rows a micro-batch, so 120 without merging.
        assert model.sink_gate.grad._nnz() <= LAYOUT.num_pool + 3
    dense = TinyNulls()
    for micro_batch in range(40):
        dense(*batch(0, 0, micro_batch)).square().mean().backward()
    torch.testing.assert_close(model.sink_gate.grad.to_dense(), dense.sink_gate.grad)


def test_a_micro_batch_without_sources_may_come_first() -> None:
    model, dense = TinyNulls(), TinyNulls()
    use_row_gradients(model)
    hidden_TD, source_ids_T = batch(0, 0, 0)
    nowhere_T = torch.full_like(source_ids_T, NO_SOURCE)
    for source_ids in (nowhere_T, source_ids_T, source_ids_T, nowhere_T):
        for each in (model, dense):
            each(hidden_TD, source_ids).square().mean().backward()
    for name in POOL:
        torch.testing.assert_close(getattr(model, name).grad.to_dense(), getattr(dense, name).grad)
        assert getattr(dense, name).grad.any()


def test_no_gradient_as_large_as_the_pool_is_made() -> None:
    pool_PD = nn.Parameter(torch.zeros(1_000_000, 4))
    gather_rows(pool_PD, torch.tensor([5, 999_999, 5])).sum().backward()
    assert pool_PD.grad is not None
    assert pool_PD.grad._values().shape == (3, 4)
    assert pool_PD.grad.coalesce().indices().tolist() == [[5, 999_999]]
    assert pool_PD.grad.coalesce().values().tolist() == [[2.0] * 4, [1.0] * 4]


def test_names_are_those_of_the_pools() -> None:
    model = nn.Sequential(nn.Linear(6, 6), TinyNulls())
    assert names_with_row_gradients(model) == []
    use_row_gradients(model)
    assert names_with_row_gradients(model) == [f"1.{name}" for name in POOL]


class Wrapped(nn.Module):
    """A module around the model, like `TokenLoss`: DDP cannot ignore parameters of the outermost module."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyNulls()

    def forward(self, hidden_TD: Tensor, source_ids_T: Tensor) -> Tensor:
        return self.model(hidden_TD, source_ids_T)


def run_rank(rank: int, folder: str) -> None:
    assert dist.get_world_size() == 2
    whole = Wrapped()
    model = whole.model
    use_row_gradients(whole)
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(whole, names_with_row_gradients(whole))
    wrapped = DistributedDataParallel(whole)
    optimizer = build_optimizer(wrapped, CONFIG)
    for step in range(6):
        wrapped.zero_grad()
        with wrapped.no_sync():
            (wrapped(*batch(step, rank, 0)).square().mean() / 2).backward()
        (wrapped(*batch(step, rank, 1)).square().mean() / 2).backward()
        average_over_ranks(wrapped.parameters())
        clip_gradients(wrapped.parameters(), 1.0)
        optimizer.step()
    # A step in which only rank 0 has a source: rank 1 takes part without any row.
    wrapped.zero_grad()
    hidden_TD, source_ids_T = batch(9, 0, 0)
    wrapped(hidden_TD, source_ids_T if rank == 0 else torch.full_like(source_ids_T, NO_SOURCE)).sum().backward()
    average_over_ranks(wrapped.parameters())
    one_sided = {name: getattr(model, name).grad.to_dense() for name in POOL}
    steps = optimizer.state[model.sink_gate]["step"]
    torch.save({"weights": parameters_of(model), "steps": steps, "one-sided": one_sided}, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    run_ranks(2, run_rank, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_train_as_one(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    model, steps = trained(row_gradients=False, ranks=2)
    for rank in ranks:
        assert_same_training(rank["weights"], parameters_of(model))
        assert torch.equal(rank["steps"], steps[0])
    for name in POOL:
        assert torch.equal(ranks[0]["weights"][name], ranks[1]["weights"][name]), "ranks drift apart"


def test_a_rank_without_sources_takes_part(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    for name in POOL:
        ours, theirs = (rank["one-sided"][name] for rank in ranks)
        assert torch.equal(ours, theirs)
        assert ours.any(1).sum() == LAYOUT.num_sinks
