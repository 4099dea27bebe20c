"""The tokens of a run, before it runs: exact from a token cache, else estimated, and marked as one or the other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from registry.snapshot import Registry, Snapshot
from training.config import TrainConfig
from training.data.packing import PackedLoader
from training.data.token_cache import TokenCache
from training.data.tokenizer import load_tokenizer, train_tokenizer
from training.estimate.token_count import TokenCount, bytes_per_token, count_tokens, steps_per_epoch, tokenizer_recipe
from training.run import driver
from training.tracking import store

CONFIG = TrainConfig.preset(
    "demo", context_length=32, rows_per_step=4, min_heldout=2, min_heldout_bytes=100, vocab_size=400
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, snapshot: Snapshot, registry_root: Path) -> Path:
    """A directory of runs with one that the driver has prepared and not started."""
    runs = tmp_path_factory.mktemp("runs")
    uri = store.tracking_uri(f"sqlite:///{runs / 'mlflow.db'}")
    registry, client = Registry.open(registry_root), store.client(uri)
    driver._prepare_run(CONFIG, snapshot, runs / "m", registry, client, uri, "test", [])
    return runs


def loader_of(runs: Path, config: TrainConfig, heldout: list[int]) -> PackedLoader:
    (cache,) = (runs / "cache").iterdir()
    return PackedLoader(
        TokenCache.open(cache),
        heldout,
        epochs=config.epochs,
        context_length=config.context_length,
        rows_per_step=config.rows_per_step,
    )


def test_tokens_of_an_earlier_run_are_exact(prepared: Path, snapshot: Snapshot) -> None:
    run = driver._newest_run(prepared / "m", None)
    assert run is not None
    heldout = [int(text, 16) for text in json.loads((run / "run.json").read_bytes())["heldout"]]
    assert len(heldout) == 2
    # Epochs and rows change neither the tokenizer nor the held-out sources, so the token cache still counts.
    config = dataclasses.replace(CONFIG, epochs=3, rows_per_step=8, context_length=64)
    count, loader = count_tokens(config, snapshot, prepared), loader_of(prepared, config, heldout)
    assert count.is_exact
    assert str(prepared) in count.basis
    assert (count.per_epoch, count.steps_per_epoch) == (loader.num_targets_per_epoch, loader.steps_per_epoch)
    assert count.steps_per_epoch == steps_per_epoch(config, count.per_epoch) > 3
    assert count.vocab_size == len(load_tokenizer(run / "tokenizer"))
    # Documents longer than a row are cut by it.
    cache = TokenCache.open(next((prepared / "cache").iterdir()))
    lengths = [n - 1 for n, s in zip(cache.length.tolist(), cache.source_id.tolist(), strict=True) if s not in heldout]
    assert sum(lengths) == count.per_epoch
    seen = sum(min(length, 64) * length / 2 for length in lengths) / sum(lengths)
    assert count.attended == pytest.approx(seen)
    assert 0 < count.attended <= 32


@pytest.mark.parametrize(
    "change", [{"vocab_size": 500}, {"seed": 1}, {"min_heldout": 3}, {"tokenizer_sample_bytes": 5000}]
)
def test_the_cache_of_another_tokenizer_is_not_used(prepared: Path, snapshot: Snapshot, change: dict[str, int]) -> None:
    count = count_tokens(dataclasses.replace(CONFIG, **change), snapshot, prepared)
    assert not count.is_exact
    assert "estimated" in count.basis


def test_a_given_tokenizer_without_a_cache_takes_a_sample(prepared: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    run = driver._newest_run(prepared / "m", None)
    assert run is not None
    known = dataclasses.replace(CONFIG, tokenizer=str(run / "tokenizer"))
    exact = count_tokens(known, snapshot, prepared)
    assert exact.is_exact
    assert exact.per_epoch == count_tokens(CONFIG, snapshot, prepared).per_epoch
    assert tokenizer_recipe(known, []) is None
    # The same tokenizer without a cache: the estimate is from a sample of the text.
    near = count_tokens(known, snapshot, tmp_path)
    assert not near.is_exact
    assert near.per_epoch == pytest.approx(exact.per_epoch, rel=0.05)
    assert near.document_tokens == pytest.approx(exact.document_tokens, rel=0.05)
    assert near.attended == pytest.approx(exact.attended, rel=0.1)
    assert near.vocab_size == exact.vocab_size


def test_a_damaged_cache_is_not_counted(prepared: Path, snapshot: Snapshot) -> None:
    (tokens,) = (prepared / "cache").glob("*/tokens.bin")
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-2])
    try:
        assert not count_tokens(CONFIG, snapshot, prepared).is_exact
    finally:
        tokens.write_bytes(whole)


def test_bytes_a_token_grow_with_the_tokenizer() -> None:
    assert bytes_per_token(257) == 1.0
    sizes = [300, 512, 1000, 4096, 10_000, 49_152]
    ratios = [bytes_per_token(size) for size in sizes]
    assert ratios == sorted(set(ratios))
    assert bytes_per_token(100_000) == bytes_per_token(49_152) == 4.58
    # Other English than Wikipedia's is a fifth off at most.
    text = (Path(__file__).parents[3] / "docs/LOG.md").read_text()
    tokenizer = train_tokenizer([text[: len(text) // 2]], 512)
    rest = text[len(text) // 2 :]
    measured = len(rest.encode()) / len(tokenizer.backend_tokenizer.encode(rest).ids)
    assert measured == pytest.approx(bytes_per_token(512), rel=0.2)


def test_stated_tokens_are_used_as_they_are() -> None:
    count = TokenCount.stated(CONFIG, 129)
    assert (count.per_epoch, count.steps_per_epoch, count.is_exact) == (129, 2, False)
    assert "--tokens" in count.basis
