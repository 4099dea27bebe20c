"""Find the candidate pairs of 200,000 signatures, and compare with datasketch's MinHashLSH in the same run.

    python benchmarks/pairs.py [--count N]

Both get the same signatures (14 bands of 8 hashes; a quarter are near copies of another), and return every pair that
shares a band. Ours is an ingest's join (`pipelines.resolve.duckdb.queries.PAIRS`) in DuckDB on one thread; datasketch
inserts every signature and queries each. Wall seconds; the pairs must be the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasketch import MinHash, MinHashLSH

from pipelines.dedup.minhash import DedupConfig, bands
from pipelines.resolve.duckdb import queries as sql
from pipelines.resolve.duckdb import session as duck

CONFIG = DedupConfig()
_CHUNK = 1024  # signatures hashed at once: their intermediate results stay in a core's cache


def signatures(count: int) -> npt.NDArray[np.uint32]:
    """Return [count, 112]: three quarters random, a quarter repeating one of these with 5 to 40 % of hashes changed."""
    chance = np.random.default_rng(0)
    found = chance.integers(0, 1 << 32, (count, CONFIG.num_permutations), dtype=np.uint32)
    for copy in range(count - count // 4, count):
        same = chance.random(CONFIG.num_permutations) > chance.uniform(0.05, 0.4)
        found[copy, same] = found[chance.integers(0, count - count // 4), same]
    return found


def ours(values: npt.NDArray[np.uint32]) -> tuple[float, set[tuple[int, int]]]:
    """Return the seconds from signatures to pairs, and the pairs."""
    started = time.perf_counter()
    hashes = np.concatenate([bands(values[i : i + _CHUNK], CONFIG) for i in range(0, len(values), _CHUNK)])
    count = len(values)
    table = pa.table(
        {
            "row": np.repeat(np.arange(count), CONFIG.num_bands),
            "band": np.tile(np.arange(CONFIG.num_bands, dtype=np.int16), count),
            "hash": hashes.ravel(),
        }
    )
    with tempfile.TemporaryDirectory() as folder, duck.connect(Path(folder)) as con:
        con.register("staged_bands", table)
        con.register("reps", pa.table({"row": np.arange(count), "rank": np.arange(count)}))
        con.execute(sql.PAIRS.format(bucket_limit=count))
        found = con.execute("SELECT a, b FROM pairs").fetchnumpy()
    return time.perf_counter() - started, set(zip(found["a"].tolist(), found["b"].tolist(), strict=True))


def theirs(values: npt.NDArray[np.uint32]) -> tuple[float, set[tuple[int, int]]]:
    """Return the same for datasketch; the time to create its objects is not counted."""
    objects = [MinHash(hashvalues=row.astype(np.uint64), seed=1, scheme="legacy") for row in values]
    started = time.perf_counter()
    index = MinHashLSH(num_perm=CONFIG.num_permutations, params=(CONFIG.num_bands, CONFIG.rows_per_band))
    for number, item in enumerate(objects):
        index.insert(number, item, check_duplication=False)
    found = {(min(a, b), max(a, b)) for a, item in enumerate(objects) for b in index.query(item) if a != b}
    return time.perf_counter() - started, found


def main(count: int) -> dict[str, Any]:
    """Run both."""
    values = signatures(count)
    seconds, pairs = ours(values)
    peer_seconds, peer_pairs = theirs(values)
    return {
        "signatures": count,
        "pairs": len(pairs),
        "identical": pairs == peer_pairs,
        "ours_seconds": round(seconds, 2),
        "datasketch_seconds": round(peer_seconds, 2),
        "ratio": round(peer_seconds / seconds, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000, metavar="N", help="number of signatures")
    print(json.dumps(main(parser.parse_args().count), indent=2))
