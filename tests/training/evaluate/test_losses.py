"""The loss of a text does not depend on how it is packed into rows, and equals that of transformers."""

from __future__ import annotations

import random

import pytest
import torch

from tests.builders import small_model
from training.evaluate.losses import Loss, encode, loss_of
from training.model.modeling_nulls import NullsForCausalLM


@pytest.fixture(scope="module")
def model() -> NullsForCausalLM:
    return small_model(vocab_size=97, num_attention_heads=2, num_backbone=16, num_pool=64)


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(97) for _ in range(length)] for length in (5, 2, 33, 17, 60)]


@pytest.mark.parametrize("source_id", [None, 7])
def test_loss_is_the_sum_over_documents_run_separately(
    model: NullsForCausalLM, documents: list[list[int]], source_id: int | None
) -> None:
    whole = loss_of(model, documents, source_id=source_id, context_length=64)
    assert whole.num_tokens == sum(len(document) - 1 for document in documents)
    nats = 0.0
    for document in documents:
        tokens = torch.tensor([document])
        sources = None if source_id is None else torch.tensor([source_id])
        with torch.inference_mode():
            nats += model(tokens, source_ids=sources, labels=tokens).loss.item() * (len(document) - 1)
    assert whole.nats == pytest.approx(nats, rel=1e-5)


def test_sinks_change_the_loss(model: NullsForCausalLM, documents: list[list[int]]) -> None:
    losses = {s: loss_of(model, documents, source_id=s, context_length=64).mean for s in (None, 7, 8)}
    assert len(set(losses.values())) == 3


def test_every_token_is_predicted_once_whatever_the_rows(model: NullsForCausalLM, documents: list[list[int]]) -> None:
    for context_length in (8, 16, 64):
        assert loss_of(model, documents, source_id=None, context_length=context_length).num_tokens == sum(
            len(document) - 1 for document in documents
        )


class Characters:
    """A tokenizer of characters."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(c) for c in text]


def test_encode_cuts_after_the_most_tokens() -> None:
    assert encode(Characters(), ["ab", "c"], max_tokens=100) == [[0, 97, 98, 0], [0, 99, 0]]
    assert encode(Characters(), ["ab", "c"], max_tokens=6) == [[0, 97, 98, 0], [0, 99]]
    assert encode(Characters(), ["ab", "c"], max_tokens=5) == [[0, 97, 98, 0]]
    assert Loss(0.0, 0).mean != Loss(0.0, 0).mean, "without tokens the mean is NaN"
