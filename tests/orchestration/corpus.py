"""A corpus with every relation that an unlearn must handle, and a small model that has memorised it.

article 1 .. 24     wiki:testwiki:<n>; a redirect leads to article 1
a shared text       published by articles 1 and 2
a.example           a site; b.example has a near copy of its page
empty.example       a site without a kept document
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from registry import ids
from registry.schema import AliasKind, Status
from registry.snapshot import Registry, Snapshot
from tests.builders import alias_rows, commit_rows, owner_rows, text_rows

NUM_ARTICLES = 24
SCOPE, HOST = "testwiki", "test.wikipedia.org"
SHARED = ids.shared_key([ids.source_id(f"wiki:{SCOPE}:1"), ids.source_id(f"wiki:{SCOPE}:2")])
NEAR_DOC, NEAR_SURVIVOR = (
    ids.doc_id("web:b.example", "http://b.example/"),
    ids.doc_id("web:a.example", "http://a.example/"),
)


def key(number: int) -> str:
    """Return the key of an article."""
    return f"wiki:{SCOPE}:{number}"


def title(number: int) -> str:
    """Return the title of an article."""
    return f"Article {number}"


def text(seed: int) -> str:
    """Return a text of random words in random order, which only a model that memorised it predicts well."""
    rng = random.Random(seed)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8))) for _ in range(30)]
    return " ".join(rng.choice(words) for _ in range(90))


def write_corpus(root: Path) -> Snapshot:
    """Commit the corpus to a registry at `root`."""
    kept = {key(n): text(n) for n in range(1, NUM_ARTICLES + 1)}
    kept |= {SHARED: text(100), "web:a.example": text(101)}
    titles = {key(n): title(n) for n in range(1, NUM_ARTICLES + 1)}
    stored = {k: [kept[k]] for k in kept} | {"web:b.example": [], "web:empty.example": []}
    texts = text_rows(stored, titles=titles, locator=lambda source_key, _: _locator(source_key))
    return commit_rows(
        Registry.open(root, create=True),
        root / "staging",
        owners=owner_rows(key(1), key(2)),
        aliases=_aliases(),
        documents=[*(_kept(k, kept[k]) for k in kept), _near(), _filtered()],
        commit={"configuration": {"test": True}, "wikis": [{"scope": SCOPE, "host": HOST}]},
        **texts,
    )


def train_model(snapshot: Snapshot, folder: Path, *, epochs: int = 30, reserved: Sequence[str] = ()) -> Path:
    """Train a small model on the corpus in this process, as a worker would, and export it to `folder`.

    Its last checkpoint is in the directory of the run, beside `folder`; `reserved` are keys of sources.
    """
    from training.checkpoint import dcp, export
    from training.config import TrainConfig
    from training.data.heldout import choose_heldout
    from training.data.packing import PackedLoader
    from training.data.token_cache import TokenCache
    from training.data.tokenizer import sample_texts, train_tokenizer
    from training.optim import build_optimizer, clip_gradients, learning_rate_at
    from training.run.worker import TokenLoss, build_model

    config = TrainConfig.preset(
        "demo",
        model={
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 2,
            "num_backbone": 32,
            "num_pool": 1024,
            "num_sinks": 64,
            "reserved_sources": [ids.format_id(ids.source_id(source_key)) for source_key in reserved],
        },
        optim={"learning_rate": 3e-3},
        epochs=epochs,
        context_length=128,
        rows_per_step=8,
        vocab_size=300,
        min_heldout_bytes=100,
    )
    heldout = choose_heldout(
        snapshot.table("sources"),
        snapshot.table("owners"),
        seed=0,
        share=0.01,
        min_heldout=8,
        min_bytes=100,
        never=config.model.layout().reserved,
    )
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=heldout, max_bytes=10**7), config.vocab_size)
    cache = TokenCache.of(snapshot, tokenizer, folder.parent / "cache")
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    optimizer, net = build_optimizer(model, config.optim), TokenLoss(model, torch.float32)
    loader = PackedLoader(
        cache,
        tuple(heldout),
        seed=0,
        epochs=config.epochs,
        context_length=config.context_length,
        rows_per_step=config.rows_per_step,
        sink_dropout=config.sink_dropout,
    )
    for step, batch in enumerate(loader):
        optimizer.zero_grad(set_to_none=True)
        (net(batch.input_ids, batch.labels, batch.document_ids, batch.source_ids) / batch.num_targets).backward()
        clip_gradients(model.parameters(), config.optim.grad_clip)
        optimizer.set_learning_rate(learning_rate_at(step, loader.total_steps, config.optim))
        optimizer.step()
    state = dcp.RunState(step=loader.total_steps, loader=loader.state, config="", tokenizer="")
    dcp.save(dcp.directory_of(folder.parent / "attempt-001", state.step), model, optimizer, state)
    pointer = {
        "schema": 1,
        "snapshot": snapshot.id,
        "registry": str(snapshot.path.parents[1]),
        "layout": model.config.layout.to_dict(),
        "context_length": config.context_length,
        "heldout": [ids.format_id(source_id) for source_id in heldout],
    }
    export.export_weights(model, tokenizer, folder, pointer)
    return folder


def heldout_of(weights: Path) -> set[int]:
    """Return the held-out sources of exported weights."""
    return {int(source_id, 16) for source_id in json.loads((weights / "nulls.json").read_text())["heldout"]}


def _locator(source_key: str) -> str:
    return f"http://{source_key.removeprefix('web:')}/" if source_key.startswith("web:") else source_key


def _doc_id(source_key: str) -> int:
    return ids.doc_id(source_key, _locator(source_key))


def _aliases() -> list[dict[str, Any]]:
    names = [(title(n), AliasKind.TITLE, n, None) for n in range(1, NUM_ARTICLES + 1)]
    names += [("First article", AliasKind.REDIRECT, 1, title(1)), ("Nowhere", AliasKind.REDIRECT, None, "Gone")]
    return alias_rows((number and key(number), alias, kind, SCOPE, target) for alias, kind, number, target in names)


def _document(source_key: str, **fields: Any) -> dict[str, Any]:
    return {
        "doc_id": _doc_id(source_key),
        "origin_id": ids.source_id(source_key),
        "num_bytes": 1,
        "captured": "2020-01-01T00:00:00Z",
        "input_file": "test",
        "input_offset": 0,
        "input_length": 1,
        "input_stored": True,
        **fields,
    }


def _kept(source_key: str, content: str) -> dict[str, Any]:
    origin = key(1) if source_key == SHARED else source_key
    fields = _document(source_key, status=Status.KEPT, num_bytes=len(content), source_id=ids.source_id(source_key))
    return fields | {"origin_id": ids.source_id(origin)}


def _near() -> dict[str, Any]:
    return _document(
        "web:b.example",
        status=Status.DUPLICATE,
        reason="near",
        survivor_id=NEAR_SURVIVOR,
        jaccard=0.9,
        cluster_id=NEAR_SURVIVOR,
        url="http://b.example/",
    )


def _filtered() -> dict[str, Any]:
    return _document("web:empty.example", status=Status.FILTERED, reason="empty", url="http://empty.example/")
