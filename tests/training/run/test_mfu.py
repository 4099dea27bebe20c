"""Utilisation of a packed step, against pairs and neurons counted one by one."""

from __future__ import annotations

import pytest
import torch

from registry.snapshot import Snapshot
from training.config import ModelConfig
from training.data.packing import PADDING, Batch, PackedLoader
from training.data.token_cache import TokenCache
from training.data.tokenizer import sample_texts, train_tokenizer
from training.estimate.costs import GPUS
from training.run import mfu
from training.sinks.layout import NO_SOURCE

MODEL = ModelConfig(hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, num_backbone=16, num_sinks=32)
VOCAB = 400


@pytest.fixture(scope="module")
def batches(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> list[Batch]:
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**9), VOCAB)
    cache = TokenCache.of(snapshot, tokenizer, tmp_path_factory.mktemp("cache"))
    return list(PackedLoader(cache, context_length=64, rows_per_step=5, epochs=2, sink_dropout=0.3))


def test_a_batch_counts_the_keys_and_the_sinks_of_its_tokens(batches: list[Batch]) -> None:
    seen = set()
    for batch in batches:
        keys, tokens, with_sinks = 0, 0, 0
        for documents, sources in zip(batch.document_ids.tolist(), batch.source_ids.tolist(), strict=True):
            for position, document in enumerate(documents):
                if document != PADDING:
                    keys += sum(other == document for other in documents[: position + 1])
                    tokens += 1
                    with_sinks += sources[position] != NO_SOURCE
        assert batch.keys_per_token == pytest.approx(keys / tokens)
        assert batch.sink_share == pytest.approx(with_sinks / tokens)
        seen.add(round(batch.keys_per_token, 6))
    assert len(seen) > 1
    assert any(0 < batch.sink_share < 1 for batch in batches)


def test_utilisation_counts_what_was_computed(batches: list[Batch]) -> None:
    batch = batches[0]
    got = mfu.mfu(MODEL, VOCAB, batch, tokens_per_second=1000.0, flops_per_second=1e9)
    head = 32 // 4
    attention = 32 * 32 * 2 + 32 * head * 2 * 2  # queries and output; keys and values
    # Queries times keys and weights times values: 2 FLOPs an entry, forward and twice that backward, 3 layers of 32.
    keys = 2 * 2 * 3 * 3 * 32 * batch.keys_per_token
    active = 6 * (3 * (attention + 3 * 32 * (16 + 32 * batch.sink_share)) + 32 * VOCAB) + keys
    dense = 6 * (3 * (attention + 3 * 32 * (16 + MODEL.num_pool)) + 32 * VOCAB) + keys
    assert got["mfu"] == pytest.approx(1000 * active / 1e9)
    assert got["mfu_dense_equivalent"] == pytest.approx(1000 * dense / 1e9)


def test_devices_are_known_by_the_name_that_cuda_gives_them(batches: list[Batch]) -> None:
    assert mfu.peak_flops("NVIDIA H100 80GB HBM3") == GPUS["h100"].peak_flops
    assert mfu.peak_flops("NVIDIA H200") == GPUS["h200"].peak_flops
    assert mfu.peak_flops("Quadro P400") is None
    cpu = torch.device("cpu")
    step = {"tokens_per_second": 1.0, "num_workers": 1}
    assert mfu.of_step(MODEL, VOCAB, batches[0], device=cpu, **step) == {}  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_memory_is_reported(batches: list[Batch]) -> None:
    device = torch.device("cuda")
    torch.ones(1 << 20, device=device)
    got = mfu.of_step(MODEL, VOCAB, batches[0], tokens_per_second=1.0, device=device, num_workers=1)
    assert got["gpu_memory_bytes"] >= 4 << 20
