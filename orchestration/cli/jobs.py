"""`nulls jobs list|logs|stop`, and `nulls train --ray-address`; `orchestration/jobs/cluster.py` does the work."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.cli.parameters.options import JsonOption
from orchestration.output import Output, table
from orchestration.settings import Settings
from orchestration.train_request import TrainRequest, train_lines
from registry.errors import NullsError

if TYPE_CHECKING:
    from orchestration.jobs.cluster import Cluster

_INTERRUPTED = 130  # a shell's exit code for a command that Ctrl-C ended

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="A",
        help="http://HOST:8265, HOST:6379 or auto; by default RAY_API_SERVER_ADDRESS, RAY_ADDRESS, a cluster here.",
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `nulls jobs list` has it.")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListRequest:
    """The parameters of `nulls jobs list`."""

    everything: Annotated[bool, typer.Option("--all", help="Include jobs that are not of nulls.")] = False
    ray_address: AddressOption = None
    as_json: JsonOption = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogsRequest:
    """The parameters of `nulls jobs logs`."""

    job_id: JobArgument
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Until the job ends; the exit code is then the job's.")
    ] = False
    ray_address: AddressOption = None
    as_json: JsonOption = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class StopRequest:
    """The parameters of `nulls jobs stop`."""

    job_id: JobArgument
    ray_address: AddressOption = None
    as_json: JsonOption = False


def list_jobs(request: ListRequest, settings: Settings, output: Output) -> None:
    """List the training jobs of a cluster, the newest first."""
    from orchestration.jobs.cluster import Cluster

    found = [job for job in Cluster(request.ray_address).jobs() if request.everything or job.model is not None]
    header = ("job", "state", "model", "submitted", "seconds")
    cells = [
        (j.job_id, j.state, j.model or "-", j.submitted_at or "-", "-" if j.seconds is None else f"{j.seconds:.0f}")
        for j in found
    ]
    output.result([job.to_dict() for job in found], lambda: table(cells, header) if cells else ["no job"])


def logs(request: LogsRequest, settings: Settings, output: Output) -> None:
    """Print the log of a job so far, or follow it to its end."""
    from orchestration.jobs.cluster import Cluster

    job_id, address, cluster = request.job_id, request.ray_address, Cluster(request.ray_address)
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if request.follow and output.as_json:
            output.note(line)
        elif not output.as_json:
            output.line(line)

    if request.follow:
        job, result = _followed(output, cluster, address, job_id, on_line)
    else:
        job, result = cluster.job(job_id), cluster.read_log(job_id, on_line)
    data = {"job_id": job_id, "state": job.state, "log": lines, "result": result}
    # The log's lines are on the terminal already; only the result is not.
    output.result(data, lambda: train_lines(result) if result and "error" not in result else [])
    if request.follow:
        _end_as(output, job, result, _advice(address, job_id))


def stop(request: StopRequest, settings: Settings, output: Output) -> None:
    """Stop a training job, and wait until it has stopped; its checkpoints stay, for --resume."""
    from orchestration.jobs.cluster import Cluster, JobState

    job = Cluster(request.ray_address).stop(request.job_id)
    ending = "stopped" if job.state is JobState.STOPPED else f"had ended before ({job.state})"
    output.result(job.to_dict(), lambda: [f"job {request.job_id} {ending}"])


def train(request: TrainRequest, settings: Settings, output: Output, *, config: Any, ray_address: str) -> None:
    """Submit a training as a job, follow it, and print what a local training prints."""
    from orchestration.jobs.cluster import Cluster, outcome
    from orchestration.jobs.submission import prepare, yaml_lines

    cluster = Cluster(ray_address)
    submission = prepare(settings, request, config=config, is_here=cluster.is_here)
    if submission.left_out:
        output.note(f"not passed on, since they name files of this machine: {', '.join(submission.left_out)}")
    if request.dry_run:
        data = {"ray_address": cluster.url, **submission.to_dict()}
        output.result(data, lambda: yaml_lines(data))
        return
    job_id = cluster.submit(submission)
    advice = _advice(ray_address, job_id)
    output.note(f"job {job_id} submitted to {cluster.url}; {advice}")
    if request.detach:
        job = cluster.job(job_id)
        data = {"job_id": job_id, "state": job.state, "model": request.model, "ray_address": cluster.url}
        output.result(data, lambda: [job_id])
        return
    job, result = _followed(output, cluster, ray_address, job_id, output.note)
    result = outcome(job, result, advice)
    output.result(result, lambda: train_lines(result, submission.shown_environment["MLFLOW_TRACKING_URI"]))


def _followed(output: Output, cluster: Cluster, address: str | None, job_id: str, on_line: Any) -> Any:
    """Follow a job and return it with its result, once it has ended; Ctrl-C stops only the following."""
    try:
        return cluster.follow(job_id, on_line)
    except KeyboardInterrupt:
        output.note(f"job {job_id} continues; {_advice(address, job_id)}")
        if output.as_json:
            output.result({"job_id": job_id, "state": cluster.job(job_id).state}, lambda: ())
        raise typer.Exit(_INTERRUPTED) from None


def _end_as(output: Output, job: Any, result: Any, advice: str) -> None:
    """Exit with the code of the job's command, after its error message."""
    from orchestration.jobs.cluster import outcome

    try:
        outcome(job, result, advice)
    except NullsError as error:
        output.note(f"error: {error}")
        raise typer.Exit(error.exit_code) from None


def _advice(address: str | None, job_id: str) -> str:
    """Say how to follow and how to stop a job."""
    option = f" --ray-address {address}" if address else ""
    follow, stop = f"nulls jobs logs {job_id} --follow{option}", f"nulls jobs stop {job_id}{option}"
    return f"follow it with `{follow}`, stop it with `{stop}`"
