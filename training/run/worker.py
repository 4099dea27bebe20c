"""The training loop of one Ray worker. It ends with the same weights, to the bit, however often it is killed.

The loss of a step is the mean over the targets of the *global* batch: each micro-batch's summed loss is divided by
their number, which every rank knows from the loader. So every token weighs the same, whatever the number of workers
and the size of a micro-batch. Rank 0 appends a line to `progress.jsonl` each step. The driver follows that file, and
only the driver talks to MLflow: a worker needs no credentials, and a slow tracking server does not slow a step.

An error that would repeat (`UsageError`, `RefusedError`, `DamagedError`; all ranks raise it together) ends the run: it
is written to `failure.json`. After any other error, and after the death of a worker, Ray restarts the workers from the
last whole checkpoint.

Cost (2.5M parameters, AVX2 cores): 11,000 tokens a second and core, 40 % of it matrix products, and with
two workers 14,700 together: a step of 4096 tokens takes 185 ms of arithmetic, 35 ms of all-reduce (4 bytes a
parameter) and 20 ms of optimizer. Micro-batches of 2 or 8 rows, instead of 4, are 20 % slower.

Run: Ray Train calls ``run_worker(job.to_plain())`` on each worker (`training.run.ray_session`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from registry.errors import NullsError, ServiceError, UsageError
from registry.ids import format_id
from registry.storage import write_atomic
from training.checkpoint import dcp, export
from training.checkpoint.dcp import RunState
from training.checkpoint.remote_copy import RemoteRun
from training.checkpoint.writer import CheckpointWriter, report_to_ray
from training.config import TrainConfig
from training.data.packing import IGNORED, Batch, LoaderState, PackedLoader
from training.data.prefetch import Prefetcher
from training.data.token_cache import TokenCache
from training.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from training.distributed import parallel
from training.estimate.costs import choose_parallel
from training.model.document_mask import choose_attention
from training.model.modeling_nulls import NullsConfig, NullsForCausalLM
from training.optim import build_optimizer, clip_gradients, learning_rate_at
from training.run import mfu
from training.run.isolation_probe import IsolationProbe
from training.run.protocol import FAILURE, RESULT, Job, ProgressLog, writing
from training.sinks.layout import NO_SOURCE

_MAX_NAMED = 8  # sources in an error message


class TokenLoss(nn.Module):
    """The summed loss of a micro-batch; a module of its own, so that DDP wraps the loss with the model."""

    def __init__(self, model: NullsForCausalLM, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, input_ids: Tensor, labels: Tensor, document_ids: Tensor, source_ids: Tensor) -> Tensor:
        """Return the cross-entropy in nats, summed over targets, a scalar; arguments are int64 [B, T]."""
        with torch.autocast(input_ids.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.model(input_ids=input_ids, document_ids=document_ids, source_ids=source_ids, use_cache=False)
        return nn.functional.cross_entropy(
            output.logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )


Report = Callable[[int, Path, "Future[Path]"], None]
"""Called on all ranks for each checkpoint: with its step, its path, and a future that is done when it is whole."""


class Worker:
    """One rank's model, data and position.

    Args:
        job: the job that the driver wrote.
        device: this rank's.
        rank, world_size: this process in the process group, which exists already.
        log: the progress file; only rank 0 writes to it.
        report: called for each checkpoint.
    """

    def __init__(
        self,
        job: Job,
        device: torch.device,
        rank: int,
        world_size: int,
        log: ProgressLog,
        report: Report = lambda step, directory, written: None,
    ) -> None:
        self.job, self.device, self.rank, self.world_size = job, device, rank, world_size
        self.config = job.config
        self.tokenizer = load_tokenizer(job.run_dir / "tokenizer")
        cache = TokenCache.open(job.cache)
        _seed(self.config.seed, on_cuda=device.type == "cuda")
        self.model = build_model(self.config, self.tokenizer)
        self.model.set_attn_implementation(choose_attention(device.type))
        self.loss = TokenLoss(self.model, _dtype(self.config.dtype, device))
        kind = choose_parallel(self.config, world_size, _memory_of(device), vocab_size=len(self.tokenizer))
        self.net = parallel.wrap(self.loss, kind, self.config, device)
        self.optimizer = build_optimizer(self.model, self.config.optim)
        self.report = report
        self.writer = CheckpointWriter(
            job.run_dir,
            job.run_dir / job.attempt,
            keep=self.config.keep_checkpoints,
            in_background=self.config.async_checkpoints,
            on_complete=lambda directory, step: log.write(checkpoint=str(directory), step=step),
            remote_run=RemoteRun.parse(job.remote_run) if job.remote_run else None,
            device=device,
        )
        self.state = self._restored(cache, log)
        self.loader = PackedLoader(
            cache,
            job.heldout,
            seed=self.config.seed,
            epochs=self.config.epochs,
            context_length=self.config.context_length,
            rows_per_step=self.config.rows_per_step,
            sink_dropout=self.config.sink_dropout,
            sinks_open_at=self.config.sinks_open_at,
            rank=rank,
            world_size=world_size,
            state=self.state.loader,
        )
        self.batches = Prefetcher(self.loader, device)
        self.probe = IsolationProbe(
            cache,
            job.heldout,
            seed=self.config.seed,
            num_sources=self.config.watch_sources,
            context_length=self.config.context_length,
        )

    def _restored(self, cache: TokenCache, log: ProgressLog) -> RunState:
        """Load the latest whole checkpoint and return its state; without one, return the state of a new run."""
        expected = {
            "snapshot": cache.snapshot_id,
            "config": self.config.fingerprint(),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
        }
        directory = dcp.agreed_latest(self.job.run_dir)
        cut_short = dcp.remove_cut_short(self.job.run_dir) if self.rank == 0 else []
        if directory is None:
            loader = LoaderState(snapshot=cache.snapshot_id, seed=self.config.seed, epoch=0, row=0)
            state = RunState(step=0, loader=loader, config=expected["config"], tokenizer=expected["tokenizer"])
        else:
            dcp.read_state(directory).refuse_unless(**expected)
            state = dcp.load(directory, self.model, self.optimizer)
        log.write(
            begun_at=state.step,
            world_size=self.world_size,
            attempt=self.job.attempt,
            cut_short=[path.name for path in cut_short],
        )
        return state

    def run(self, log: ProgressLog) -> None:
        """Train from the current state to the end; write checkpoints and the exported weights.

        Raises:
            UsageError: the loss or its gradient stopped being finite.
        """
        total_steps = self.loader.total_steps
        for batch in self.batches:
            began = time.perf_counter()
            learning_rate = learning_rate_at(self.state.step, total_steps, self.config.optim)
            loss, gradient_norm = self._step(batch, learning_rate)
            seconds = self.batches.waited_s + time.perf_counter() - began
            self._advance(batch, loss, seconds)
            log.write(
                step=self.state.step,
                total_steps=total_steps,
                epoch=batch.epoch,
                loss=loss,
                learning_rate=learning_rate,
                gradient_norm=gradient_norm,
                num_targets=batch.num_targets,
                tokens_per_second=batch.num_targets / seconds,
                loader_share=self.batches.waited_s / seconds,
                **mfu.of_step(
                    self.config.model,
                    self.model.config.vocab_size,
                    batch,
                    tokens_per_second=batch.num_targets / seconds,
                    device=self.device,
                    num_workers=self.world_size,
                ),
                **self._probed(),
            )
            if self.state.step % self.config.checkpoint_every == 0 and self.state.step < total_steps:
                self._save()
        self._finish()

    def _probed(self) -> dict[str, float]:
        """Return the losses of the probed sources; nothing in a step that does not measure them."""
        every, step = self.config.watch_every, self.state.step
        if not every or (step % every and step != self.loader.total_steps):
            return {}
        losses = self.probe.measure(self.loss, self.device, micro_batch=self.config.micro_batch)
        return {f"watch_{name}": value for name, value in losses.items()}

    def _step(self, batch: Batch, learning_rate: float) -> tuple[float, float]:
        """Take an optimizer step; return the mean loss of the global batch, and the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=not parallel.keeps_gradients(self.net))
        inputs = (batch.input_ids, batch.labels, batch.document_ids, batch.source_ids)
        micro_batches = list(zip(*(torch.split(tensor, self.config.micro_batch) for tensor in inputs), strict=True))
        loss_sums = torch.zeros(len(micro_batches), dtype=torch.float64, device=self.device)
        for index, tensors in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with parallel.syncing(self.net, last):
                loss_sum = self.net(*tensors)
                # DDP and FSDP2 average gradients over the ranks; the mean wanted is over the global batch's targets.
                (loss_sum * (self.world_size / batch.num_targets)).backward()
            loss_sums[index] = loss_sum.detach()
        total = loss_sums.sum()
        dist.all_reduce(total)
        loss = total.item() / batch.num_targets
        gradient_norm = float(clip_gradients(self.model.parameters(), self.config.optim.grad_clip))
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            self._stop(batch, loss, gradient_norm, loss_sums)
        self.optimizer.set_learning_rate(learning_rate)
        self.optimizer.step()
        return loss, gradient_norm

    def _stop(self, batch: Batch, loss: float, gradient_norm: float, loss_sums: Tensor) -> None:
        """Raise an error that names the sources of the micro-batches without a finite loss; all ranks call it."""
        parts = torch.split(batch.true_source_ids, self.config.micro_batch)
        bad = [part for part, value in zip(parts, loss_sums.tolist(), strict=True) if not math.isfinite(value)]
        mine = torch.unique(torch.cat(bad)).tolist() if bad else []
        gathered: list[list[int]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(gathered, [source for source in mine if source != NO_SOURCE])
        found = sorted({source for sources in gathered for source in sources})
        named = ", ".join(map(format_id, found[:_MAX_NAMED])) or "all of the batch: only the gradient overflowed"
        more = f" and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        raise UsageError(
            f"step {self.state.step + 1} (step {batch.step + 1} of epoch {batch.epoch + 1}): loss is {loss}, gradient "
            f"norm {gradient_norm}, expected finite numbers; sources in the rows concerned: {named}{more}. Lower the "
            "learning rate or lengthen the warm-up, and check the text of these sources"
        )

    def _advance(self, batch: Batch, loss: float, seconds: float) -> None:
        """Move the state past a step; the sums of an epoch start at zero with its first step."""
        before = self.state if batch.step else dataclasses.replace(self.state, epoch_loss_sum=0.0, epoch_targets=0)
        self.state = dataclasses.replace(
            before,
            step=before.step + 1,
            loader=self.batches.state,
            num_targets=before.num_targets + batch.num_targets,
            seconds=before.seconds + seconds,
            epoch_loss_sum=before.epoch_loss_sum + loss * batch.num_targets,
            epoch_targets=before.epoch_targets + batch.num_targets,
        )

    def _save(self) -> None:
        """Start writing a checkpoint into the run's own directory, and report it."""
        directory, written = self.writer.save(self.model, self.optimizer, self.state)
        self.report(self.state.step, directory, written)

    def _finish(self) -> None:
        """Write the last checkpoint, the exported weights and then the result: with it, the run is done."""
        self._save()
        self.writer.wait()
        whole = export.whole_model(self.model)
        if whole is None:
            return
        state, run_dir = self.state, self.job.run_dir
        loss = state.epoch_loss_sum / max(1, state.epoch_targets)
        nulls = {
            "schema": 1,
            "snapshot": state.loader.snapshot,
            **self.job.facts,
            "layout": self.model.config.layout.to_dict(),
            "context_length": self.config.context_length,
            "heldout": [format_id(source) for source in self.job.heldout],
            "num_trained_sources": self.loader.num_sources,
            "train_config": self.config.to_dict(),
            "train_loss": loss,
            "tokens": state.num_targets,
        }
        digest = export.export_weights(whole, self.tokenizer, run_dir / export.WEIGHTS, nulls)
        result = {
            "weights": digest,
            "tokens": state.num_targets,
            "tokens_per_second": state.num_targets / max(state.seconds, 1e-9),
            "loss": loss,
        }
        write_atomic(run_dir / RESULT, json.dumps(result).encode())


