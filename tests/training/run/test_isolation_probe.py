"""The isolation probe: a fixed choice of sources, losses as `training.evaluate.losses` gives them, on any ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from registry import ids
from registry.snapshot import Snapshot
from training.config import TrainConfig
from training.data.token_cache import TokenCache
from training.data.tokenizer import sample_texts, train_tokenizer
from training.evaluate.losses import loss_of
from training.model.modeling_nulls import NullsForCausalLM
from training.run.isolation_probe import IsolationProbe, choose
from training.run.worker import TokenLoss, build_model
from training.sinks.layout import NO_SOURCE

HELDOUT = [ids.source_id(f"wiki:tinywiki:{number}") for number in (3, 4)]
CONFIG = TrainConfig.from_dict(
    {
        "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "num_backbone": 16},
        "context_length": 48,
    }
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cache(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**9), 400)
    tokenizer.save_pretrained(str(tmp_path_factory.getbasetemp() / "probe-tokenizer"))
    return TokenCache.of(snapshot, tokenizer, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model(cache: TokenCache, tmp_path_factory: pytest.TempPathFactory) -> NullsForCausalLM:
    return made(tmp_path_factory.getbasetemp() / "probe-tokenizer")


def made(tokenizer: Path) -> NullsForCausalLM:
    from training.data.tokenizer import load_tokenizer

    torch.manual_seed(0)
    model = build_model(CONFIG, load_tokenizer(tokenizer))
    with torch.no_grad():  # far from the initial weights, under which all losses are nearly equal
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def probe_of(cache: TokenCache, num_sources: int = 4) -> IsolationProbe:
    return IsolationProbe(cache, HELDOUT, seed=1, num_sources=num_sources, context_length=CONFIG.context_length)


def test_losses_are_those_of_the_same_text_measured_apart(cache: TokenCache, model: NullsForCausalLM) -> None:
    probe = probe_of(cache)
    got = probe.measure(TokenLoss(model, torch.float32), CPU, micro_batch=3)
    assert len(probe.trained) == 4
    assert sorted(probe.heldout) == sorted(HELDOUT)

    def mean(sources: Sequence[int], sinks: Sequence[int | None]) -> float:
        nats, count = 0.0, 0
        for source, sink in zip(sources, sinks, strict=True):
            left, documents = CONFIG.context_length, []
            for index in (cache.source_id == source).nonzero()[0]:
                document = cache.document(int(index)).tolist()[: left + 1]
                left -= len(document) - 1
                documents.append(document)
                if not left:
                    break
            loss = loss_of(model, documents, source_id=sink, context_length=CONFIG.context_length)
            nats, count = nats + loss.nats, count + loss.num_tokens
        return nats / count

    trained, heldout = probe.trained, probe.heldout
    expected = {
        "on": mean(trained, trained),
        "off_backbone": mean(trained, [None] * 4),
        "off_placebo": mean(trained, [*trained[1:], trained[0]]),
        "unseen_backbone": mean(heldout, [None] * 2),
        "unseen_placebo": mean(heldout, trained[:2]),
    }
    losses = {name: value for name, value in got.items() if not name.startswith("closure")}
    assert losses == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 4) for value in expected.values()}) == 5, "equal losses would not show a wrong group"


def test_the_choice_depends_on_seed_and_sources_only(cache: TokenCache) -> None:
    trained, heldout = choose(cache, HELDOUT, seed=1, num_sources=3)
    assert (trained, heldout) == choose(cache, HELDOUT[::-1], seed=1, num_sources=3)
    assert not set(trained) & set(HELDOUT)
    assert set(heldout) <= set(HELDOUT)
    assert choose(cache, HELDOUT, seed=2, num_sources=3) != (trained, heldout)
    assert choose(cache, HELDOUT, seed=1, num_sources=2)[0] == trained[:2]


def test_nothing_is_changed_and_no_gradient_left(cache: TokenCache, model: NullsForCausalLM) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    probe_of(cache).measure(TokenLoss(model, torch.float32), CPU, micro_batch=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_sources_there_is_nothing_to_measure(cache: TokenCache, model: NullsForCausalLM) -> None:
    loss = TokenLoss(model, torch.float32)
    assert probe_of(cache, num_sources=0).measure(loss, CPU, micro_batch=2) == {}
    without_heldout = IsolationProbe(cache, [], seed=1, num_sources=4, context_length=48)
    assert set(without_heldout.measure(loss, CPU, micro_batch=2)) == {"on", "off_backbone", "off_placebo"}
    assert NO_SOURCE not in probe_of(cache).trained


def _rank(rank: int, world_size: int, port: int, cache: Path, tokenizer: Path, results: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    loss: nn.Module = TokenLoss(made(tokenizer), torch.float32)
    found = probe_of(TokenCache.open(cache)).measure(loss, CPU, micro_batch=1)
    torch.save(found, results / f"{world_size}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_rows_and_agree(
    cache: TokenCache,
    model: NullsForCausalLM,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    world_size: int,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tokenizer = tmp_path_factory.getbasetemp() / "probe-tokenizer"
    mp.spawn(_rank, (world_size, port, cache.path, tokenizer, tmp_path), nprocs=world_size)
    alone = probe_of(cache).measure(TokenLoss(model, torch.float32), CPU, micro_batch=8)
    ranks = [torch.load(tmp_path / f"{world_size}-{rank}.pt") for rank in range(world_size)]
    assert all(rank == ranks[0] for rank in ranks)
    # Other batches sum rows in another order, and a closure is a quotient of differences of such sums.
    assert {n: v for n, v in ranks[0].items() if "closure" not in n} == pytest.approx(
        {n: v for n, v in alone.items() if "closure" not in n}, rel=1e-6
    )
    assert ranks[0] == pytest.approx(alone, rel=1e-3)
