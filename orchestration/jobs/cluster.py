"""Submit jobs to a Ray cluster, follow their logs, list and stop them, through the cluster's job server (HTTP).

Ray's own client waits forever at an address where no server answers; here every wait except that for the job itself has
a limit: 5 s to connect, 20 s to find a cluster's job server, 60 s for an answer. If the connection to a log breaks, the
log continues where it stopped; a job runs on whether or not anyone follows it.

Cost: importing Ray takes 1 to 2 s, submitting 1 MB of code about 1 s, and a job starts 3 to 5 s later.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import functools
import json
import logging
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestration.jobs.address import ADVICE, find_job_server, is_here, token_header, without_addresses
from orchestration.jobs.submission import MODEL_KEY, RESULT_MARK, Submission, stage
from registry import errors
from registry.connectivity import CONNECT_S
from registry.errors import NotFoundError, NullsError, RefusedError, ServiceError, UsageError
from registry.messages.masking import masked, secrets, secrets_of_url, without

_log = logging.getLogger(__name__)
_ANSWER_S = 60.0
_QUIET_S = 120.0  # after this long without a line of a followed log, check that the job still exists
_LOST_S = 60.0  # the longest that the job server may be unreachable while a job is followed
_POLL_S = 0.5
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_EXIT_CODES = (1, 2, 3, 4, 70)


class JobState(enum.StrEnum):
    """The state of a job; the names are Ray's."""

    PENDING = "PENDING"
    """Submitted; its environment is being set up, or the cluster has no room."""
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    """Stopped on request."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def is_terminal(self) -> bool:
        """Whether the state is final."""
        return self not in (JobState.PENDING, JobState.RUNNING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A job, as the cluster describes it."""

    job_id: str
    state: JobState
    model: str | None
    """The model that `nulls train` registers; None for a job of another program."""
    submitted_at: str | None
    """UTC, ISO 8601."""
    seconds: float | None
    """From submission until now, or until the job ended."""
    message: str
    """Ray's explanation of the state."""
    exit_code: int | None
    """Exit code of the command, once it has ended."""

    @classmethod
    def of(cls, details: Any, now: float) -> Job:
        """Build a job from Ray's JobDetails; `now` in seconds since 1970."""
        began, ended = details.start_time, details.end_time
        hidden = hidden_of(details)
        return cls(
            job_id=str(details.submission_id or details.job_id),
            state=JobState(str(details.status)),
            model=(details.metadata or {}).get(MODEL_KEY),
            submitted_at=datetime.fromtimestamp(began / 1000, UTC).isoformat(timespec="seconds") if began else None,
            seconds=round((ended / 1000 if ended else now) - began / 1000, 1) if began else None,
            message=masked(without(details.message or "", hidden)),
            exit_code=details.driver_exit_code,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of `nulls jobs list --json`."""
        names = ("job_id", "state", "model", "submitted_at", "seconds")
        return {name: getattr(self, name) for name in names}


def hidden_of(details: Any) -> list[str]:
    """Return the secrets in a job's environment (Ray's JobDetails), which its log and messages must not show."""
    variables = (details.runtime_env or {}).get("env_vars") or {}
    return secrets({name: str(value) for name, value in variables.items()})


class LogReader:
    """Assembles lines from a log that arrives in pieces, and from its beginning again after each broken connection.

    Args:
        on_line: called once with each line, without its end; not with the marked line that holds the result.
        hidden: secrets to mask in the lines.
    """

    def __init__(self, on_line: Callable[[str], None], hidden: list[str] | None = None) -> None:
        self._on_line, self._hidden = on_line, hidden or []
        self._seen = self._position = 0
        self._partial = ""
        self.result: dict[str, Any] | None = None
        """The JSON document of the command, once the log has shown it."""

    def rewind(self) -> None:
        """Expect the next piece from the beginning of the log."""
        self._position = 0

    def feed(self, piece: str) -> None:
        """Take the next piece."""
        skipped = max(0, self._seen - self._position)
        self._position += len(piece)
        self._seen = max(self._seen, self._position)
        *lines, self._partial = (self._partial + piece[skipped:]).split("\n")
        for line in lines:
            self._take(line)

    def close(self) -> None:
        """Take a last line that has no end."""
        if self._partial:
            self._take(self._partial)
            self._partial = ""

    def _take(self, line: str) -> None:
        text, mark, document = line.partition(RESULT_MARK)
        if mark:
            with contextlib.suppress(ValueError):
                self.result = json.loads(document)
        if text or not mark:
            self._on_line(masked(without(text, self._hidden)))


def outcome(job: Job, result: Mapping[str, Any] | None, advice: str) -> dict[str, Any]:
    """Return the result of a job that has ended, as if its command had run here.

    Args:
        job: in a terminal state.
        result: the document in the log, or None.
        advice: what to do if neither explains why the job ended.

    Raises:
        NullsError: the command's own error, with its message and exit code; a ServiceError if it reported none.
    """
    error = (result or {}).get("error")
    if isinstance(error, dict):
        raise getattr(errors, str(error.get("kind")), NullsError)(error.get("message"))
    if job.state is JobState.SUCCEEDED and result is not None:
        return dict(result)
    if job.state is JobState.STOPPED:
        raise ServiceError(f"job {job.job_id} was stopped; continue from its last checkpoint with --resume")
    ending = "ended without a result" if job.state is JobState.SUCCEEDED else "failed"
    detail = [line for line in job.message.splitlines() if line.strip()]
    failure = ServiceError(f"job {job.job_id} {ending}: {detail[-1] if detail else 'no message'}; {advice}")
    if job.exit_code in _EXIT_CODES:
        failure.exit_code = job.exit_code
    raise failure


class Cluster:
    """The job server of a running Ray cluster.

    Args:
        address: http://HOST:8265 (the dashboard), HOST:6379 or ray://HOST:10001 (the cluster), `auto` (one of this
            machine); None for what RAY_API_SERVER_ADDRESS or RAY_ADDRESS name, else `auto`.

    Raises:
        UsageError: it is not an address, or a part of Ray is not installed.
        ServiceError: no server answers there within about 20 s.
    """

    def __init__(self, address: str | None = None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
        self.url = find_job_server(address)
        with without_addresses(), self._translated():
            from ray.job_submission import JobSubmissionClient

            for name in _CHATTY:
                logging.getLogger(name).setLevel(logging.WARNING)
            client: Any = JobSubmissionClient(self.url, headers=token_header(os.environ, Path.home()))
            # Without a timeout the client waits forever for an answer.
            client._do_request = functools.partial(client._do_request, timeout=(CONNECT_S, _ANSWER_S))
            self._client = client
            session = client._do_request("GET", "/api/version").json().get("session_name", "")
        self.is_here = is_here(str(session), os.environ)
        """Whether the head of the cluster is this machine."""

    def submit(self, submission: Submission) -> str:
        """Send a job and the files that it needs, and return its id.

        Raises:
            ServiceError: the job server does not accept it.
        """
        # The job itself refuses a bad model name; until then the name must not break the job's URL.
        job_id = f"nulls-{re.sub('[^A-Za-z0-9._-]', '-', submission.model)}-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory(prefix="nulls-job-") as folder:
            stage(Path(folder), submission.config)
            with self._translated(hidden=secrets(submission.environment)):
                self._client.submit_job(
                    entrypoint=submission.command,
                    submission_id=job_id,
                    runtime_env={"working_dir": folder, "env_vars": submission.environment},
                    metadata=submission.metadata,
                )
        return job_id

    def jobs(self) -> list[Job]:
        """Return all jobs, the newest first."""
        with self._translated():
            found = self._client.list_jobs()
        return sorted((Job.of(details, time.time()) for details in found), key=lambda j: j.submitted_at or "")[::-1]

    def job(self, job_id: str) -> Job:
        """Return one job.

        Raises:
            NotFoundError: no job has this id.
        """
        return Job.of(self._details(job_id), time.time())

    def _details(self, job_id: str) -> Any:
        with self._translated(job_id):
            return self._client.get_job_info(job_id)

    def read_log(self, job_id: str, on_line: Callable[[str], None]) -> dict[str, Any] | None:
        """Pass a log as it is now to `on_line`, line by line; return the result in it, if any."""
        reader = LogReader(on_line, hidden_of(self._details(job_id)))
        with self._translated(job_id):
            reader.feed(self._client.get_job_logs(job_id) or "")
        reader.close()
        return reader.result

    def follow(self, job_id: str, on_line: Callable[[str], None]) -> tuple[Job, dict[str, Any] | None]:
        """Pass a log to `on_line` as it grows, until the job ends; return the job and the result in its log.

        Raises:
            ServiceError: the job server was unreachable for longer than a minute; the job may still run.
        """
        reader = LogReader(on_line, hidden_of(self._details(job_id)))
        lost_at: float | None = None
        while True:
            reader.rewind()
            self._tail_until_it_breaks(job_id, reader)
            try:
                job = self.job(job_id)
                lost_at = None
            except ServiceError:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _LOST_S:
                    raise
            else:
                if job.state.is_terminal:
                    break
            time.sleep(_POLL_S)
        # The tail may end before the log does, if the node or the connection was lost.
        reader.rewind()
        with contextlib.suppress(NullsError), self._translated(job_id):
            reader.feed(self._client.get_job_logs(job_id) or "")
        reader.close()
        return job, reader.result

    def _tail_until_it_breaks(self, job_id: str, reader: LogReader) -> None:
        try:
            asyncio.run(self._tail(job_id, reader))
        except BrokenPipeError:  # the reader of the lines is gone
            raise
        except Exception as error:  # after any other break, the state of the job decides what follows
            _log.debug("the log of %s broke off: %r", job_id, error)

    async def _tail(self, job_id: str, reader: LogReader) -> None:
        pieces = aiter(self._client.tail_job_logs(job_id))
        with contextlib.suppress(StopAsyncIteration):
            while True:
                reader.feed(await asyncio.wait_for(anext(pieces), _QUIET_S))

    def stop(self, job_id: str, timeout_s: float = 120.0) -> Job:
        """Stop a job of `nulls` and wait until it has stopped; return a job that had already ended unchanged.

        Raises:
            NotFoundError: no job has this id.
            RefusedError: it is not a job of nulls.
            ServiceError: it did not stop in time.
        """
        job = self.job(job_id)
        if job.model is None:
            raise RefusedError(f"job {job_id} was not started by `nulls train`; stop it with `ray job stop {job_id}`")
        with self._translated(job_id):
            if not job.state.is_terminal:
                self._client.stop_job(job_id)
        deadline = time.monotonic() + timeout_s
        while not job.state.is_terminal:
            if time.monotonic() > deadline:
                raise ServiceError(f"job {job_id} is still {job.state} after {timeout_s:.0f} s; try again")
            time.sleep(_POLL_S)
            job = self.job(job_id)
        return job

    @contextlib.contextmanager
    def _translated(self, job_id: str | None = None, hidden: list[str] | None = None) -> Iterator[None]:
        """Translate Ray's errors into ours."""
        try:
            yield
        except ImportError as error:
            raise UsageError(f"Ray is not installed: {error}; `pip install 'nulls[train]'` brings it") from error
        except Exception as error:
            text = without(str(error).strip(), [*(hidden or []), *secrets_of_url(self.url)])
            if "status code 404" in text and job_id is not None:
                raise NotFoundError(f"no job {job_id!r} at {self.url}; `nulls jobs list` shows them") from None
            if "ray[default]" in text:
                raise UsageError("Ray's job client is not installed; `pip install 'nulls[train]'` brings it") from error
            advice = "set RAY_AUTH_TOKEN" if "uthenti" in text else ADVICE
            # `from None`: Ray's own text may quote the submitted environment.
            raise ServiceError(f"Ray's job server at {self.url}: {(text or repr(error))[:2000]}; {advice}") from None
