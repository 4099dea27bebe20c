"""Ingest a folder of dumps, and look sources up from a cold start: seconds, peak memory, and whether anything was lost.

    python benchmarks/corpus.py FOLDER_OF_DUMPS [--json]

Each figure is for a whole `nulls` process with its children; a lookup's is the median of seven.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def timed(*arguments: str, ok: tuple[int, ...] = (0,)) -> tuple[Any, float]:
    """Return the JSON answer of a `nulls` command, and its wall time in seconds."""
    started = time.monotonic()
    command = [sys.executable, "-m", "orchestration.cli.main", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in ok:
        sys.exit(done.stderr)
    return json.loads(done.stdout), time.monotonic() - started


def main(folder: str) -> dict[str, Any]:
    """Run the benchmark."""
    with tempfile.TemporaryDirectory() as work:
        registry = ("--registry", str(Path(work) / "registry"))
        report, seconds = timed("ingest", "--wikipedia", folder, "--workers", "2", *registry)
        peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        ends = report["kept"] + report["duplicate"] + report["superseded"]
        ends += sum(report["filtered"].values()) + sum(report["failed"].values())
        (source,), _ = timed("sources", "--limit", "1", "--match", "wiki:", *registry)
        lookups = [timed("lookup", source["key"], *registry)[1] for _ in range(7)]
        titles = [timed("lookup", source["title"] or source["key"], *registry)[1] for _ in range(7)]
    return {
        "ingest_seconds": round(seconds, 1),
        "ingest_peak_mb_of_largest_process": round(peak_bytes / 1e6),
        "read": report["read"],
        "conserved": report["read"] == ends,
        "counts": {name: report[name] for name in ("kept", "filtered", "duplicate", "superseded", "failed")},
        "failures": report["failures"],
        "cold_lookup_by_key_seconds": round(statistics.median(lookups), 2),
        "cold_lookup_by_title_seconds": round(statistics.median(titles), 2),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1]), indent=2, ensure_ascii=False))