def run_worker(plain_job: dict[str, Any]) -> None:
    """Train one worker's part of a job, given as `Job.to_plain` returns it; Ray Train runs this on each worker."""
    import ray.train.torch

    job = Job.from_plain(plain_job)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    try:
        with writing(job.run_dir, rank) as log:
            workers: list[dict[str, Any]] = [{} for _ in range(world_size)]
            dist.all_gather_object(workers, {"rank": rank, "host": socket.gethostname(), "pid": os.getpid()})
            log.write(workers=workers)
            worker = Worker(job, device, rank, world_size, log, report_to_ray)
            try:
                worker.run(log)
            finally:
                worker.writer.close()
    except ServiceError:
        raise  # a disk or a lock, on one rank only: Ray stops the other ranks and restarts all
    except NullsError as error:
        content = {"error": type(error).__name__, "message": str(error)}
        write_atomic(job.run_dir / FAILURE, json.dumps(content).encode())


def build_model(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> NullsForCausalLM:
    """Return a model of the configured shape for a tokenizer; its weights are drawn from torch's random state."""
    shape = config.model
    return NullsForCausalLM(
        NullsConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            head_dim=shape.head_size,
            rms_norm_eps=shape.norm_eps,
            intermediate_size=shape.num_backbone,
            num_pool=shape.num_pool,
            num_sinks=shape.num_sinks,
            sink_seed=shape.sink_seed,
            sink_scheme=shape.sink_scheme,
            reserved_sources=list(shape.reserved_sources) or None,
            max_position_embeddings=config.context_length,
            rope_theta=shape.rope_theta,
            tie_word_embeddings=shape.tie_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _seed(seed: int, *, on_cuda: bool) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    # cuBLAS is deterministic with this only, and reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=on_cuda)
    # Filling memory that will be overwritten costs 6 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _memory_of(device: torch.device) -> int | None:
    """Return the bytes of a GPU's memory; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32
