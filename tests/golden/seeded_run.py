"""Ingest the demo's excerpt and train 30 steps on it; print the snapshot id and the losses as one JSON line.

A program of its own: `test_golden.py` runs it under arithmetic that is the same on every x86-64 processor
(`PORTABLE`). One rank, one thread, in this process: no Ray.

    python -m tests.golden.seeded_run FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from orchestration.demo import find_excerpt
from pipelines.ingest import IngestConfig, ingest
from registry.snapshot import Registry, Snapshot
from training.config import TrainConfig
from training.data.heldout import choose_heldout
from training.data.token_cache import TokenCache
from training.data.tokenizer import sample_texts, train_tokenizer
from training.run.protocol import Job
from training.run.worker import Worker

NUM_STEPS = 30
# ATen without vector instructions of a processor's own, and MKL's code path that all processors share.
PORTABLE = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}


class _EnoughError(Exception):
    """Raised by the log to end the run after `NUM_STEPS`."""


class _Losses:
    """A progress log that keeps the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def write(self, **fields: Any) -> None:
        if "loss" in fields:
            self.values.append(fields["loss"])
            if len(self.values) == NUM_STEPS:
                raise _EnoughError


def losses_of(snapshot: Snapshot, folder: Path) -> list[float]:
    """The loss of each of the first `NUM_STEPS` steps of a small run on `snapshot`, in nats a token."""
    torch.set_num_threads(1)
    config = TrainConfig.preset(
        "demo", epochs=1, context_length=128, rows_per_step=4, micro_batch=4, vocab_size=1024, watch_every=0
    )
    heldout = choose_heldout(
        snapshot.table("sources"),
        snapshot.table("owners"),
        seed=config.seed,
        share=config.heldout_share,
        min_heldout=config.min_heldout,
        min_bytes=config.min_heldout_bytes,
    )
    texts = sample_texts(snapshot, excluded=heldout, max_bytes=config.tokenizer_sample_bytes)
    tokenizer = train_tokenizer(texts, config.vocab_size)
    cache = TokenCache.of(snapshot, tokenizer, folder / "cache")
    run_dir = folder / "run"
    (run_dir / "attempt-001").mkdir(parents=True)
    tokenizer.save_pretrained(str(run_dir / "tokenizer"))
    job = Job(
        config=config,
        run_dir=run_dir,
        attempt="attempt-001",
        cache=cache.path,
        heldout=tuple(heldout),
        facts={"registry": "", "run_id": ""},
    )
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    log = _Losses()
    worker = Worker(job, torch.device("cpu"), 0, 1, log)  # type: ignore[arg-type]
    try:
        worker.run(log)  # type: ignore[arg-type]
    except _EnoughError:
        pass
    finally:
        worker.writer.close()
        dist.destroy_process_group()
    return log.values


def main(folder: Path) -> None:
    """Print `{"snapshot", "losses"}`; losses as hexadecimal floats, exact to the last bit."""
    root = folder / "registry"
    report = ingest(IngestConfig(wikipedia=(str(find_excerpt()),)), registry_uri=root, workers=1)
    losses = losses_of(Registry.open(root).snapshot(), folder)
    print(json.dumps({"snapshot": report.snapshot, "losses": [loss.hex() for loss in losses]}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]))
