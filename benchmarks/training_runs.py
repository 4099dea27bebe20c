"""The parts `workers` and `gpu` of `training.py`: the training loop on one and two processes, `paper-1b` on a GPU."""

from __future__ import annotations

import dataclasses
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import texts
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from training_steps import DOCUMENT_TOKENS, batch, nulls

from registry import ids, schema
from registry.schema import Kind
from registry.snapshot import Registry, Snapshot, SnapshotWriter
from training.config import OptimConfig, TrainConfig
from training.data.token_cache import TokenCache
from training.data.tokenizer import sample_texts, train_tokenizer
from training.distributed.parallel import wrap_layers
from training.model.document_mask import choose_attention
from training.optim import build_optimizer, clip_gradients
from training.run import mfu
from training.run.protocol import PROGRESS, Job, ProgressLog
from training.run.worker import TokenLoss, Worker

_PAPER = "paper-1b-aligned"
_VOCABULARY = 49152


def corpus(root: Path, num_articles: int) -> Snapshot:
    """Commit a snapshot of articles of about 9 kB, the size of the demo's."""
    registry = Registry.open(root, create=True)
    writer = SnapshotWriter(registry, root / "staging")
    articles = {f"wiki:bench:{i}": text for i, text in enumerate(texts.make(num_articles, 9000))}
    sources, shard = [], []
    for row, key in enumerate(sorted(articles, key=ids.source_id)):
        shard.append({"source_id": ids.source_id(key), "doc_id": ids.doc_id(key, key), "text": articles[key]})
        counts = {"num_documents": 1, "num_bytes": len(articles[key].encode())}
        placements = [{"shard": 0, "row_start": row, "row_end": row + 1}]
        sources.append(
            {"source_id": ids.source_id(key), "key": key, "kind": Kind.WIKI, "placements": placements} | counts
        )
    for name, table_schema in schema.TABLES.items():
        with writer.table(name) as file:
            file.write(pa.Table.from_pylist(sources if name == "sources" else [], schema=table_schema))
    with writer.shard(0) as file:
        file.write(pa.Table.from_pylist(shard, schema=schema.SHARD))
    return writer.commit(configuration={"benchmark": True}, inputs=[])


def prepared(folder: Path, config: TrainConfig, num_articles: int) -> Job:
    """Return the job that a driver would hand to its workers."""
    snapshot = corpus(folder / "registry", num_articles)
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**9), config.vocab_size)
    tokenizer.save_pretrained(str(folder / "run" / "tokenizer"))
    cache = TokenCache.of(snapshot, tokenizer, folder / "cache")
    return Job(config=config, run_dir=folder / "run", attempt="attempt", cache=cache.path, heldout=(), facts={})


def train_rank(rank: int, world_size: int, plain_job: dict[str, Any], attempt: str, device: str) -> None:
    """Run one process of a run, on one thread or on one GPU."""
    torch.set_num_threads(1)
    job = dataclasses.replace(Job.from_plain(plain_job), attempt=attempt)
    # Each attempt is a run of its own, in its own folder, over the same token cache.
    job = dataclasses.replace(job, run_dir=job.run_dir / attempt)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{job.run_dir}/group", rank=rank, world_size=world_size)
    with (job.run_dir / PROGRESS).open("a", encoding="utf-8") as file:
        log = ProgressLog(None if rank else file)
        worker = Worker(job, torch.device(device), rank, world_size, log)
        worker.run(log)
        worker.writer.close()
    dist.destroy_process_group()


def steps_of(job: Job, world_size: int, attempt: str, device: str = "cpu") -> list[dict[str, Any]]:
    """Return what the training loop reported of each step of a run, without the first five."""
    run_dir = job.run_dir / attempt
    run_dir.mkdir()
    (run_dir / "tokenizer").symlink_to(job.run_dir / "tokenizer")
    mp.spawn(train_rank, args=(world_size, job.to_plain(), attempt, device), nprocs=world_size)
    lines = [json.loads(line) for line in (run_dir / PROGRESS).read_text().splitlines()]
    return [line for line in lines if "tokens_per_second" in line][5:]


def workers(num_articles: int = 60, turns: int = 2) -> dict[str, Any]:
    """Train the demo's preset for one epoch: `ratio` is tokens a second with two processes over those with one."""
    config = TrainConfig.preset("demo", epochs=1, watch_every=0, checkpoint_every=10_000, keep_checkpoints=1)
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        job = prepared(Path(folder), config, num_articles)
        for turn in range(turns):
            for count, rates in found.items():
                steps = steps_of(job, count, f"run-{count}-{turn}")
                rates.append(statistics.median(step["tokens_per_second"] for step in steps))
    one, two = (statistics.median(rates) for rates in found.values())
    return {"ratio": round(two / one, 3), "one_tokens_per_second": round(one), "two_tokens_per_second": round(two)}


