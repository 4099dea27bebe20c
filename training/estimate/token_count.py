"""The tokens of a snapshot, before a run: counted in the token cache of an earlier run, else estimated from bytes.

Runs keep token caches under `cache/`, beside the models' directories. A dry run looks for the cache of the same
snapshot and tokenizer: the tokenizer that is given, or one that an earlier run trained by the same recipe (the same
size, sample and held-out sources give the same tokenizer). Without a cache it encodes a sample of the text with the
given tokenizer. Without that too, it uses the bytes a token of English Wikipedia under a tokenizer of that size: other
English is a fifth off, other languages more.

Cost: 0.1 s for a cache of any size; a second for importing tokenizers; and reading the table of sources.

Run: ``count_tokens(config, snapshot, Path("nulls-runs"))``.

Shapes: D documents, S sources.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from registry.errors import DamagedError
from registry.snapshot import Snapshot
from training.config import TrainConfig
from training.data.heldout import choose_heldout
from training.data.packing import PackedLoader
from training.data.token_cache import TokenCache
from training.data.tokenizer import load_tokenizer, tokenizer_fingerprint

# Bytes a token of 324 English Wikipedia articles, by tokenizers trained for this table on as many other articles; a
# tokenizer of 256 bytes and <|endoftext|> has a token for each byte.
_BYTES_PER_TOKEN = {
    257: 1.0,
    512: 2.0,
    2048: 2.89,
    4096: 3.33,
    8192: 3.76,
    16384: 4.15,
    32768: 4.45,
    49152: 4.58,
}
_SAMPLE_BYTES = 1_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenCount:
    """The tokens of an epoch. They are counted as targets: all of a document's tokens but the first."""

    per_epoch: int
    steps_per_epoch: int
    vocab_size: int
    """Entries of the tokenizer, or as many as it will have."""
    document_tokens: float
    """Mean tokens of a document."""
    attended: float
    """Keys that a token sees on average: half of its document, or of the row where that is shorter."""
    is_exact: bool
    basis: str
    """The origin of the figure, for a person."""

    @classmethod
    def stated(cls, config: TrainConfig, per_epoch: int) -> TokenCount:
        """Return a figure that the user states; documents are taken to be as long as a row."""
        return cls(
            per_epoch=per_epoch,
            steps_per_epoch=steps_per_epoch(config, per_epoch),
            vocab_size=config.vocab_size,
            document_tokens=config.context_length,
            attended=config.context_length / 2,
            is_exact=False,
            basis="as stated with --tokens",
        )


def steps_per_epoch(config: TrainConfig, num_targets: int) -> int:
    """Return the optimizer steps of an epoch; all rows but the last are full, and so are all steps."""
    rows = math.ceil(num_targets / config.context_length)
    return math.ceil(rows / config.rows_per_step)


def tokenizer_recipe(config: TrainConfig, heldout: Collection[int]) -> str | None:
    """Return a hash, 16 hex digits, of what decides a tokenizer trained on a given snapshot; None if one is given."""
    if config.tokenizer:
        return None
    fields = [config.vocab_size, config.tokenizer_sample_bytes, sorted(heldout)]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]


def count_tokens(config: TrainConfig, snapshot: Snapshot, runs: Path) -> TokenCount:
    """Return the tokens that a run on a snapshot would train on.

    Args:
        config: the run's.
        snapshot: the snapshot to train on.
        runs: the directory of runs (`--runs`); need not exist.

    Raises:
        UsageError: too few sources to hold some out, or a tokenizer that cannot be loaded.
    """
    sources = snapshot.table("sources")
    heldout = choose_heldout(
        sources,
        snapshot.table("owners"),
        seed=config.seed,
        share=config.heldout_share,
        min_heldout=config.min_heldout,
        min_bytes=config.min_heldout_bytes,
        never=config.model.layout().reserved,
    )
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    found = _given(tokenizer, snapshot, runs) if tokenizer else _trained(config, heldout, snapshot, runs)
    if found is not None:
        return _counted(config, *found, heldout)
    return _estimated(config, snapshot, sources, heldout, tokenizer)


def _given(
    tokenizer: PreTrainedTokenizerFast, snapshot: Snapshot, runs: Path
) -> tuple[TokenCache, PreTrainedTokenizerFast] | None:
    """Return the token cache of the given tokenizer, if there is one."""
    for path in sorted((runs / "cache").glob(f"{snapshot.id}-*")):
        cache = _opened(path)
        if cache is not None and cache.tokenizer == tokenizer_fingerprint(tokenizer):
            return cache, tokenizer
    return None


