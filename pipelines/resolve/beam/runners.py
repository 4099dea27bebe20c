"""Run a job on one of the allowed runners, and translate the errors of its workers.

    local      Beam's FnApiRunner in this process: constructed here, since Beam, asked for the "DirectRunner", looks for
               Prism on the network and silently takes another runner
    flink, spark, dataflow    by name, with their users' options unchanged

No others: Dask's runner loses data silently. This project's tests only run the local one. None is trusted:
`pipelines.resolve.beam.job` counts the rows that came back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from registry import errors
from registry.errors import NullsError, ServiceError

_CLASSES = {"flink": "FlinkRunner", "spark": "SparkRunner", "dataflow": "DataflowRunner"}
# Lines of a traceback: runners turn a worker's exception into text.
_RAISED = re.compile(r"registry\.errors\.(\w+): (.*)")
_LAST = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b.*", re.MULTILINE)
_WHERE = re.compile(r" \[while running '[^']*'\]")


def run(build: Callable[[Any], None], *, runner: str, options: Sequence[str], workers: int) -> None:
    """Run the pipeline that `build` makes, to its end.

    Args:
        build: called with an empty pipeline.
        runner: one of `pipelines.resolve.beam.engine.RUNNERS`.
        options: Beam's, as on a command line.
        workers: of a local run.

    Raises:
        DamagedError, ServiceError: as a worker raised it.
        ServiceError: the job failed for another reason.
    """
    pipeline = beam.Pipeline(runner=_runner(runner), options=_options(runner, options, workers))
    build(pipeline)
    try:
        state = pipeline.run().wait_until_finish()
    except Exception as error:
        raise _translated(error, runner) from error
    if str(state) != "DONE":
        raise ServiceError(
            f"beam on {runner}: the job ended as {state}, expected DONE; see its log, run the same command again"
        )


def _runner(name: str) -> Any:
    return FnApiRunner() if name == "local" else _CLASSES[name]


def _options(runner: str, options: Sequence[str], workers: int) -> PipelineOptions:
    """Return the user's options; Beam would add those of this process's own command line otherwise."""
    own: dict[str, Any] = {"save_main_session": False}
    if runner == "local":
        own |= {"direct_num_workers": workers, "direct_running_mode": "in_memory"}
    return PipelineOptions(list(options), **own)


def _translated(error: Exception, runner: str) -> NullsError:
    """Return the error that a worker raised, restored from a traceback if need be; else one with the last line.

    Beam adds the name of the step to messages; it is removed, since it means nothing to a user and the cause has it.
    """
    text = _WHERE.sub("", str(error))
    if isinstance(error, NullsError):
        return type(error)(text)
    if raised := _RAISED.findall(text):
        name, message = raised[-1]
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, NullsError):
            return kind(message)
    found = _LAST.findall(text)
    message = found[-1] if found else f"{type(error).__name__}: {text.strip().partition(chr(10))[0]}"
    return ServiceError(f"beam on {runner}: {message}; nothing was written: run the same command again")
