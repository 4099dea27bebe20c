"""The keyed stage on a Beam runner, for what one machine takes too long for; the same snapshot, byte for byte.

    staged directories -> [Beam: captures, equal texts, near copies, redirects] -> parts -> [DuckDB: tables, in order]

The workers find the groups and verify the pairs (`pipelines.resolve.beam`), with the decisions of `pipelines.dedup.decisions`, and leave
compact parts in the work directory, which lies with the staged files on storage that all of them see at one path. The
driver, this process, joins the parts to the staged columns and writes the tables with the queries of the other engine.
So two things run on the driver alone, out of core: `dedup.star_clusters`, one pass over the verified edges (24 bytes
each, sorted on disk; the ranks found so far in memory, 60 bytes each), since a greedy choice over all edges has one
order and would fill the memory of the one worker that got it as a group; and the sort of the snapshot's tables, which
its files need in any case.

Nothing is taken on trust: each step's receipts say how many rows it sent and received, and all of them must agree with
one another, with the staged files and with the parts.

Cost: on one core 100,000 documents in 66 s and 1.1 GB (DuckDB 10 s and 0.5 GB), 2.5 s of it to build and start the
graph; the local shuffle is in memory, about 7 kB a document, so `local` is for tests and small corpora.

    resolve(folders, DedupConfig(), work=work, runner="flink", runner_options=["--flink_master=host:8081"])
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
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.dedup import decisions as dedup
from pipelines.dedup.minhash import DedupConfig
from pipelines.resolve import aliases
from pipelines.resolve.duckdb import session as duck
from pipelines.resolve.duckdb.engine import EXACT, SUPERSEDED, DuckResolution
from registry.errors import DamagedError, UsageError
from registry.storage import translate_os_errors

# Name -> options of which a user must give one: without them Beam downloads a server and starts a cluster of its own.
RUNNERS: dict[str, tuple[str, ...]] = {
    "local": (),
    "flink": ("--flink_master", "--job_endpoint"),
    "spark": ("--spark_master_url", "--spark_rest_url", "--job_endpoint"),
    "dataflow": ("--project",),
}
_ROWS_PER_PART = 1_000_000

PARTS = {
    "collisions": pa.schema([("doc_id", pa.int64())]),
    "superseded": SUPERSEDED,
    "exact": EXACT,
    "edges": pa.schema([("preferred", pa.int64()), ("other", pa.int64()), ("jaccard", pa.float64())]),
    "reached": pa.schema([(name, pa.string()) for name in ("scope", "alias", "target")] + [("source_id", pa.int64())]),
}
# What must have arrived as often as it was sent; rows of parts are held against what was sent, too.
_SHUFFLED = (
    *("documents", "winners", "representatives", "bands", "entries", "candidates", "pairs"),
    *("redirects", "names", "unmatched", "hops", "waiting", "onward", "steps"),
)
_ALSO = (  # what several steps take
    ("titles sent", "titles at targets"),
    ("titles sent", "titles at nodes"),
    ("titles sent", "titles at steps"),
    ("redirects sent", "redirects at targets"),
    ("hops sent", "hops at nodes"),
)
_RANKED_EDGES = """
SELECT x.rank, y.rank, jaccard
FROM found_edges JOIN reps AS x ON x.row = preferred JOIN reps AS y ON y.row = other
WHERE x.rank < y.rank
ORDER BY y.rank, x.rank
"""


def check_runner(runner: str, options: Sequence[str]) -> None:
    """Finds out before any work whether a run can begin.

    Args:
        runner: its name.
        options: Beam's, as on a command line.

    Raises:
        UsageError: the runner is not among `RUNNERS`, an option of its is missing or not allowed, or there is no Beam.
    """
    if runner not in RUNNERS:
        raise UsageError(f"--runner: got {runner!r}, expected {', '.join(RUNNERS)}; others are known to lose data")
    names = {option.partition("=")[0] for option in options}
    if "--runner" in names or "-r" in names:
        raise UsageError("--runner-option: --runner is not one; name the runner with --runner")
    if runner == "local" and options:
        raise UsageError(f"--runner-option: got {options[0]!r}, but the local runner takes none; use --workers")
    if RUNNERS[runner] and not names & set(RUNNERS[runner]):
        wanted = " or ".join(f"--runner-option={name}=..." for name in RUNNERS[runner])
        raise UsageError(f"--runner {runner}: where it runs is not said; add {wanted}")
    _load("runners")


def resolve(
    folders: Sequence[Path],
    config: DedupConfig,
    *,
    work: Path,
    runner: str = "local",
    runner_options: Sequence[str] = (),
    workers: int = 1,
) -> BeamResolution:
    """Resolves the staged directories `folders`; close what is returned.

    Args:
        folders: complete, as `pipelines.stage.staging` leaves them; in any order.
        config: what counts as a near-duplicate.
        work: an empty directory for parts and for what does not fit memory; `folders` and it are on storage that the
            workers see at the same paths.
        runner: one of `RUNNERS`.
        runner_options: Beam's, handed on as they are.
        workers: bundles that a local run has at once, threads of DuckDB; a cluster's options say how many it has.

    Raises:
        UsageError: the runner is not allowed, or Beam is not installed.
        DamagedError: two keys have one id, a staged file cannot be read, or rows were lost on the way.
        ServiceError: the job failed, or the disk is full.
    """
    check_runner(runner, runner_options)
    with duck.service_errors(work), translate_os_errors(work):
        resolution = BeamResolution(folders, config, work=work, threads=workers)
        try:
            resolution.compute(runner, runner_options, workers)
            resolution.run()
        except BaseException:
            resolution.close()
            raise
    return resolution


class BeamResolution(DuckResolution):
    """A `pipelines.resolve.resolution.Resolution` whose decisions were found by Beam; its tables are DuckDB's."""

    def __init__(self, folders: Sequence[Path], config: DedupConfig, *, work: Path, threads: int) -> None:
        super().__init__(folders, config, work=work, threads=threads, memory_bytes=duck.DEFAULT_MEMORY_BYTES)
        # Its own name for each run: a worker of one that was given up may still be writing.
        self._files = _load("run_files").RunFiles(work.absolute() / f"beam-{uuid.uuid4().hex}")
        self._receipts: collections.Counter[str] = collections.Counter()
        self._parts: dict[str, dict[str, int]] = {name: {} for name in PARTS}

    def compute(self, runner: str, options: Sequence[str], workers: int) -> None:
        """Runs the pipeline and reads its receipts."""
        self._files.prepare(self._folders)
        rows = self._count("staged_documents") + self._count("staged_redirects")
        build = functools.partial(
            _load("graph").build,
            files=self._files,
            config=self._config,
            schemas=PARTS,
            num_parts=max(2, workers, 1 + rows // _ROWS_PER_PART),
        )
        with _quiet():
            _load("runners").run(build, runner=runner, options=options, workers=workers)
        self._read_receipts(runner)
        for name in PARTS:
            self._load_parts(name)
        shutil.rmtree(self._files.root, ignore_errors=True)

    def _read_receipts(self, runner: str) -> None:
        if not self._files.receipts.is_file():
            raise DamagedError(
                f"beam on {runner}: the job ended well and left no receipts in {self._files.root}; do its workers see "
                "this directory? It must be on storage that they share"
            )
        for what, name, rows in json.loads(self._files.receipts.read_bytes()):
            if name:
                self._parts[what][name] = rows
            else:
                self._receipts[what] += rows
        staged = {"documents": "staged_documents", "bands": "staged_bands", "redirects": "staged_redirects"}
        for what, table in staged.items():
            self._reconcile(f"{what} staged", self._count(table), f"{what} sent", self._receipts[f"{what} sent"])
        for sent, received in (*((f"{what} sent", f"{what} received") for what in _SHUFFLED), *_ALSO):
            self._reconcile(sent, self._receipts[sent], received, self._receipts[received])

    def _load_parts(self, name: str) -> None:
        """Makes a table of the parts that count; all of them are there, with the rows that were sent."""
        paths = [self._files.parts / part for part in sorted(self._parts[name])]
        for path in paths:
            rows = pq.read_metadata(path).num_rows if path.is_file() else 0
            self._reconcile(f"rows of {path.name} in receipts", self._parts[name][path.name], "rows found", rows)
        self._insert(f"found_{name}", PARTS[name], ())
        if paths:
            self._con.execute(f"INSERT INTO found_{name} SELECT * FROM {duck.scan(paths)}")
        self._reconcile(f"{name} sent", self._receipts[f"{name} sent"], f"{name} stored", self._count(f"found_{name}"))

    def _find_captures(self) -> None:
        collided = "staged_documents SEMI JOIN found_collisions USING (doc_id)"
        self._check_ids("doc_id", "key || ' ' || locator", collided)
        self._con.execute("CREATE TABLE superseded AS FROM found_superseded")

    def _find_equals(self) -> None:
        self._reconcile("winners", self._count("winners"), "winners sent", self._receipts["winners sent"])
        self._con.execute("CREATE TABLE exact AS FROM found_exact")

    def _find_near_copies(self) -> None:
        sent = self._receipts["representatives sent"]
        self._reconcile("representatives", self._count("reps"), "representatives sent", sent)
        edges, ranked = self._count("found_edges"), self._count(f"({_RANKED_EDGES})")
        self._reconcile("edges", edges, "edges from a preferred representative to another", ranked)
        self._insert_clusters(dedup.Edge(*row) for row in self._rows(_RANKED_EDGES))

    def _find_aliases(self) -> None:
        aliases.create_tables(self._con, "found_reached")
        named = "found_reached SEMI JOIN redirects USING (scope, alias, target)"
        self._reconcile("reached", self._count("found_reached"), "reached by a redirect", self._count(named))
        self._reconcile("documents", self._count("staged_documents"), "verdicts", self._count("verdicts"))

    def _count(self, table: str) -> int:
        ((rows,),) = self._rows(f"SELECT count(*) FROM {table}")
        return int(rows)

    def _reconcile(self, expected: str, rows: int, found: str, found_rows: int) -> None:
        if rows != found_rows:
            raise DamagedError(
                f"beam: {rows} {expected}, but {found_rows} {found}: the runner lost or repeated rows; nothing was "
                "committed; run it on another runner, and report it"
            )


def _load(room: str) -> Any:
    """A module of `pipelines.resolve.beam`: imported when it is wanted, since most never want it, and it takes two seconds.

    Raises:
        UsageError: Beam is not installed.
    """
    try:
        with _quiet():
            return importlib.import_module(f"pipelines.resolve.beam.{room}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise UsageError("--engine beam: Apache Beam is not installed; pip install 'nulls[beam]'") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context: Beam says nothing on stderr; what fails is in the error.

    It warns through the root logger too, which makes Python install a handler for good; that is kept away.
    """
    root, logger, handler = logging.getLogger(), logging.getLogger("apache_beam"), logging.NullHandler()
    before = logger.level
    root.addHandler(handler)
    root.addFilter(_is_not_of_beam)
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
        root.removeFilter(_is_not_of_beam)
        root.removeHandler(handler)


def _is_not_of_beam(record: logging.LogRecord) -> bool:
    return "apache_beam" not in record.pathname
