"""How several workers share one model: a copy each (DDP), or a part each (FSDP2); with it, compiling and recomputing.

DDP holds 16 bytes a parameter on every worker (float32 weight, gradient, two moments) and sends 4 a step. FSDP2 holds a
worker's share of them and gathers one layer at a time: it fits where a copy does not, and sends three times as much.
Both give the same numbers up to rounding, and write the same checkpoints (`training.checkpoint.dcp`): a run begun under one
can go on under the other.

Gradients of all micro-batches but the last stay where they are; the last one's backward pass sums them over the ranks
(`syncing`). Both wrappers *average* over ranks, so the loop scales a loss by the number of workers.

Order of the layers around a decoder layer, from outside: FSDP2's hooks (gather, release), recomputation, torch.compile.
So a recomputed layer is gathered once, and hooks are never compiled.

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
    """A loss module whose backward pass sums gradients over the ranks; all ranks call it, with equal weights.

    Args:
        loss: has the causal language model as `loss.model`, on a CPU. Under FSDP2 that model can still be called by
            itself, by all ranks together.
        kind: `estimate.choose_parallel`'s.
        config: `compile`, `activation_checkpointing` and `dtype` count.
        device: of this rank.

    Returns:
        A module to call in place of `loss`. Under FSDP2 the model's parameters are new ones: build the optimizer after.
    """
    model = loss.model
    assert isinstance(model, nn.Module)
    layers = wrap_layers(model, config)
    if kind == "fsdp":
        _shard(model, layers, config, device)
        return loss.to(device)
    if device.type == "cpu" and not config.compile:
        # The ranks sum the rows of active sinks themselves (`rows.py`). On CUDA dense gradients cost little.
        use_row_gradients(loss)
        ignored = names_with_row_gradients(loss)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(loss, ignored)  # type: ignore[no-untyped-call]
    # find_unused_parameters keeps the buckets as they are at the start. DDP otherwise regroups them after its first
    # step, and sums of three and more ranks would then round differently after a restart.
    return DistributedDataParallel(
        loss.to(device), find_unused_parameters=True, gradient_as_bucket_view=True, broadcast_buffers=False
    )


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The decoder layers of a causal language model, as transformers names them."""
    inner = model.model
    assert isinstance(inner, nn.Module)
    assert isinstance(inner.layers, nn.ModuleList)
    return iter(inner.layers)


def wrap_layers(model: nn.Module, config: TrainConfig) -> list[nn.Module]:
    """The decoder layers, from now on compiled and recomputed as the configuration says; each compiles when it runs."""
    layers = list(_layers(model))
    if not (config.compile or config.activation_checkpointing):
        return layers
    if config.compile:
        # Each layer is a graph of its own already. DDP would have it cut at its buckets, which one pool can fill.
        torch._dynamo.config.optimize_ddp = False
        # With and without sinks, gradients and a full micro-batch: eight, the usual number, can be passed, and what
        # comes after is never compiled.
        torch._dynamo.config.recompile_limit = 32
    for layer in layers:
        forward = layer.forward
        if config.compile:
            forward = torch.compile(forward)
        if config.activation_checkpointing:
            # Not reentrant: the plan of the sinks is an argument like any other, and need not be a tensor. Nothing in a
            # layer is random, so there is no random state to bring back.
            forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        layer.forward = forward
    return layers


def _shard(model: nn.Module, layers: list[nn.Module], config: TrainConfig, device: torch.device) -> None:
    """FSDP2 of each layer and of what is left; each tensor is cut by rows, so a rank has some of a pool's sinks."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    is_mixed = device.type == "cuda" and config.dtype != "float32"
    # Sums over ranks are in float32: in bfloat16 a small gradient beside a large one would be lost, and a row of the
    # pool could end as zero, which the optimizer takes for a source that was absent.
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if is_mixed else None
    for module in (*layers, model):
        fully_shard(module, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())


def keeps_gradients(net: nn.Module) -> bool:
    """Whether gradients lie in DDP's buckets, to be zeroed there: set to None, they would be made a second time.

    On a CPU the pool's are sparse and in no bucket, and None is what tells that nothing was active.
    """
    return isinstance(net, DistributedDataParallel) and next(net.parameters()).device.type == "cuda"


@contextlib.contextmanager
def syncing(net: nn.Module, is_last: bool) -> Iterator[None]:
    """Context of one micro-batch's forward and backward: only the last of a step communicates gradients.

    Under FSDP2 the sums are kept unsharded till then: 4 bytes a parameter more on each worker.
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
    """Whether FSDP2 has cut this model's parameters."""
    return isinstance(model, FSDPModule)
