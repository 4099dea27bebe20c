"""One run of the Beam pipeline: start it, check its receipts, and load its parts into the database.

Every step's receipts say how many rows it sent and received; all of them must agree with one another, with the staged
files and with the parts. A runner that loses or repeats rows is found out here.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import json
import logging
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dedup.minhash import DedupConfig
from pipelines.resolve.duckdb import session as duck
from pipelines.resolve.duckdb.tables import Tables
from pipelines.resolve.keyed_stage import EXACT, SUPERSEDED
from registry.errors import DamagedError, UsageError

PARTS = {
    "collisions": pa.schema([("doc_id", pa.int64())]),
    "superseded": SUPERSEDED,
    "exact": EXACT,
    "edges": pa.schema([("preferred", pa.int64()), ("other", pa.int64()), ("jaccard", pa.float64())]),
    "reached": pa.schema([(name, pa.string()) for name in ("scope", "alias", "target")] + [("source_id", pa.int64())]),
}
_ROWS_PER_PART = 1_000_000
# Rows that must be received as often as they were sent; rows of parts are compared with what was sent, too.
_SHUFFLED = (
    *("documents", "winners", "representatives", "bands", "entries", "candidates", "pairs"),
    *("redirects", "names", "unmatched", "hops", "waiting", "onward", "steps"),
)
_SENT_TO_SEVERAL_STEPS = (
    ("titles sent", "titles at targets"),
    ("titles sent", "titles at nodes"),
    ("titles sent", "titles at steps"),
    ("redirects sent", "redirects at targets"),
    ("hops sent", "hops at nodes"),
)


class BeamJob:
    """One run of the pipeline over the staged directories of `tables`.

    Args:
        tables: the database; the parts become its tables `found_<part>`.
        config: what counts as a near-duplicate.

    Attributes:
        files: the directory that driver and workers share (`pipelines.resolve.beam.run_files.RunFiles`).
        receipts: "<rows> sent" or "<rows> received" -> how many; filled by `run`.
    """

    def __init__(self, tables: Tables, config: DedupConfig) -> None:
        self._tables, self._config = tables, config
        # Each run has its own name: a worker of a run that was given up may still be writing.
        self.files = load_module("run_files").RunFiles(tables.work.absolute() / f"beam-{uuid.uuid4().hex}")
        self.receipts: collections.Counter[str] = collections.Counter()
        self._parts: dict[str, dict[str, int]] = {name: {} for name in PARTS}

    def run(self, runner: str, options: Sequence[str], workers: int) -> None:
        """Run the pipeline to its end, check what it did, and load its parts.

        Args:
            runner: one of `pipelines.resolve.beam.engine.RUNNERS`.
            options: Beam's, as on a command line.
            workers: bundles that a local run has at once; more workers also make more parts.

        Raises:
            DamagedError: rows were lost or repeated on the way.
            ServiceError: the job failed.
        """
        self.files.prepare(self._tables.folders)
        num_rows = self._tables.count("staged_documents") + self._tables.count("staged_redirects")
        build = functools.partial(
            load_module("graph").build,
            files=self.files,
            config=self._config,
            schemas=PARTS,
            num_parts=max(2, workers, 1 + num_rows // _ROWS_PER_PART),
        )
        with _quiet():
            load_module("runners").run(build, runner=runner, options=options, workers=workers)
        self.read_receipts(runner)
        for name in PARTS:
            self._load_part(name)
        shutil.rmtree(self.files.root, ignore_errors=True)

    def read_receipts(self, runner: str) -> None:
        """Read the receipts, and check that what was sent was received.

        Raises:
            DamagedError: there are none, or two of them do not agree.
        """
        if not self.files.receipts.is_file():
            raise DamagedError(
                f"beam on {runner}: the job ended well and left no receipts in {self.files.root}; do its workers see "
                "this directory? It must be on storage that they share"
            )
        for what, file_name, num_rows in json.loads(self.files.receipts.read_bytes()):
            if file_name:
                self._parts[what][file_name] = num_rows
            else:
                self.receipts[what] += num_rows
        for what in ("documents", "bands", "redirects"):
            self.check_rows(f"{what} staged", self._tables.count(f"staged_{what}"), f"{what} sent")
        for sent, received in (*((f"{what} sent", f"{what} received") for what in _SHUFFLED), *_SENT_TO_SEVERAL_STEPS):
            reconcile(sent, self.receipts[sent], received, self.receipts[received])

    def check_rows(self, expected: str, num_expected: int, receipt: str) -> None:
        """Check a number of rows against a receipt.

        Raises:
            DamagedError: they are unlike.
        """
        reconcile(expected, num_expected, receipt, self.receipts[receipt])

    def _load_part(self, name: str) -> None:
        """Make a table of the part's files that have receipts; all must be there, with the rows that were sent."""
        paths = [self.files.parts / file_name for file_name in sorted(self._parts[name])]
        for path in paths:
            num_rows = pq.read_metadata(path).num_rows if path.is_file() else 0
            reconcile(f"rows of {path.name} in receipts", self._parts[name][path.name], "rows found", num_rows)
        self._tables.insert(f"found_{name}", PARTS[name], ())
        if paths:
            self._tables.execute(f"INSERT INTO found_{name} SELECT * FROM {duck.scan(paths)}")
        sent, stored = self.receipts[f"{name} sent"], self._tables.count(f"found_{name}")
        reconcile(f"{name} sent", sent, f"{name} stored", stored)


def reconcile(expected: str, num_expected: int, found: str, num_found: int) -> None:
    """Check that two counts of the same rows agree.

    Raises:
        DamagedError: they do not.
    """
    if num_expected != num_found:
        raise DamagedError(
            f"beam: {num_expected} {expected}, but {num_found} {found}: the runner lost or repeated rows; nothing was "
            "committed; run it on another runner, and report it"
        )


def load_module(name: str) -> Any:
    """Import a module of `pipelines.resolve.beam` when it is needed: Beam takes two seconds, and most runs need none.

    Raises:
        UsageError: Beam is not installed.
    """
    try:
        with _quiet():
            return importlib.import_module(f"pipelines.resolve.beam.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise UsageError("--engine beam: Apache Beam is not installed; pip install 'nulls[beam]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Beam off stderr; what fails is in the error.

    Beam warns through the root logger too, which makes Python install a handler for good; that is prevented.
    """
    root, logger, handler = logging.getLogger(), logging.getLogger("apache_beam"), logging.NullHandler()
    before = logger.level
    root.addHandler(handler)
    root.addFilter(_is_not_from_beam)
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
        root.removeFilter(_is_not_from_beam)
        root.removeHandler(handler)


def _is_not_from_beam(record: logging.LogRecord) -> bool:
    return "apache_beam" not in record.pathname
