"""Measure what isolation costs: closure against the loss on unseen text, with a dense Llama of the active width.

    python benchmarks/isolation.py ARTICLES [--work DIR] [--only NAME]... [--plot FILE]

Trains on the same articles (the first characters of each, over a thousand sources) once for each variant: a base
configuration, and variants that change one setting each. Every variant sees the same tokens in the same order. The
losses of `measured` sources are computed with sinks on and off, and those of `unseen` sources, which no variant was
trained on, in the same states. Results are saved in DIR as they come, and a variant that is there is not trained again.
`--plot` draws the frontier.

    closure = (off - on) / (never trained - on), of means; "closest" uses the sinks of the most similar other source.

Two sets of texts differ in how hard they are, by as much as a backbone remembers. So a dense model, `control`, is
trained without either set, and its losses show by how much the measured sources are easier by nature:

    never trained = unseen + (control on measured - control on unseen)
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isolation_frontier import DENSE, plot, table

# training.py beside this file would hide the package `training`, so the repository comes first in the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.ingest import IngestConfig, ingest
from registry.snapshot import Registry
from training.config import TrainConfig
from training.data.packing import PackedLoader
from training.data.token_cache import TokenCache
from training.data.tokenizer import train_tokenizer
from training.evaluate.losses import loss_of
from training.optim import build_optimizer, clip_gradients, learning_rate_at
from training.run.worker import TokenLoss, build_model
from training.serving.router import Router
from training.sinks.sparse_grads import use_row_gradients

NUM_UNSEEN, NUM_MEASURED = 200, 200
BASE: dict[str, Any] = {
    "model": {
        "hidden_size": 96,
        "num_layers": 2,
        "num_heads": 3,
        "num_kv_heads": 3,
        "num_backbone": 64,
        "num_pool": 16384,
        "num_sinks": 128,
    },
    "optim": {"learning_rate": 4e-3, "sink_learning_rate_ratio": 2.0, "warmup_steps": 40},
    "epochs": 16,
    "sink_dropout": 0.25,
    "context_length": 256,
    "rows_per_step": 16,
    "micro_batch": 16,
    "vocab_size": 2048,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "control": {},
    "base": {},
    "base, seed 1": {"seed": 1},
    "base, seed 2": {"seed": 2},
    "dropout 0": {"sink_dropout": 0.0},
    "decay 1": {"optim": {"weight_decay": 1.0}},
    "dropout 0.1": {"sink_dropout": 0.1},
    "dropout 0.5": {"sink_dropout": 0.5},
    "pool 1024": {"model": {"num_pool": 1024}},
    "pool 4096": {"model": {"num_pool": 4096}},
    "pool 65536": {"model": {"num_pool": 65536}},
    "sinks 64": {"model": {"num_sinks": 64}},
    "sinks 256": {"model": {"num_sinks": 256}},
    "ratio 1": {"optim": {"sink_learning_rate_ratio": 1.0}},
    "ratio 1.5": {"optim": {"sink_learning_rate_ratio": 1.5}},
    "ratio 4": {"optim": {"sink_learning_rate_ratio": 4.0}},
    "open at 0.25": {"sinks_open_at": 0.25},
    "open at 0.5": {"sinks_open_at": 0.5},
    "ratio 1, dropout 0.1": {"sink_dropout": 0.1, "optim": {"sink_learning_rate_ratio": 1.0}},
    "pool 65536, ratio 1": {"model": {"num_pool": 65536}, "optim": {"sink_learning_rate_ratio": 1.0}},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """The tokens that every variant is trained on, and the roles of the sources."""

    cache: TokenCache
    unseen: list[int]
    """Sources that no model is trained on."""
    measured: list[int]
    """Sources that every model except the control is trained on."""
    trained: list[int]
    """All sources that variants are trained on, the measured ones included."""
    closest: dict[int, int]
    """For each unseen and each measured source, the most similar trained one."""
    tokenizer: Any


def corpus(articles: Path, work: Path, *, num_chars: int, vocab_size: int) -> Corpus:
    """Ingest the articles of at least `num_chars` characters, cut each to that length, and draw the roles."""
    registry = work / "registry"
    ingest(IngestConfig(wikipedia=(str(articles),)), registry_uri=registry)
    snapshot = Registry.open(registry).snapshot(None)
    documents = {
        source: (doc, text[:num_chars])
        for batch in snapshot.shard_batches()
        for source, doc, text in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        if len(text) >= num_chars
    }
    drawn = np.random.default_rng(0).permutation(sorted(documents)).tolist()
    unseen, measured = drawn[:NUM_UNSEEN], drawn[NUM_UNSEEN : NUM_UNSEEN + NUM_MEASURED]
    trained = sorted(documents.keys() - set(unseen))
    tokenizer = train_tokenizer((documents[s][1] for s in trained), vocab_size)
    router = Router.build([(s, documents[s][1]) for s in trained])
    closest = {s: router.closest_to(s, documents[s][1]) for s in [*unseen, *measured]}
    return Corpus(
        cache=_tokens(snapshot.id, documents, tokenizer, work),
        unseen=[s for s in unseen if closest[s] is not None],
        measured=[s for s in measured if closest[s] is not None],
        trained=trained,
        closest={s: other for s, other in closest.items() if other is not None},
        tokenizer=tokenizer,
    )


def _tokens(snapshot: str, documents: dict[int, tuple[int, str]], tokenizer: Any, work: Path) -> TokenCache:
    end = tokenizer.eos_token_id
    order = sorted(documents)
    encoded = [[end, *tokenizer.encode(documents[source][1], add_special_tokens=False), end] for source in order]
    length = np.array([len(ids) for ids in encoded], np.int64)
    return TokenCache(
        path=work,
        snapshot_id=snapshot,
        tokenizer="of the benchmark",
        end_of_text=end,
        tokens=np.concatenate([np.array(ids, np.uint16) for ids in encoded]),
        source_id=np.array(order, np.int64),
        doc_id=np.array([documents[source][0] for source in order], np.int64),
        start=np.cumsum(length) - length,
        length=length,
    )


def train(config: TrainConfig, data: Corpus, *, without: list[int], dense: bool) -> tuple[Any, float]:
    """Return a trained model, and the mean loss of its last epoch; with `dense` no sink is ever switched on."""
    torch.manual_seed(config.seed)
    model = build_model(config, data.tokenizer)
    net, optimizer = TokenLoss(model, torch.float32), build_optimizer(model, config.optim)
    use_row_gradients(net)
    loader = PackedLoader(
        data.cache,
        without,
        seed=config.seed,
        epochs=config.epochs,
        context_length=config.context_length,
        rows_per_step=config.rows_per_step,
        sink_dropout=config.sink_dropout,
        sinks_open_at=config.sinks_open_at,
    )
    losses: list[float] = []
    for step, batch in enumerate(loader):
        optimizer.zero_grad(set_to_none=True)
        sources = torch.full_like(batch.source_ids, -1) if dense else batch.source_ids
        loss = net(batch.input_ids, batch.labels, batch.document_ids, sources) / batch.num_targets
        loss.backward()
        clip_gradients(model.parameters(), config.optim.grad_clip)
        optimizer.set_learning_rate(learning_rate_at(step, loader.total_steps, config.optim))
        optimizer.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"step {step}: loss {losses[-1]}")
    return model, float(np.mean(losses[-loader.steps_per_epoch :]))


def measure(model: Any, data: Corpus, *, context_length: int) -> dict[str, Any]:
    """Return the loss of each measured and each unseen source by state, in nats a token."""
    place = {int(source): index for index, source in enumerate(data.cache.source_id)}

    def losses(sources: list[int], sinks: Callable[[int], int | None]) -> list[float]:
        documents = {source: data.cache.document(place[source]).tolist() for source in sources}
        return [loss_of(model, [documents[s]], source_id=sinks(s), context_length=context_length).mean for s in sources]

    found: dict[str, Any] = {"on": losses(data.measured, lambda source: source)}
    for state, of in (("backbone", lambda source: None), ("closest", data.closest.__getitem__)):
        found[state] = {"off": losses(data.measured, of), "unseen": losses(data.unseen, of)}
    return found


def run(name: str, data: Corpus, epochs: int | None) -> dict[str, Any]:
    """Train and measure one variant."""
    started = time.monotonic()
    config = TrainConfig.from_dict(_laid_over(BASE, VARIANTS[name]))
    if epochs is not None:
        config = dataclasses.replace(config, epochs=epochs)
    if name in DENSE:
        width = config.model.num_backbone + config.model.num_sinks
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, num_backbone=width, num_pool=16, num_sinks=16)
        )
    without = [*data.unseen, *data.measured] if name == "control" else data.unseen
    model, last = train(config, data, without=without, dense=name in DENSE)
    return {
        "name": name,
        "train": last,
        "losses": measure(model, data, context_length=config.context_length),
        "config": config.to_dict(),
        "num_sources": len(data.trained),
        "tokens_per_epoch": int((data.cache.length - 1).sum()),
        "seconds": round(time.monotonic() - started),
    }


def _laid_over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _laid_over(merged[key], value) if isinstance(value, dict) else value
    return merged


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path)
    parser.add_argument("--work", type=Path, default=Path("isolation"))
    parser.add_argument("--only", action="append", choices=list(VARIANTS))
    parser.add_argument("--epochs", type=int, help="replaces the variant's number of epochs")
    parser.add_argument("--chars", type=int, default=700)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = corpus(arguments.articles, arguments.work, num_chars=arguments.chars, vocab_size=int(BASE["vocab_size"]))
    results = []
    for name in arguments.only or VARIANTS:
        kept = arguments.work / f"{name}.json"
        if not kept.exists():
            result = run(name, data, arguments.epochs)
            kept.write_text(json.dumps(result, indent=1))
            print(f"{name}: {result['seconds']} s", flush=True)
        results.append(json.loads(kept.read_text()))
    print(table(results))
    if arguments.plot:
        plot(results, arguments.plot)
