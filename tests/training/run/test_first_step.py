"""The gradient of a run's first step is finite at the depth of the largest preset."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from registry.snapshot import Snapshot
from training.config import TrainConfig
from training.data.packing import PADDING, Batch, PackedLoader
from training.data.token_cache import TokenCache
from training.data.tokenizer import sample_texts, train_tokenizer
from training.optim import clip_gradients
from training.run.worker import TokenLoss, build_model

DEEP = TrainConfig.preset("paper-1b-aligned").model.num_layers


@pytest.fixture(scope="module")
def cache_and_tokenizer(
    snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TokenCache, PreTrainedTokenizerFast]:
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**6), 300)
    return TokenCache.of(snapshot, tokenizer, tmp_path_factory.mktemp("cache")), tokenizer


def padded_batch(cache: TokenCache) -> Batch:
    """The step of eight rows that has the padded row of the epoch."""
    batches = PackedLoader(cache, context_length=64, rows_per_step=8)
    return next(batch for batch in batches if (batch.document_ids == PADDING).any())


@pytest.mark.parametrize(("tied", "dtype"), [(True, torch.float32), (False, torch.float32), (False, torch.bfloat16)])
def test_a_deep_models_first_gradient_is_finite(
    cache_and_tokenizer: tuple[TokenCache, PreTrainedTokenizerFast], tied: bool, dtype: torch.dtype
) -> None:
    cache, tokenizer = cache_and_tokenizer
    config = TrainConfig.preset("demo")
    # At this width each layer multiplies the gradient of a zero vector by about 75.
    shape = dataclasses.replace(
        config.model, hidden_size=192, num_layers=DEEP, num_pool=64, num_sinks=16, tie_embeddings=tied
    )
    torch.manual_seed(0)
    model = build_model(dataclasses.replace(config, model=shape), tokenizer).train()
    batch = padded_batch(cache)
    assert (batch.input_ids[batch.document_ids != PADDING] == cache.end_of_text).sum() > 1, (
        "documents begin in these rows"
    )

    loss = TokenLoss(model, dtype)(batch.input_ids, batch.labels, batch.document_ids, batch.source_ids)
    (loss / batch.num_targets).backward()
    bad = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert bad == []
    # A gradient that grows with depth would be clipped to nothing.
    assert 0.1 < float(clip_gradients(model.parameters(), 1.0)) < 10
