"""Turn web archives into filtered text, and compare with datatrove's WarcReader and Trafilatura, one core each.

    python benchmarks/web.py FOLDER_OF_WARC_FILES [--every N] [--filters none|light|fineweb]

Ours reads, extracts, detects the language and filters (the steps of `pipelines.stage.steps` before the signature).
Theirs reads and extracts, and with `--filters fineweb` applies the same rules, which are datatrove's, to every page.
Measured are CPU seconds and pages kept. Needs `pip install trafilatura faust-cchardet python-magic`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.readers import WarcReader
from loguru import logger

from pipelines.document import Document
from pipelines.filters import fineweb
from pipelines.filters.rules import FilterConfig, FilterLevel
from pipelines.readers.web.archive import read_archive
from pipelines.stage.steps import Clean, StageConfig
from registry.schema import Status


def ours(paths: list[Path], level: FilterLevel) -> tuple[float, int]:
    """Return CPU seconds, and pages kept."""
    step = Clean(StageConfig(filters=FilterConfig(level=level)))
    started = time.process_time()
    kept = 0
    for path in paths:
        for item in step.run(read_archive(path, path.name)):
            kept += isinstance(item, Document) and item.status is Status.KEPT
    return time.process_time() - started, kept


def theirs(paths: list[Path], level: FilterLevel) -> tuple[float, int]:
    """Return the same for datatrove; extraction runs in this process, which saves its process per page."""
    extractor = Trafilatura()
    extractor.extract("<p>imports its library</p>")
    started = time.process_time()
    kept = 0
    for path in paths:
        for document in WarcReader(str(path.parent), glob_pattern=path.name).run():
            text = extractor.extract(document.text)
            kept += bool(text) and (level is not FilterLevel.FINEWEB or fineweb.fineweb(text)[1] is None)
    return time.process_time() - started, kept


def main(folder: str, every: int, level: FilterLevel) -> dict[str, Any]:
    """Run both on every n-th archive."""
    paths = sorted(Path(folder).glob("*.warc.gz"))[::every]
    if not paths:
        raise SystemExit(f"no *.warc.gz in {folder}")
    logger.disable("datatrove")
    ours(paths[:1], level)  # loads the libraries
    seconds, kept = ours(paths, level)
    peer_seconds, peer_kept = theirs(paths, level)
    num_bytes = sum(path.stat().st_size for path in paths)
    return {
        "archives": len(paths),
        "megabytes_compressed": round(num_bytes / 1e6, 1),
        "ours_seconds": round(seconds, 2),
        "ours_kept": kept,
        "datatrove_trafilatura_seconds": round(peer_seconds, 2),
        "datatrove_trafilatura_kept": peer_kept,
        "ratio": round(peer_seconds / seconds, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="use only every N-th archive")
    parser.add_argument("--filters", type=FilterLevel, default=FilterLevel.LIGHT, metavar="LEVEL")
    arguments = parser.parse_args()
    print(json.dumps(main(arguments.folder, arguments.every, arguments.filters), indent=2))
