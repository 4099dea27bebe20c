"""A registry of many small sources and an untrained small model on it, registered as models:/m/1."""

from __future__ import annotations

from pathlib import Path

import torch

from orchestration.settings import Settings
from registry import ids
from registry.snapshot import Registry, Snapshot
from tests.builders import alias_rows, commit_rows, text_rows
from training.checkpoint import export
from training.config import TrainConfig
from training.data.tokenizer import sample_texts, train_tokenizer
from training.run.worker import build_model
from training.serving import flavor
from training.tracking import store

NUM_HELDOUT = 12


def registered(
    folder: Path, *, num_sources: int, catalog: str | None = None, tracking: str | None = None
) -> tuple[Settings, list[str]]:
    """Make the registry, the model and the stores; return the stores and the keys that can be unlearned.

    Args:
        folder: of the registry and the weights.
        num_sources: trained ones; a dozen are held out besides.
        catalog, tracking: URLs of the catalogue and of MLflow's store; by default SQLite files in `folder`.
    """
    keys = [f"wiki:enwiki:{number}" for number in range(1, num_sources + NUM_HELDOUT + 1)]
    snapshot = _snapshot(folder / "registry", keys)
    settings = Settings(
        registry=str(folder / "registry"),
        catalog=catalog or f"sqlite:///{folder / 'catalog.db'}",
        tracking=tracking or f"sqlite:///{folder / 'mlflow.db'}",
    )
    _register(folder, snapshot, keys[:NUM_HELDOUT], settings.tracking_uri)
    settings.open_catalog().engine.dispose()
    return settings, keys[NUM_HELDOUT:]


def _snapshot(root: Path, keys: list[str]) -> Snapshot:
    texts = {key: [f"The text of {key} is about number {key.rpartition(':')[2]} and nothing else."] for key in keys}
    titles = {key: f"Number {key.rpartition(':')[2]}" for key in keys}
    return commit_rows(
        Registry.open(root, create=True),
        root / "staging",
        aliases=alias_rows([(key, title, "title", "enwiki", None) for key, title in titles.items()]),
        commit={"configuration": {"benchmark": True}, "wikis": [{"scope": "enwiki", "host": "en.wikipedia.org"}]},
        **text_rows(texts, titles=titles),
    )


def _register(folder: Path, snapshot: Snapshot, heldout: list[str], uri: str) -> None:
    shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "num_backbone": 32}
    config = TrainConfig.preset(
        "demo", model=shape | {"num_pool": 1024, "num_sinks": 64}, context_length=128, vocab_size=300
    )
    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**6), config.vocab_size)
    torch.manual_seed(0)
    model = build_model(config, tokenizer)
    pointer = {
        "schema": 1,
        "snapshot": snapshot.id,
        "registry": str(folder / "registry"),
        "layout": model.config.layout.to_dict(),
        "context_length": 128,
        "heldout": [ids.format_id(ids.source_id(key)) for key in heldout],
    }
    export.export_weights(model, tokenizer, folder / "weights", pointer)
    client = store.client(uri)
    experiment = client.create_experiment("many", artifact_location=str(folder / "artifacts"))
    run_id = client.create_run(experiment).info.run_id
    flavor.register(folder / "weights", model_name="m", run_id=run_id, tracking_uri=uri)
