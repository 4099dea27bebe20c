"""Data parallelism: each worker has a copy of the model (DDP) or a part of it (FSDP2); also compiling and recomputing.

DDP holds 16 bytes a parameter on every worker (float32 weight, gradient, two moments) and sends 4 a step. FSDP2 holds a
worker's share of them and gathers one layer at a time: it fits where a copy does not, and sends three times as much.
Both give the same numbers up to rounding, and write the same checkpoints (`training.checkpoint.dcp`): a run begun under
one can continue under the other.

Gradients of all micro-batches except the last stay on their rank; the last one's backward pass sums them over the ranks
(`syncing`). Both wrappers *average* over ranks, so the loop multiplies a loss by the number of workers.

A decoder layer is wrapped, from outside, by FSDP2's hooks (gather, release), recomputation and torch.compile. So a
recomputed layer is gathered once, and hooks are never compiled.

Run: ``net = wrap(TokenLoss(model, dtype), kind, config, device)``, then build the optimizer: FSDP2 replaces parameters.
Cost: wrapping takes milliseconds, and under FSDP2 a copy of each layer in turn.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from training.config import TrainConfig
from training.estimate.costs import Parallel
from training.sinks.sparse_grads import average_over_ranks, names_with_row_gradients, use_row_gradients


def wrap(loss: nn.Module, kind: Parallel, config: TrainConfig, device: torch.device) -> nn.Module:
    """Wrap a loss module so that its backward pass averages gradients over the ranks; all call it, with equal weights.

    Args:
        loss: has the causal language model as `loss.model`, on a CPU. Under FSDP2 that model can still be called by
            itself, by all ranks together.
        kind: from `training.estimate.costs.choose_parallel`.
        config: `compile`, `activation_checkpointing` and `dtype` are used.
        device: of this rank.

    Returns:
        A module to call in place of `loss`. FSDP2 replaces the model's parameters: build the optimizer afterwards.
    """
    model = loss.model
    assert isinstance(model, nn.Module)
    layers = wrap_layers(model, config)
    if kind == "fsdp":
        _shard(model, layers, config, device)
        return loss.to(device)
    if device.type == "cpu" and not config.compile:
        # `average_over_ranks` sums the rows of active sinks instead of DDP. On CUDA dense gradients cost little.
        use_row_gradients(loss)
        ignored = names_with_row_gradients(loss)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, ignored)  # type: ignore[no-untyped-call]
    # find_unused_parameters keeps the initial buckets. Otherwise DDP regroups them after its first step, and sums over
    # three or more ranks would round differently after a restart.
    return DistributedDataParallel(
        loss.to(device), find_unused_parameters=True, gradient_as_bucket_view=True, broadcast_buffers=False
    )


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Return the decoder layers of a causal language model, by their names in transformers."""
    inner = model.model
    assert isinstance(inner, nn.Module)
    assert isinstance(inner.layers, nn.ModuleList)
    return iter(inner.layers)


def wrap_layers(model: nn.Module, config: TrainConfig) -> list[nn.Module]:
    """Return the decoder layers, compiled (each when it first runs) and recomputed as the configuration says."""
    layers = list(_layers(model))
    if not (config.compile or config.activation_checkpointing):
        return layers
    if config.compile:
        # Each layer is a graph of its own already. DDP would cut it at its buckets, and one pool can fill a bucket.
        torch._dynamo.config.optimize_ddp = False
        # With and without sinks, gradients and a full micro-batch there can be more graphs than the default limit of
        # eight, after which nothing more is compiled.
        torch._dynamo.config.recompile_limit = 32
    for layer in layers:
        forward = layer.forward
        if config.compile:
            forward = torch.compile(forward)
        if config.activation_checkpointing:
            # Not reentrant, so that the sink plan, which is not a tensor, can be an argument. Nothing in a layer is
            # random, so there is no random state to restore.
            forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = forward
    return layers


def _shard(model: nn.Module, layers: list[nn.Module], config: TrainConfig, device: torch.device) -> None:
    """Apply FSDP2 to each layer and to the rest; each tensor is cut by rows, so a rank has some of a pool's sinks."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    is_mixed = device.type == "cuda" and config.dtype != "float32"
    # Sums over ranks are in float32: in bfloat16 a small gradient beside a large one would be lost, and a row of the
    # pool could become zero, so that the optimizer would take its sources to be absent.
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if is_mixed else None
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())


def keeps_gradients(net: nn.Module) -> bool:
    """Return whether gradients are in DDP's buckets and must be zeroed there: None would have them allocated again.

    On a CPU the pool's gradients are sparse and in no bucket, and None means that no row was active.
    """
    return isinstance(net, DistributedDataParallel) and next(net.parameters()).device.type == "cuda"


@contextlib.contextmanager
def syncing(net: nn.Module, is_last: bool) -> Iterator[None]:
    """Context of one micro-batch's forward and backward pass: only the last of a step communicates gradients.

    Until then FSDP2 keeps the sums unsharded: 4 more bytes a parameter on each worker.
    """
    if isinstance(net, DistributedDataParallel):
        with contextlib.nullcontext() if is_last else net.no_sync():
            yield
        if is_last:
            average_over_ranks(net.parameters())
        return
    model = net.model
    assert isinstance(model, FSDPModule)
    model.set_requires_gradient_sync(is_last)
    yield


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 has sharded this model's parameters."""
    return isinstance(model, FSDPModule)
