"""`nulls train --ray-address` and `nulls jobs list|logs|stop`: what they accept and print; `jobs.py` does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.cli.options import JsonOption
from orchestration.output import Output, table
from orchestration.settings import Settings
from orchestration.train_request import TrainRequest, train_lines
from registry.errors import NullsError

if TYPE_CHECKING:
    from orchestration.jobs.cluster import Cluster

_INTERRUPTED = 130  # of a shell: ended by Ctrl-C

TRAIN_ADDRESS_HELP = (
    "Train as a job of this Ray cluster, not here: http://HOST:8265, HOST:6379 or auto. The code goes along, and "
    "MLFLOW_*, AWS_* and NULLS_CATALOG; the nodes need what nulls[train] depends on. Relative paths (--registry, "
    "--runs, sqlite:///) are of this directory if the cluster's head is this machine; for another, name absolute ones "
    "on a disk that its nodes share, or servers and s3://."
)

jobs_app = typer.Typer(
    help="List, read and stop training jobs of a Ray cluster (nulls train --ray-address).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="A",
        help="http://HOST:8265, HOST:6379 or auto; by default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, a cluster here.",
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `nulls jobs list` has it.")]


@jobs_app.command("list")
def list_jobs(
    everything: Annotated[bool, typer.Option("--all", help="Those of others too, not of nulls alone.")] = False,
    ray_address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the training jobs of a cluster, the newest first."""
    from orchestration.jobs.cluster import Cluster

    found = [job for job in Cluster(ray_address).jobs() if everything or job.model is not None]
    header = ("job", "state", "model", "submitted", "seconds")
    rows = [
        (j.job_id, j.state, j.model or "-", j.submitted_at or "-", "-" if j.seconds is None else f"{j.seconds:.0f}")
        for j in found
    ]
    output = Output(as_json=as_json)
    output.result([job.to_dict() for job in found], lambda: table(rows, header) if rows else ["no job"])


@jobs_app.command("logs")
def logs(
    job_id: JobArgument,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; the exit code is then the job's.")
    ] = False,
    ray_address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a job has said so far, or follow it to its end."""
    from orchestration.jobs.cluster import Cluster

    output, cluster = Output(as_json=as_json), Cluster(ray_address)
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if follow and as_json:
            output.note(line)
        elif not as_json:
            typer.echo(line)

    if follow:
        job, result = _followed(output, cluster, ray_address, job_id, on_line)
    else:
        job, result = cluster.job(job_id), cluster.read_log(job_id, on_line)
    data = {"job_id": job_id, "state": job.state, "log": lines, "result": result}
    # A person following it has seen all but the result; else the lines were the answer.
    output.result(data, lambda: train_lines(result) if result and "error" not in result else [])
    if follow:
        _end_as(output, job, result, _advice(ray_address, job_id))


@jobs_app.command("stop")
def stop(job_id: JobArgument, ray_address: AddressOption = None, as_json: JsonOption = False) -> None:
    """Stop a training job, and wait until it has stopped; what it checkpointed stays, for --resume."""
    from orchestration.jobs.cluster import Cluster, JobState

    job = Cluster(ray_address).stop(job_id)
    words = "stopped" if job.state is JobState.STOPPED else f"had ended before ({job.state})"
    Output(as_json=as_json).result(job.to_dict(), lambda: [f"job {job_id} {words}"])


def train(
    output: Output, settings: Settings, request: TrainRequest, *, config: Any, ray_address: str, detach: bool
) -> None:
    """`nulls train --ray-address`: submits the training as a job, follows it, and prints what a local one does."""
    from orchestration.jobs import submission as job_plan
    from orchestration.jobs.cluster import Cluster, outcome

    cluster = Cluster(ray_address)
    submission = job_plan.prepare(settings, request, config=config, is_here=cluster.is_here)
    if submission.left_out:
        output.note(f"not passed on, since they name files of this machine: {', '.join(submission.left_out)}")
    if request.dry_run:
        data = {"ray_address": cluster.url, **submission.to_dict()}
        output.result(data, lambda: job_plan.yaml_lines(data))
        return
    job_id = cluster.submit(submission)
    advice = _advice(ray_address, job_id)
    output.note(f"job {job_id} submitted to {cluster.url}; {advice}")
    if detach:
        job = cluster.job(job_id)
        data = {"job_id": job_id, "state": job.state, "model": request.model, "ray_address": cluster.url}
        output.result(data, lambda: [job_id])
        return
    job, result = _followed(output, cluster, ray_address, job_id, output.note)
    result = outcome(job, result, advice)
    output.result(result, lambda: train_lines(result, submission.shown_environment["MLFLOW_TRACKING_URI"]))


def _followed(output: Output, cluster: Cluster, address: str | None, job_id: str, on_line: Any) -> Any:
    """The ended job and its result; Ctrl-C ends the following alone."""
    try:
        return cluster.follow(job_id, on_line)
    except KeyboardInterrupt:
        output.note(f"job {job_id} goes on; {_advice(address, job_id)}")
        if output.as_json:
            output.result({"job_id": job_id, "state": cluster.job(job_id).state}, lambda: ())
        raise typer.Exit(_INTERRUPTED) from None


def _end_as(output: Output, job: Any, result: Any, advice: str) -> None:
    """Ends with the exit code of the job's command, and its error in words."""
    from orchestration.jobs.cluster import outcome

    try:
        outcome(job, result, advice)
    except NullsError as error:
        output.note(f"error: {error}")
        raise typer.Exit(error.exit_code) from None


def _advice(address: str | None, job_id: str) -> str:
    """How to follow and how to stop a job."""
    where = f" --ray-address {address}" if address else ""
    return f"follow it with `nulls jobs logs {job_id} --follow{where}`, stop it with `nulls jobs stop {job_id}{where}`"
