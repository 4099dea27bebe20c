"""Ingest synthetic web archives: peak memory at two input sizes, and the speed of two workers over one.

    python benchmarks/ingest.py [--small MB] [--large MB] [--only memory|workers]

Pages are made of real sentences (`benchmarks/texts.py`): 20 kB of text in 36 kB of HTML, a fifth of them near copies of
the page before. Archives are not compressed, so the input's size is the number of bytes read. Memory is the peak of the
largest process of the run, children included; times are of whole `nulls ingest` processes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import texts

_FILE_BYTES = 25_000_000
_MEASURE = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "orchestration.cli.main", *sys.argv[1:]], capture_output=True, text=True)
print(done.stdout if done.returncode == 0 else sys.exit(done.stderr))
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def page(text: str, chance: random.Random) -> bytes:
    """Return a page with this text, and about as much markup and boilerplate around it."""
    paragraphs = "".join(
        f'<p class="body-text c{i % 7}" data-id="{chance.random()}">{t}.</p>' for i, t in enumerate(text.split(". "))
    )
    menu = "".join(f'<li><a href="/section/{i}?s={chance.random()}">Section {i}</a></li>' for i in range(120))
    return (
        f"<!doctype html><html><head><title>A page</title></head><body><nav><ul>{menu}</ul></nav>"
        f"<main><article>{paragraphs}</article></main><footer>All rights reserved</footer></body></html>"
    ).encode()


def make(folder: Path, megabytes: int) -> int:
    """Write archives of about `megabytes` in total, and return their size in bytes."""
    chance = random.Random(megabytes)
    total, number, before = 0, 0, ""
    while total < megabytes * 1_000_000:
        with (folder / f"crawl-{number:04d}.warc").open("wb") as file:
            while file.tell() < _FILE_BYTES:
                text = texts.make(1, 20_000, seed=chance.getrandbits(60))[0]
                text = f"{before} And one sentence more." if before and chance.random() < 0.2 else text
                before = text
                content = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page(text, chance)
                url = f"http://site{chance.randrange(2000)}.example/{total}/{file.tell()}"
                head = (
                    f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
                )
                file.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content + b"\r\n\r\n")
            total += file.tell()
        number += 1
    return total


def run(folder: Path, workers: int) -> tuple[dict[str, Any], float, int]:
    """Return the report of an ingest, its seconds, and the peak memory in bytes of its largest process."""
    with tempfile.TemporaryDirectory() as registry:
        command = ["ingest", "--web", str(folder), "--registry", registry, "--workers", str(workers), "--json"]
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", _MEASURE, *command], capture_output=True, text=True, check=True)
        seconds = time.monotonic() - started
    *report, peak = done.stdout.strip().splitlines()
    return json.loads("\n".join(report)), seconds, int(peak) * 1024


def memory(small: int, large: int) -> dict[str, Any]:
    """Measure peak memory at two input sizes."""
    found = {}
    for megabytes in (small, large):
        with tempfile.TemporaryDirectory() as folder:
            size = make(Path(folder), megabytes)
            report, seconds, peak = run(Path(folder), 2)
        found[f"{megabytes}_mb"] = {
            "input_mb": round(size / 1e6),
            "read": report["read"],
            "duplicate": report["duplicate"],
            "seconds": round(seconds, 1),
            "peak_mb_of_largest_process": round(peak / 1e6),
        }
    return found


def workers(megabytes: int) -> dict[str, Any]:
    """Compare one worker with two in one run; the better of two tries each."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), megabytes)
        seconds = {count: min(run(Path(folder), count)[1] for _ in range(2)) for count in (1, 2)}
    return {
        "one_worker_seconds": round(seconds[1], 1),
        "two_workers_seconds": round(seconds[2], 1),
        "ratio": round(seconds[1] / seconds[2], 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=200, metavar="MB")
    parser.add_argument("--large", type=int, default=2000, metavar="MB")
    parser.add_argument("--only", choices=("memory", "workers"))
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if arguments.only != "workers":
        found["memory"] = memory(arguments.small, arguments.large)
    if arguments.only != "memory":
        found["workers"] = workers(arguments.small)
    print(json.dumps(found, indent=2))
