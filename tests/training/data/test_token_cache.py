"""Tokenizer and token cache: the same input gives the same tokens, and an incomplete cache is never read."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from registry import ids
from registry.errors import DamagedError, InputError, UsageError
from registry.snapshot import Snapshot
from training.data import token_cache
from training.data.token_cache import TokenCache
from training.data.tokenizer import END_OF_TEXT, load_tokenizer, sample_texts, tokenizer_fingerprint, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(snapshot: Snapshot) -> PreTrainedTokenizerFast:
    return train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**9), 400)


def test_training_is_deterministic(snapshot: Snapshot, tokenizer: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(sample_texts(snapshot, excluded=[], max_bytes=10**9), 400)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
    other = train_tokenizer(["quite another text"], 400)
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)


def test_one_special_token_and_any_text_round_trips(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    text = "  Ünïcode, 漢字, \x00 and \t\n🙂 "
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert 257 < len(tokenizer) <= 400


def test_save_and_load_keep_the_fingerprint(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    assert tokenizer_fingerprint(load_tokenizer(tmp_path)) == tokenizer_fingerprint(tokenizer)
    with pytest.raises(UsageError, match="tokenizer"):
        load_tokenizer(tmp_path / "nowhere")


def test_bad_calls_are_named() -> None:
    with pytest.raises(UsageError, match="vocab_size=256"):
        train_tokenizer(["x"], 256)
    with pytest.raises(InputError, match="no text"):
        train_tokenizer(["", ""], 300)


def test_the_sample_has_no_held_out_sources_and_is_always_the_same(snapshot: Snapshot) -> None:
    everything = list(sample_texts(snapshot, excluded=[], max_bytes=10**9))
    site = ids.source_id("web:example.org")
    without = list(sample_texts(snapshot, excluded=[site], max_bytes=10**9))
    assert len(without) == len(everything) - 3
    half = sum(len(text) for text in everything) // 2
    sample = list(sample_texts(snapshot, excluded=[], max_bytes=half))
    assert sample == list(sample_texts(snapshot, excluded=[], max_bytes=half))
    assert 0 < len(sample) < len(everything)


def test_cache_holds_every_document_once(
    snapshot: Snapshot, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    cache = TokenCache.of(snapshot, tokenizer, tmp_path)
    rows = [row for batch in snapshot.shard_batches() for row in batch.to_pylist()]
    assert len(rows) == len(cache.doc_id) > 20
    assert int(cache.length.sum()) == cache.num_tokens
    for index, row in enumerate(rows):
        document = cache.document(index)
        assert (cache.source_id[index], cache.doc_id[index]) == (row["source_id"], row["doc_id"])
        assert document[0] == document[-1] == cache.end_of_text == tokenizer.eos_token_id
        # A page that quotes the special token does not end its document.
        assert (document[1:-1] != cache.end_of_text).all()
        assert tokenizer.decode(document[1:-1].tolist()) == row["text"]


def test_cache_is_reused_and_rebuilt_when_broken(
    snapshot: Snapshot, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TokenCache.of(snapshot, tokenizer, tmp_path)
    expected = np.array(cache.tokens)
    file = cache.path / "tokens.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DamagedError, match="incomplete"):
        TokenCache.open(cache.path)
    rebuilt = TokenCache.of(snapshot, tokenizer, tmp_path)
    assert (rebuilt.tokens == expected).all()
    monkeypatch.setattr(token_cache, "_write_cache", lambda *_: pytest.fail("built a cache that exists"))
    TokenCache.of(snapshot, tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [cache.path.name]


def test_a_crash_while_building_leaves_nothing(
    snapshot: Snapshot, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(token_cache, "write_marker", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        TokenCache.of(snapshot, tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_concurrent_builders_end_with_one_cache(
    snapshot: Snapshot, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    caches: list[TokenCache] = []
    threads = [
        threading.Thread(target=lambda: caches.append(TokenCache.of(snapshot, tokenizer, tmp_path))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caches) == 4
    assert len(list(tmp_path.iterdir())) == 1
    assert all((cache.tokens == caches[0].tokens).all() for cache in caches)
