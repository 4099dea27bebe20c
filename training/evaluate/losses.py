"""The loss of a text under the sinks of its source, of another source, or of none.

Documents are packed into rows as in training (attention never crosses a document), so the loss of a text does not
depend on how it is packed.

Cost: 50,000 tokens/s on two CPU cores for the demo's model.

Run: ``loss_of(model, encode(tokenizer, texts, max_tokens=8192), source_id=None, context_length=512).mean``.

Shapes: B rows, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from training.sinks.layout import NO_SOURCE

_LOGITS_PER_BATCH = 1 << 25  # 128 MiB in fp32: bounds memory whatever the vocabulary
_IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Loss:
    """A sum of negative log-likelihoods.

    Attributes:
        nats: the sum over targets.
        num_tokens: the number of targets.
    """

    nats: float
    num_tokens: int

    @property
    def mean(self) -> float:
        """Nats a token; NaN without tokens."""
        return self.nats / self.num_tokens if self.num_tokens else float("nan")


def encode(tokenizer: Any, texts: Sequence[str], *, max_tokens: int) -> list[list[int]]:
    """Encode texts as in training, <eos> text <eos>, cut after `max_tokens` in all."""
    documents, left = [], max_tokens
    for text in texts:
        token_ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        documents.append(token_ids[:left])
        left -= len(documents[-1])
        if left < 2:
            break
    return [document for document in documents if len(document) > 1]


def loss_of(model: Any, documents: Sequence[Sequence[int]], *, source_id: int | None, context_length: int) -> Loss:
    """Return the loss of encoded documents.

    Args:
        model: a `NullsForCausalLM`.
        documents: token ids, as `encode` returns them.
        source_id: the mask id of the source whose sinks are on; None for the backbone only. A revoked source is not
            refused here, since its sinks have to be measured too; serving goes through `training.serving.served_model`.
        context_length: tokens of a row.
    """
    nats, num_tokens = 0.0, 0
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for input_BT, label_BT, document_BT in _batches(documents, context_length, model.config.vocab_size):
            sources_BT = torch.full_like(input_BT, NO_SOURCE if source_id is None else source_id)
            moved = [t.to(model.device) for t in (input_BT, label_BT, document_BT, sources_BT)]
            logits_BTV = model(moved[0], source_ids=moved[3], document_ids=moved[2], use_cache=False).logits
            loss = F.cross_entropy(
                logits_BTV.flatten(0, 1).float(), moved[1].flatten(), ignore_index=_IGNORED, reduction="sum"
            )
            nats += loss.item()
            num_tokens += int((label_BT != _IGNORED).sum())
    model.train(was_training)
    return Loss(nats, num_tokens)


def _batches(
    documents: Sequence[Sequence[int]], context_length: int, vocab_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    rows = list(_rows(documents, context_length))
    size = max(1, _LOGITS_PER_BATCH // (vocab_size * context_length))
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        width = max(len(row[0]) for row in batch)
        padded = [
            torch.tensor([row[part] + [fill] * (width - len(row[part])) for row in batch])
            for part, fill in ((0, 0), (1, _IGNORED), (2, -1))
        ]
        yield padded[0], padded[1], padded[2]


def _rows(documents: Sequence[Sequence[int]], context_length: int) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """Yield rows of (input, label, piece): documents in pieces of at most a row, packed in order, not split to fit."""
    inputs: list[int] = []
    labels: list[int] = []
    pieces: list[int] = []
    piece = 0
    for document in documents:
        for start in range(0, len(document) - 1, context_length):
            tokens = document[start : start + context_length + 1]
            if inputs and len(inputs) + len(tokens) - 1 > context_length:
                yield inputs, labels, pieces
                inputs, labels, pieces = [], [], []
            inputs += tokens[:-1]
            labels += tokens[1:]
            pieces += [piece] * (len(tokens) - 1)
            piece += 1
    if inputs:
        yield inputs, labels, pieces