def _trained(
    config: TrainConfig, heldout: Collection[int], snapshot: Snapshot, runs: Path
) -> tuple[TokenCache, PreTrainedTokenizerFast] | None:
    """Return the token cache of the tokenizer that this configuration would train, if a run has trained it before."""
    wanted = {"snapshot": snapshot.id, "tokenizer_recipe": tokenizer_recipe(config, heldout)}
    for path in sorted(runs.glob("*/run-*/run.json")):
        run: dict[str, Any] = json.loads(path.read_bytes())
        cache = _opened(Path(run["cache"])) if wanted.items() <= run.items() else None
        if cache is not None:
            return cache, load_tokenizer(path.parent / "tokenizer")
    return None


def _opened(path: Path) -> TokenCache | None:
    """Return a token cache, or None if it is missing or not whole: a run would build it again."""
    try:
        return TokenCache.open(path)
    except DamagedError:
        return None


def _counted(
    config: TrainConfig, cache: TokenCache, tokenizer: PreTrainedTokenizerFast, heldout: Collection[int]
) -> TokenCount:
    loader = PackedLoader(
        cache, heldout, context_length=config.context_length, rows_per_step=config.rows_per_step, epochs=config.epochs
    )
    kept_D = ~np.isin(cache.source_id, np.fromiter(heldout, dtype=np.int64))
    lengths_D = (cache.length[kept_D] - 1).astype(np.float64)
    return TokenCount(
        per_epoch=loader.num_targets_per_epoch,
        steps_per_epoch=loader.steps_per_epoch,
        vocab_size=len(tokenizer),
        document_tokens=float(lengths_D.mean()),
        attended=_attended(lengths_D, np.ones_like(lengths_D), config.context_length),
        is_exact=True,
        basis=f"counted in {cache.path}",
    )


def _estimated(
    config: TrainConfig,
    snapshot: Snapshot,
    sources: pa.Table,
    heldout: Collection[int],
    tokenizer: PreTrainedTokenizerFast | None,
) -> TokenCount:
    if tokenizer is None:
        ratio = bytes_per_token(config.vocab_size)
        basis = f"estimated: {ratio:.2f} bytes a token, as English Wikipedia under {config.vocab_size:,} entries"
    else:
        ratio = _sampled(tokenizer, next(iter(snapshot.shard_batches()))["text"].to_pylist())
        basis = f"estimated: {ratio:.2f} bytes a token, as in a sample of the text"
    columns = (sources[name].to_numpy() for name in ("source_id", "num_documents", "num_bytes"))
    ids_S, documents_S, bytes_S = columns
    trained_S = (documents_S > 0) & ~np.isin(ids_S, np.fromiter(heldout, dtype=np.int64))
    documents_S = documents_S[trained_S].astype(np.float64)
    # The end-of-text token of each document is a target too. Documents of one source are taken to be equally long.
    lengths_S = bytes_S[trained_S] / documents_S / ratio + 1
    per_epoch = round(float((lengths_S * documents_S).sum()))
    return TokenCount(
        per_epoch=per_epoch,
        steps_per_epoch=steps_per_epoch(config, per_epoch),
        vocab_size=config.vocab_size if tokenizer is None else len(tokenizer),
        document_tokens=per_epoch / max(1.0, float(documents_S.sum())),
        attended=_attended(lengths_S, documents_S, config.context_length),
        is_exact=False,
        basis=basis,
    )


def bytes_per_token(vocab_size: int) -> float:
    """Return UTF-8 bytes a token of English, for a byte-level BPE: interpolated by the logarithm of its size."""
    return float(np.interp(np.log2(vocab_size), np.log2(list(_BYTES_PER_TOKEN)), list(_BYTES_PER_TOKEN.values())))


def _sampled(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Return bytes a token of the first texts; they are a random sample, since source ids are hashes."""
    num_bytes = num_tokens = 0
    for text in texts:
        num_tokens += len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        num_bytes += len(text.encode())
        if num_bytes > _SAMPLE_BYTES:
            break
    return num_bytes / max(1, num_tokens)


def _attended(lengths: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], context_length: int) -> float:
    """Return the keys that a token sees on average, for `counts` documents of each length: half of document or row."""
    tokens = lengths * counts
    return float((tokens * np.minimum(lengths, context_length)).sum() / 2 / max(1.0, float(tokens.sum())))