def gpu() -> dict[str, Any]:
    """Measure `paper-1b-aligned` in bfloat16, rows of 1024: tokens/s over all neurons masked, MFU, loss over float32.

    These figures are for bare steps with compiled layers; `loop` is the training loop with packing, prefetch and log.
    """
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA device here; run this part on a machine that has one"}
    config = TrainConfig.preset(
        _PAPER, epochs=1, context_length=1024, rows_per_step=64, micro_batch=16, dtype="bfloat16", compile=True
    )
    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    # The loop runs first: it is a process of its own, and this one would take the GPU memory that it needs.
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "loop": lambda: {"loop": looped(config, "cuda", num_articles=2000)},
        "speed": lambda: speed(config, "cuda", vocab_size=_VOCABULARY, steps=20),
        "loss_gap": lambda: loss_gap(config, "cuda", vocab_size=_VOCABULARY, rows=8, steps=300),
    }
    for name, part in parts.items():
        began = time.perf_counter()
        found |= part()
        print(f"{name}: {time.perf_counter() - began:.0f} s, {found}", file=sys.stderr, flush=True)
    return found


def speed(config: TrainConfig, device: str, *, vocab_size: int, steps: int) -> dict[str, Any]:
    """Return tokens a second of whole steps, the ratio to a model that computes every neuron, and MFU."""
    ours, _ = trained(config, vocab_size, device, steps, dense=False)
    # The activations of every neuron are kept, so only fewer rows fit at a time.
    narrow = dataclasses.replace(config, micro_batch=max(1, config.micro_batch // 4))
    dense, _ = trained(narrow, vocab_size, device, max(4, steps // 4), dense=True)
    # A token attends to half of its document on average, and to itself.
    attended = (DOCUMENT_TOKENS + 1) / 2
    flops = config.model.flops_per_token(vocab_size, config.context_length, attended=attended)
    peak = mfu.peak_flops(torch.cuda.get_device_name()) if device == "cuda" else None
    return {
        "tokens_per_second": round(ours),
        "tokens_per_second_over_dense": round(ours / dense, 3),
        "mfu": None if peak is None else round(ours * flops / peak, 4),
    }


def loss_gap(config: TrainConfig, device: str, *, vocab_size: int, rows: int, steps: int) -> dict[str, Any]:
    """Compare the loss in the last tenth of the steps with that of the same updates in float32, every neuron masked."""
    config = dataclasses.replace(config, rows_per_step=rows, micro_batch=rows)
    exact = dataclasses.replace(config, dtype="float32", micro_batch=max(1, rows // 4), compile=False)
    _, losses = trained(config, vocab_size, device, steps, dense=False)
    _, exact_losses = trained(exact, vocab_size, device, steps, dense=True)
    tail = max(1, steps // 10)
    return {"loss_gap": round(sum(losses[-tail:]) / sum(exact_losses[-tail:]) - 1, 5)}


def looped(config: TrainConfig, device: str, *, num_articles: int) -> dict[str, Any]:
    """Run an epoch of the training loop on one device; `loader_share` is the share of time that steps wait for data."""
    config = dataclasses.replace(config, watch_every=0, checkpoint_every=10**6, keep_checkpoints=1)
    with tempfile.TemporaryDirectory() as folder:
        steps = steps_of(prepared(Path(folder), config, num_articles), 1, "loop", device)
    seconds = [step["num_targets"] / step["tokens_per_second"] for step in steps]
    waited = sum(step["loader_share"] * s for step, s in zip(steps, seconds, strict=True))
    return {
        "loader_share": round(waited / sum(seconds), 5),
        "tokens_per_second": round(sum(step["num_targets"] for step in steps) / sum(seconds)),
        "mfu": round(statistics.median(step["mfu"] for step in steps), 4) if "mfu" in steps[0] else None,
        "steps": len(steps),
    }


def trained(config: TrainConfig, vocab_size: int, device: str, steps: int, *, dense: bool) -> tuple[float, list[float]]:
    """Return tokens a second (median, without the first fifth of the steps, which compile) and each step's loss."""
    model = nulls(config.model, vocab_size, dense=dense).to(device)
    model.set_attn_implementation(choose_attention(device))
    wrap_layers(model, config)
    loss = TokenLoss(model, torch.bfloat16 if config.dtype == "bfloat16" else torch.float32)
    optimizer = build_optimizer(loss, OptimConfig(warmup_steps=10))
    rows, tokens = config.rows_per_step, config.context_length
    seconds, losses = [], []
    for step in range(steps):
        inputs = batch(vocab_size, rows, tokens, device, seed=step % 16)
        began = time.perf_counter()
        losses.append(one_step(loss, optimizer, inputs, config.micro_batch))
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    del model, loss, optimizer
    gc.collect()  # compiled layers refer to themselves
    if device == "cuda":
        torch.cuda.empty_cache()
    return rows * tokens / statistics.median(seconds[max(1, steps // 5) :]), losses


def one_step(loss: nn.Module, optimizer: Any, inputs: tuple[Tensor, ...], micro_batch: int) -> float:
    """Run a whole step in micro-batches, and return the mean loss in nats."""
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=inputs[0].device)
    for part in zip(*(torch.split(x, micro_batch) for x in inputs), strict=True):
        mean = loss(*part) / inputs[0].numel()
        mean.backward()
        total += mean.detach()
    clip_gradients(loss.parameters(), 1.0)
    optimizer.step()
    return float(total)
