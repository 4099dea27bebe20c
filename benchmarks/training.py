"""Measure what training costs, relative to the active neurons: the table in `RESULTS.md`.

    python benchmarks/training.py [--only sinks|step|pool|workers|gpu] [--json]

- `sinks`: the MLP, forward and backward, compared with the backbone alone and with all neurons computed and masked.
  512 + 128 of 8192 neurons of width 576, 4 x 512 tokens in documents of 128. One minute.
- `step`: a whole step (forward, backward, clipping, optimizer) of the preset `small`, compared with the same model with
  every neuron computed, and with a Llama of the active width. 2 x 512 tokens. Five minutes, 14 GB.
- `pool`: the same step with two layers, with 8,192 and with 131,072 sinks in a layer. Three minutes, 9 GB.
- `workers`: the demo's preset through the training loop, with one and two processes. Two minutes.
- `gpu`: the shape of `paper-1b` on one GPU; skipped, with a message, where there is none.

The first three run on one thread and count its CPU seconds, which other work on the machine disturbs less than the wall
clock. Variants take turns, and ratios are medians over the turns. `--json` prints one object with a key for each part.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

# The module of each part; imported when needed, since one takes a second and all take ten.
PARTS = {
    "sinks": "training_steps",
    "step": "training_steps",
    "pool": "training_steps",
    "workers": "training_runs",
    "gpu": "training_runs",
}


def measured(part: str) -> dict[str, Any]:
    """Return one part's figures."""
    figures: dict[str, Any] = getattr(importlib.import_module(PARTS[part]), part)()
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="run one part instead of all")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else there")
    arguments = parser.parse_args()
    # This file would hide the package `training`, which it measures, so the repository comes first in the path.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    found: dict[str, Any] = {}
    for part in [arguments.only] if arguments.only else PARTS:
        found[part] = measured(part)
        print(f"{part}: {found[part]}", file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if arguments.json:
        print(json.dumps(found[arguments.only] if arguments.only else found, indent=2))
