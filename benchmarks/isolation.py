"""What isolation costs: closure against the loss on unseen text, beside a dense Llama of the active width.

    python benchmarks/isolation.py ARTICLES [--work DIR] [--only NAME]... [--list] [--plot FILE]

Trains the same articles (the first characters of each, over a thousand sources) once for each variant: the demo's
shape, then one thing changed at a time. Every variant sees the same tokens in the same order. Measured for each are the
mean loss of trained sources on and off and of held-out sources, which no variant saw, in the same states. Results are
kept in DIR as they come, and a variant that is there is not trained again. `--plot` draws the frontier.

    closure = (off - on) / (never trained - on), of means; "closest" is the sinks of the most similar other source.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Beside this file lies one with the name of the package `training`, which has to be found before it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.ingest import IngestConfig, ingest
from registry.snapshot import Registry, Snapshot
from training.config import TrainConfig
from training.evaluate.losses import loss_of
from training.heldout import choose_heldout
from training.loader import PackedLoader
from training.loop import TokenLoss, build_model
from training.optim import build_optimizer, clip_gradients, learning_rate_at
from training.router import Router
from training.rows import use_row_gradients
from training.tokens import TokenCache, train_tokenizer

NUM_HELDOUT, NUM_MEASURED = 64, 64
BASE: dict[str, Any] = {
    "model": {
        "hidden_size": 96,
        "num_layers": 2,
        "num_heads": 3,
        "num_kv_heads": 3,
        "num_backbone": 64,
        "num_pool": 4096,
        "num_sinks": 128,
    },
    "optim": {"learning_rate": 4e-3, "sink_learning_rate_ratio": 2.0, "warmup_steps": 40},
    "epochs": 8,
    "sink_dropout": 0.25,
    "context_length": 256,
    "rows_per_step": 16,
    "micro_batch": 16,
    "vocab_size": 2048,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "dense": {},
    "dropout 0": {"sink_dropout": 0.0},
    "dropout 0.5": {"sink_dropout": 0.5},
    "pool 512": {"model": {"num_pool": 512}},
    "pool 16384": {"model": {"num_pool": 16384}},
    "sinks 64": {"model": {"num_sinks": 64}},
    "sinks 256": {"model": {"num_sinks": 256}},
    "ratio 1": {"optim": {"sink_learning_rate_ratio": 1.0}},
    "ratio 4": {"optim": {"sink_learning_rate_ratio": 4.0}},
    "open at 0.25": {"sinks_open_at": 0.25},
    "open at 0.5": {"sinks_open_at": 0.5},
    "backbone 128": {"model": {"num_backbone": 128}},
    "base, seed 1": {"seed": 1},
    "dropout 0.1": {"sink_dropout": 0.1},
    "pool 65536": {"model": {"num_pool": 65536}},
    "pool 65536, ratio 1": {"model": {"num_pool": 65536}, "optim": {"sink_learning_rate_ratio": 1.0}},
    "pool 65536, open at 0.25": {"model": {"num_pool": 65536}, "sinks_open_at": 0.25},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """The same tokens for every variant."""

    cache: TokenCache
    heldout: list[int]
    trained: list[int]
    closest: dict[int, int]
    """Of each measured source, trained or held out: the most similar trained one."""
    tokenizer: Any


def corpus(articles: Path, work: Path, *, num_chars: int, vocab_size: int) -> Corpus:
    """Articles of at least `num_chars` characters, each cut to so many."""
    registry = work / "registry"
    ingest(IngestConfig(wikipedia=(str(articles),)), registry_uri=registry)
    snapshot = Registry.open(registry).snapshot(None)
    documents = {
        source: (doc, text[:num_chars])
        for batch in snapshot.shard_batches()
        for source, doc, text in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        if len(text) >= num_chars
    }
    heldout = [s for s in _ranked(snapshot) if s in documents][:NUM_HELDOUT]
    trained = sorted(documents.keys() - set(heldout))
    tokenizer = train_tokenizer((documents[s][1] for s in trained), vocab_size)
    router = Router.build([(s, documents[s][1]) for s in trained])
    measured = [*heldout, *_spread(trained)]
    closest = {s: router.closest_to(s, documents[s][1]) for s in measured}
    return Corpus(
        cache=_tokens(snapshot.id, documents, tokenizer, work),
        heldout=heldout,
        trained=trained,
        closest={s: other for s, other in closest.items() if other is not None},
        tokenizer=tokenizer,
    )


def _ranked(snapshot: Snapshot) -> list[int]:
    num_sources = len(snapshot.table("sources"))
    return choose_heldout(
        snapshot.table("sources"), snapshot.table("owners"), seed=0, share=0.1, min_heldout=min(300, num_sources // 4)
    )


def _spread(sources: list[int]) -> list[int]:
    return sources[:: max(1, len(sources) // NUM_MEASURED)][:NUM_MEASURED]


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


def train(config: TrainConfig, data: Corpus, *, dense: bool) -> tuple[Any, float]:
    """A trained model, and the mean loss of its last epoch; `dense` never switches a sink on."""
    torch.manual_seed(config.seed)
    model = build_model(config, data.tokenizer)
    net, optimizer = TokenLoss(model, torch.float32), build_optimizer(model, config.optim)
    use_row_gradients(net)
    loader = PackedLoader(
        data.cache,
        data.heldout,
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
    """Mean losses of trained and held-out sources, and the closures."""
    place = {int(source): index for index, source in enumerate(data.cache.source_id)}

    def loss(source: int, sinks: int | None) -> float:
        document = data.cache.document(place[source]).tolist()
        return loss_of(model, [document], source_id=sinks, context_length=context_length).mean

    trained = [s for s in _spread(data.trained) if s in data.closest]
    unseen = [s for s in data.heldout if s in data.closest]
    on = np.array([loss(s, s) for s in trained])
    found: dict[str, Any] = {"on": float(on.mean())}
    for state, of in (("backbone", lambda s: None), ("closest", data.closest.__getitem__)):
        off, never = np.array([loss(s, of(s)) for s in trained]), np.array([loss(s, of(s)) for s in unseen])
        found[state] = {
            "off": float(off.mean()),
            "unseen": float(never.mean()),
            "unseen_stderr": float(never.std(ddof=1) / math.sqrt(len(never))),
            "closure": float((off.mean() - on.mean()) / (never.mean() - on.mean())),
        }
    return found


def run(name: str, data: Corpus, epochs: int) -> dict[str, Any]:
    """One variant, trained and measured."""
    started = time.monotonic()
    config = TrainConfig.from_dict(_laid_over(_laid_over(BASE, VARIANTS[name]), {"epochs": epochs}))
    dense = name == "dense"
    if dense:
        width = config.model.num_backbone + config.model.num_sinks
        shape = dataclasses.replace(config.model, num_backbone=width, num_pool=16, num_sinks=16)
        config = dataclasses.replace(config, model=shape)
    model, last = train(config, data, dense=dense)
    return {
        "name": name,
        "train": last,
        **measure(model, data, context_length=config.context_length),
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


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table, the dense model's unseen loss as the reference."""
    dense = next((r["backbone"]["unseen"] for r in results if r["name"] == "dense"), None)
    lines = [
        "| variant | on | off (backbone / closest) | never trained (same) | closure (same) | unseen over dense |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        backbone, closest = r["backbone"], r["closest"]
        if r["name"] == "dense":
            lines.append(f"| **dense** | {r['on']:.2f} | | {backbone['unseen']:.2f} | | 0 |")
            continue
        gap = "" if dense is None else f"+{backbone['unseen'] - dense:.2f} / +{closest['unseen'] - dense:.2f}"
        lines.append(
            f"| {r['name']} | {r['on']:.2f} | {backbone['off']:.2f} / {closest['off']:.2f} | "
            f"{backbone['unseen']:.2f} / {closest['unseen']:.2f} | "
            f"{backbone['closure']:.2f} / {closest['closure']:.2f} | {gap} |"
        )
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """The frontier: closure against the loss on unseen text, in both off states."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5.5), sharey=True)
    dense = next(r for r in results if r["name"] == "dense")["backbone"]["unseen"]
    for axis, state in zip(axes, ("backbone", "closest"), strict=True):
        for r in results:
            if r["name"] != "dense":
                x, y = r[state]["unseen"], r[state]["closure"]
                axis.errorbar(x, y, xerr=r[state]["unseen_stderr"], fmt="o", color="tab:blue", ecolor="lightgray")
                axis.annotate(r["name"], (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axis.axvline(dense, color="tab:red", linestyle="--", label=f"dense Llama of the active width: {dense:.2f}")
        axis.axhline(0.9, color="gray", linewidth=0.7)
        axis.set(xlabel="loss on unseen text, nats a token", title=f"off = {state}")
        axis.legend(loc="lower right", fontsize=8)
    axes[0].set_ylabel("closure")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("articles", type=Path)
    parser.add_argument("--work", type=Path, default=Path("isolation"))
    parser.add_argument("--only", action="append", choices=list(VARIANTS))
    parser.add_argument("--epochs", type=int, default=8)
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
