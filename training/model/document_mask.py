"""Attention mask that keeps attention inside each document of a packed row, in the form that each kernel takes.

transformers separates packed documents only by their positions, and only without a cache; this mask does it by the
column where each token's document begins. On CUDA `flex_attention` takes a block mask: blocks of 128 x 128 in which
nothing may be attended to are skipped, so a row costs about the sum of its documents' squares, and the mask
(T / 128)**2 numbers a row. On a CPU, where flex has no backward pass, `sdpa` takes B * T**2 booleans.

Run: ``model.set_attn_implementation(choose_attention(device.type))``; the model's forward calls `document_mask`.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from registry.errors import UsageError

FLEX, SDPA, EAGER = "flex_attention", "sdpa", "eager"


def choose_attention(device_type: str) -> str:
    """Return transformers' name of the attention implementation to train with on this type of device."""
    return FLEX if device_type == "cuda" else SDPA


def document_starts(document_ids_BT: Tensor) -> Tensor:
    """Return the column in which each token's document begins, int64 [B, T]; a document is a run of equal ids."""
    columns_T = torch.arange(document_ids_BT.shape[1], device=document_ids_BT.device)
    begins_BT = document_ids_BT != document_ids_BT.roll(1, dims=1)
    begins_BT[:, :1] = True
    return (begins_BT * columns_T).cummax(dim=1).values


def document_mask(starts_BT: Tensor, implementation: str | None, dtype: torch.dtype) -> Tensor | BlockMask:
    """Return the mask of attention that is causal within a document.

    Args:
        starts_BT: from `document_starts`.
        implementation: `flex_attention`, `sdpa` or `eager`.
        dtype: of the attention logits; only `eager` needs it.

    Returns:
        A block mask for flex_attention; else [B, 1, T, T]: boolean for sdpa (True: attend), numbers to add to the
        logits for eager.

    Raises:
        UsageError: the implementation is none of these.
    """
    if implementation == FLEX:
        return _block_mask(starts_BT)
    columns_T = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    # A token attends to the columns from its document's start to its own; never none, so softmax is defined at padding.
    allowed_BTT = (columns_T >= starts_BT[..., None]) & (columns_T <= columns_T[:, None])
    if implementation == SDPA:
        return allowed_BTT[:, None]
    if implementation == EAGER:
        return torch.zeros_like(allowed_BTT, dtype=dtype).masked_fill(~allowed_BTT, torch.finfo(dtype).min)[:, None]
    raise UsageError(
        f"document_ids: attention is {implementation!r}, expected 'sdpa', 'eager' or 'flex_attention'; load the model "
        "with attn_implementation set to one of them"
    )


def _block_mask(starts_BT: Tensor) -> BlockMask:
    num_rows, num_tokens = starts_BT.shape

    def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= starts_BT[row, query])

    # Compiled, blocks are found without storing all T**2 pairs first.
    create = _compiled() if starts_BT.device.type == "cuda" else create_block_mask
    mask: BlockMask = create(may_attend, num_rows, None, num_tokens, num_tokens, device=starts_BT.device)
    return mask


@functools.cache
def _compiled() -> Callable[..., BlockMask]:
    return torch.compile(create_block_mask)
