"""The keyed stage on a Beam runner, for what takes one machine too long; the same snapshot, byte for byte.

    staged directories -> [Beam: captures, equal texts, near copies, redirects] -> parts -> [DuckDB: tables, in order]

The workers find the groups and verify the pairs (`pipelines.resolve.beam`), with the decisions of
`pipelines.dedup.decisions`, and write compact parts to the work directory, which is with the staged files on storage
that all of them see at one path. The driver, this process, joins the parts to the staged columns and writes the tables
with the queries of the DuckDB engine. So two things run only on the driver, out of core: `dedup.star_clusters`, one
pass over the verified edges (24 bytes each, sorted on disk; the ranks found so far in memory, 60 bytes each), since a
greedy choice over all edges has one order and would fill the memory of the one worker that got it as a group; and the
sort of the snapshot's tables, which its files need in any case.

Row counts are reconciled after each run (`pipelines.resolve.beam.job`): no runner is trusted.

Cost: on one core 100,000 documents in 66 s and 1.1 GB (DuckDB 10 s and 0.5 GB), 2.5 s of it to build and start the
graph; the local shuffle is in memory, about 7 kB a document, so `local` is for tests and small corpora.

    resolve(folders, DedupConfig(), work=work, runner="flink", runner_options=["--flink_master=host:8081"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.dedup import decisions as dedup
from pipelines.dedup.minhash import DedupConfig
from pipelines.resolve import aliases
from pipelines.resolve.beam.job import BeamJob, load_module, reconcile
from pipelines.resolve.duckdb.tables import Tables
from pipelines.resolve.keyed_stage import TableResolution, insert_clusters, resolve_with
from registry.errors import UsageError

# Name -> options of which a user must give one: without them Beam downloads a server and starts a cluster of its own.
RUNNERS: dict[str, tuple[str, ...]] = {
    "local": (),
    "flink": ("--flink_master", "--job_endpoint"),
    "spark": ("--spark_master_url", "--spark_rest_url", "--job_endpoint"),
    "dataflow": ("--project",),
}
_RANKED_EDGES = """
SELECT x.rank, y.rank, jaccard
FROM found_edges JOIN reps AS x ON x.row = preferred JOIN reps AS y ON y.row = other
WHERE x.rank < y.rank
ORDER BY y.rank, x.rank
"""


def check_runner(runner: str, options: Sequence[str]) -> None:
    """Check, before any work, that a run could start.

    Args:
        runner: its name.
        options: Beam's, as on a command line.

    Raises:
        UsageError: the runner is not among `RUNNERS`, one of its options is missing or not allowed, or Beam is not
            installed.
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
        raise UsageError(f"--runner {runner}: the address of its cluster is missing; add {wanted}")
    load_module("runners")


def resolve(
    folders: Sequence[Path],
    config: DedupConfig,
    *,
    work: Path,
    runner: str = "local",
    runner_options: Sequence[str] = (),
    workers: int = 1,
) -> TableResolution:
    """Resolve the staged directories `folders`; close what is returned.

    Args:
        folders: complete, as `pipelines.stage.staging` leaves them; in any order.
        config: what counts as a near-duplicate.
        work: an empty directory for parts and for what does not fit memory; `folders` and it are on storage that the
            workers see at the same paths.
        runner: one of `RUNNERS`.
        runner_options: Beam's, passed on unchanged.
        workers: bundles that a local run has at once, threads of DuckDB; a cluster's options say how many it has.

    Raises:
        UsageError: the runner is not allowed, or Beam is not installed.
        DamagedError: two keys have one id, a staged file cannot be read, or rows were lost on the way.
        ServiceError: the job failed, or the disk is full.
    """
    check_runner(runner, runner_options)

    def run_job(tables: Tables) -> BeamGroupFinder:
        job = BeamJob(tables, config)
        job.run(runner, runner_options, workers)
        return BeamGroupFinder(tables, job)

    return resolve_with(run_job, folders, work=work, threads=workers)


class BeamGroupFinder:
    """A `pipelines.resolve.keyed_stage.GroupFinder` over the parts of a job that has run.

    Args:
        tables: the database, with the job's parts.
        job: for its receipts.
    """

    def __init__(self, tables: Tables, job: BeamJob) -> None:
        self._tables, self._job = tables, job

    def find_captures(self) -> None:
        """See `GroupFinder`."""
        collided = "staged_documents SEMI JOIN found_collisions USING (doc_id)"
        self._tables.check_ids("doc_id", "key || ' ' || locator", collided)
        self._tables.execute("CREATE TABLE superseded AS FROM found_superseded")

    def find_equal_texts(self) -> None:
        """See `GroupFinder`."""
        self._job.check_rows("winners", self._tables.count("winners"), "winners sent")
        self._tables.execute("CREATE TABLE exact AS FROM found_exact")

    def find_near_copies(self) -> None:
        """See `GroupFinder`."""
        self._job.check_rows("representatives", self._tables.count("reps"), "representatives sent")
        num_edges, num_ranked = self._tables.count("found_edges"), self._tables.count(f"({_RANKED_EDGES})")
        reconcile("edges", num_edges, "edges from a preferred representative to another", num_ranked)
        insert_clusters(self._tables, (dedup.Edge(*row) for row in self._tables.rows(_RANKED_EDGES)))

    def find_aliases(self) -> None:
        """See `GroupFinder`."""
        aliases.create_tables(self._tables, "found_reached")
        named = "found_reached SEMI JOIN redirects USING (scope, alias, target)"
        num_reached, num_named = self._tables.count("found_reached"), self._tables.count(named)
        reconcile("reached", num_reached, "reached by a redirect", num_named)
        num_documents, num_verdicts = self._tables.count("staged_documents"), self._tables.count("verdicts")
        reconcile("documents", num_documents, "verdicts", num_verdicts)
