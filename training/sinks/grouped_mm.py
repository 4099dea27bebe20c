"""`grouped_mm` that also works under torch.compile: one matrix product for each group of rows, groups of any length.

torch's `grouped_mm` runs on CPU and CUDA, in float32 and bfloat16, forward and backward, but torch.compile can trace it
in bfloat16 only. For float32 the compiled call is therefore a custom operator, opaque to the compiler, with the same
kernels inside. In bfloat16 the compiler sees torch's operator and can generate a kernel.

Requirements (an error of torch names at most one): `offsets` are int32, the end of each group; strides are multiples of
16 bytes; the gradient is laid out in memory, so it cannot be the broadcast one of `y.sum()`. Rows past the last group
are not written; here there are none.

Cost: 12 % less time than padded `bmm` for 16 groups of 128 rows, 25 % less for 64 of 32 (fp32, one core).
Run: ``grouped_product(hidden_AD, weights_GDK, offsets_G)``.

Shapes: A rows in G groups, D inner size, K outer size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

GROUPED_DTYPES = (torch.float32, torch.bfloat16)
_ALIGNMENT_BYTES = 16


def is_aligned(dtype: torch.dtype, *sizes: int) -> bool:
    """Return whether rows of each of these sizes have strides that `grouped_product` accepts."""
    return all(size * dtype.itemsize % _ALIGNMENT_BYTES == 0 for size in sizes)


def grouped_product(rows_AD: Tensor, weights_GDK: Tensor, offsets_G: Tensor) -> Tensor:
    """Multiply each group of rows by its own matrix: [A, K].

    Args:
        rows_AD: sorted by group.
        weights_GDK: aligned in D and K (`is_aligned`), in either memory order.
        offsets_G: int32, the end of each group; the last is A.
    """
    if torch.compiler.is_compiling() and rows_AD.dtype != torch.bfloat16:
        opaque_AK: Tensor = _product(rows_AD, weights_GDK, offsets_G)
        return opaque_AK
    return grouped_mm(rows_AD, weights_GDK, offs=offsets_G)


@torch.library.custom_op("nulls::grouped_product", mutates_args=())
def _product(rows_AD: Tensor, weights_GDK: Tensor, offsets_G: Tensor) -> Tensor:
    return grouped_mm(rows_AD, weights_GDK, offs=offsets_G)


@torch.library.custom_op("nulls::grouped_outer_product", mutates_args=())
def _outer_product(rows_AD: Tensor, grad_AK: Tensor, offsets_G: Tensor) -> Tensor:
    """Return the gradient of the weights: [G, D, K]."""
    return grouped_mm(rows_AD.t(), grad_AK, offs=offsets_G)


@_product.register_fake
def _(rows_AD: Tensor, weights_GDK: Tensor, offsets_G: Tensor) -> Tensor:
    return rows_AD.new_empty(rows_AD.shape[0], weights_GDK.shape[2])


@_outer_product.register_fake
def _(rows_AD: Tensor, grad_AK: Tensor, offsets_G: Tensor) -> Tensor:
    return rows_AD.new_empty(offsets_G.shape[0], rows_AD.shape[1], grad_AK.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_AK: Tensor) -> tuple[Tensor, Tensor, None]:
    rows_AD, weights_GDK, offsets_G = ctx.saved_tensors
    grad_AK = grad_AK.contiguous()
    grad_AD = _product(grad_AK, weights_GDK.transpose(1, 2), offsets_G)
    return grad_AD, _outer_product(rows_AD, grad_AK, offsets_G), None


_product.register_autograd(_backward, setup_context=_save)
