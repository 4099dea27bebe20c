"""Tokenizer: a byte-level BPE, trained on an even sample of a snapshot's text, or loaded from a directory.

One special token, `<|endoftext|>`, serves as BOS, EOS and padding, as in GPT-2. The same texts in the same order give
the same tokenizer. Cost, on two cores: 4096 entries from 2.8 MB of text in 1.1 s.

    tokenizer = train_tokenizer(sample_texts(snapshot, excluded=heldout, max_bytes=10**8), 32_768)
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from registry.errors import InputError, UsageError
from registry.snapshot import Snapshot

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, max_bytes: int | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer; the same texts in the same order give the same tokenizer.

    Args:
        texts: what to learn merges from; held-out sources are not to be among them.
        vocab_size: entries, 256 bytes and `<|endoftext|>` included; fewer if the texts do not yield that many merges.
        max_bytes: stop after so much UTF-8; texts are taken from the front, so pass a spread (`sample_texts`).

    Raises:
        UsageError: `vocab_size` under 257.
        InputError: there is no text.
    """
    if vocab_size < 257:
        raise UsageError(f"vocab_size={vocab_size}: expected at least 257, 256 bytes and {END_OF_TEXT}")
    limited = _until_bytes(texts, max_bytes)
    first = next((text for text in limited if text), None)
    if first is None:
        raise InputError("no text to train a tokenizer on: every source is empty or held out")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain([first], limited), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """A tokenizer from a directory that `save_pretrained` wrote; no network.

    Raises:
        UsageError: there is none, or it has no end-of-text token.
    """
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"tokenizer {path}: cannot be loaded: {error}; pass a directory with tokenizer.json"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"tokenizer {path}: has no eos_token, which is to stand between documents")
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """16 hex digits over the tokenizer's whole definition and its end-of-text token."""
    definition = tokenizer.backend_tokenizer.to_str() + f"\n{tokenizer.eos_token_id}"
    return hashlib.sha256(definition.encode()).hexdigest()[:16]


def sample_texts(snapshot: Snapshot, *, excluded: Iterable[int], max_bytes: int) -> Iterator[str]:
    """Texts of a snapshot for a tokenizer: all of them, or an even spread of about `max_bytes`; always the same.

    Documents are kept by a hash of their id, so the choice depends neither on their order nor on other documents.

    Args:
        snapshot: where from.
        excluded: source ids to leave out: the held-out ones.
        max_bytes: UTF-8 in the sample, about.
    """
    total = sum(snapshot.table("sources")["num_bytes"].to_pylist())
    limit = min(1.0, max_bytes / max(1, total)) * 2.0**64
    left_out = np.fromiter(excluded, dtype=np.int64)
    for batch in snapshot.shard_batches():
        kept = (mix64(column(batch, "doc_id").astype(np.uint64)) <= limit) & ~np.isin(
            column(batch, "source_id"), left_out
        )
        yield from batch.column("text").filter(pa.array(kept)).to_pylist()


def _until_bytes(texts: Iterable[str], max_bytes: int | None) -> Iterator[str]:
    num_bytes = 0
    for text in texts:
        if max_bytes is not None and num_bytes >= max_bytes:
            return
        num_bytes += len(text.encode())
        yield text


def mix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser: a bijection of 64-bit values in which every bit moves about half of the others."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def column(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.int64]:
    column: npt.NDArray[np.int64] = batch.column(name).to_numpy()
    return column
