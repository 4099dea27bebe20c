"""Both bodies of Adam on rows: equal to each other and to an Adam for each row; inactive rows keep their bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.sinks import row_adam
from training.sinks.row_adam import Body, choose_body, update_rows

GROUP = {"lr": 0.02, "betas": (0.9, 0.999), "eps": 1e-8}
NUM_ROWS, WIDTH, NUM_STEPS = 40, 24, 12
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

Pools = tuple[list[Tensor], list[dict[str, Tensor]]]


def pools(device: str = "cpu") -> Pools:
    """Two pools of different sizes with fresh state."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, WIDTH, generator=generator).to(device) for size in (NUM_ROWS, NUM_ROWS // 2)]
    states = [
        {
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
            "step": torch.zeros(len(weight), device=device),
        }
        for weight in weights
    ]
    return weights, states


def gradients(step: int) -> list[Tensor]:
    """Gradients of which a third of the rows are active and the others zero; one active row has one denormal number."""
    generator = torch.Generator().manual_seed(100 + step)
    found = []
    for size in (NUM_ROWS, NUM_ROWS // 2):
        active_P1 = torch.rand(size, 1, generator=generator) < 1 / 3
        grad_PD = torch.randn(size, WIDTH, generator=generator) * active_P1
        grad_PD[step % size] = 0
        grad_PD[step % size, 0] = 1e-40
        found.append(grad_PD)
    return found


def run(body: Body | None, device: str = "cpu") -> Pools:
    """Return both pools after all steps; assert in each step that inactive rows did not change."""
    weights, states = pools(device)
    for step in range(NUM_STEPS):
        before = [weight.clone() for weight in weights]
        for weight, grad_PD in zip(weights, gradients(step), strict=True):
            weight.grad = grad_PD.to(device)
        update_rows(weights, states, GROUP, body)
        for weight, old in zip(weights, before, strict=True):
            assert weight.grad is not None
            absent_P = ~(weight.grad != 0).any(1)
            assert absent_P.any()
            assert torch.equal(weight[absent_P], old[absent_P])
    return weights, states


def assert_equal(got: Pools, expected: Pools) -> None:
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6, atol=1e-7, check_device=False)
    for state, other in zip(got[1], expected[1], strict=True):
        # Terms of a running mean cancel, so its error is relative to the gradients, which are about 1.
        torch.testing.assert_close(state["exp_avg"], other["exp_avg"], rtol=0, atol=1e-7, check_device=False)
        torch.testing.assert_close(state["exp_avg_sq"], other["exp_avg_sq"], rtol=1e-5, atol=1e-10, check_device=False)
        assert torch.equal(state["step"].cpu(), other["step"])


@pytest.mark.parametrize("body", ["rows", "masked"])
def test_each_row_is_an_adam_of_its_own(body: Body) -> None:
    weights, states = run(body)
    expected, _ = pools()
    for index, pool_PD in enumerate(expected):
        rows = [row.double().clone().requires_grad_() for row in pool_PD]
        adams = [torch.optim.Adam([row], lr=GROUP["lr"], betas=GROUP["betas"]) for row in rows]
        for step in range(NUM_STEPS):
            for row, adam, grad_D in zip(rows, adams, gradients(step)[index], strict=True):
                if (grad_D != 0).any():
                    row.grad = grad_D.double()
                    adam.step()
        torch.testing.assert_close(weights[index].double(), torch.stack(rows).detach(), rtol=1e-5, atol=1e-6)
        counts = torch.stack([(gradients(step)[index] != 0).any(1) for step in range(NUM_STEPS)]).sum(0)
        assert torch.equal(states[index]["step"], counts.float())


def test_the_compiled_body_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("rows")
    monkeypatch.setattr(row_adam, "_masked_adam", torch.compile(row_adam._masked_adam))
    assert_equal(run("masked"), expected)


@needs_cuda
def test_cuda_gives_the_same() -> None:
    assert_equal(run(None, "cuda"), run("rows"))


def test_a_gpu_updates_all_rows_at_once_unless_the_gradient_is_sparse() -> None:
    assert choose_body(device="cpu", is_sparse=False) == "rows"
    assert choose_body(device="cuda", is_sparse=False) == "masked"
    assert choose_body(device="cuda", is_sparse=True) == "rows"
