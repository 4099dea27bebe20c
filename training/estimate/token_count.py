"""How many tokens a snapshot is, before a run: counted where an earlier one left its tokens, else estimated from bytes.

A run keeps its tokens under `cache/` beside the models' folders. A dry run looks for those of the same snapshot by the
same tokenizer: the one that is given, or one that an earlier run trained by the same recipe (the same size, sample and
held-out sources give the same tokenizer). Without them it encodes a little text with the given tokenizer, or else goes
by what English Wikipedia takes under a tokenizer of that size: other English is a fifth off, other languages more.

Cost: 0.1 s where there is a cache, however large; a second for importing tokenizers; and the table of sources.
Run: ``count_tokens(config, snapshot, Path("nulls-runs"))``.
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

# Bytes a token of 324 English Wikipedia articles, by tokenizers trained here on as many others; one of 256 is bytes.
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
    """Tokens of an epoch. A token is a target: all of a document but its first."""

    per_epoch: int
    steps_per_epoch: int
    vocab_size: int
    """Entries of the tokenizer, or as many as it is to have."""
    document_tokens: float
    """Of a document, on average."""
    attended: float
    """Keys that a token sees on average: half of its document, or of the row where that is shorter."""
    is_exact: bool
    basis: str
    """Where the figure is from, in words."""

    @classmethod
    def stated(cls, config: TrainConfig, per_epoch: int) -> TokenCount:
        """A figure that somebody gives; documents count as long as a row."""
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
    """Optimizer steps of an epoch: rows are full but for the last, steps too."""
    rows = math.ceil(num_targets / config.context_length)
    return math.ceil(rows / config.rows_per_step)


def tokenizer_recipe(config: TrainConfig, heldout: Collection[int]) -> str | None:
    """What shapes a tokenizer trained on a given snapshot, as 16 hex digits; None where one is given."""
    if config.tokenizer:
        return None
    fields = [config.vocab_size, config.tokenizer_sample_bytes, sorted(heldout)]
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]


def count_tokens(config: TrainConfig, snapshot: Snapshot, runs: Path) -> TokenCount:
    """The tokens that a run on a snapshot would train on.

    Args:
        config: of the run.
        snapshot: to train on.
        runs: where runs are kept (`--runs`); need not exist.

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
    )
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    found = _given(tokenizer, snapshot, runs) if tokenizer else _trained(config, heldout, snapshot, runs)
    if found is not None:
        return _counted(config, *found, heldout)
    return _estimated(config, snapshot, sources, heldout, tokenizer)


def _given(
    tokenizer: PreTrainedTokenizerFast, snapshot: Snapshot, runs: Path
) -> tuple[TokenCache, PreTrainedTokenizerFast] | None:
    """The cache by a tokenizer at hand."""
    for path in sorted((runs / "cache").glob(f"{snapshot.id}-*")):
        cache = _opened(path)
        if cache is not None and cache.tokenizer == tokenizer_fingerprint(tokenizer):
            return cache, tokenizer
    return None


def _trained(
    config: TrainConfig, heldout: Collection[int], snapshot: Snapshot, runs: Path
) -> tuple[TokenCache, PreTrainedTokenizerFast] | None:
    """The cache by the tokenizer that this configuration would train, if a run has trained it before."""
    wanted = {"snapshot": snapshot.id, "tokenizer_recipe": tokenizer_recipe(config, heldout)}
    for path in sorted(runs.glob("*/run-*/run.json")):
        run: dict[str, Any] = json.loads(path.read_bytes())
        cache = _opened(Path(run["cache"])) if wanted.items() <= run.items() else None
        if cache is not None:
            return cache, load_tokenizer(path.parent / "tokenizer")
    return None


def _opened(path: Path) -> TokenCache | None:
    """A cache, or None where it is gone or not whole: a run would build it again."""
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
    # Each document has an end-of-text token to predict too. Documents of one source count as equally long.
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
    """UTF-8 bytes a token, of English under a byte-level BPE of this size: interpolated, by the size's logarithm."""
    return float(np.interp(np.log2(vocab_size), np.log2(list(_BYTES_PER_TOKEN)), list(_BYTES_PER_TOKEN.values())))


def _sampled(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> float:
    """Bytes a token of the first texts: a sample, since sources lie in the order of their ids, which are hashes."""
    num_bytes = num_tokens = 0
    for text in texts:
        num_tokens += len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        num_bytes += len(text.encode())
        if num_bytes > _SAMPLE_BYTES:
            break
    return num_bytes / max(1, num_tokens)


def _attended(lengths: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], context_length: int) -> float:
    """Keys a token sees on average, of `counts` documents of each length: half of the document, or of the row."""
    tokens = lengths * counts
    return float((tokens * np.minimum(lengths, context_length)).sum() / 2 / max(1.0, float(tokens.sum())))
