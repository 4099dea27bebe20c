"""The runners that are allowed, how a job is run on one, and what a failed job says.

    local      Beam's FnApiRunner in this process: made here and handed over, since asking for the "DirectRunner" makes
               Beam look for Prism on the network and take another runner without a word
    flink, spark, dataflow    by name, with the options of their users, as they are

No others: Dask's runner loses data silently. Only the local one is run by this project's tests. None is believed:
`pipelines.resolve.beam.engine` counts what came back.
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
# Lines of a traceback, which is what a runner makes of what a worker raised.
_RAISED = re.compile(r"registry\.errors\.(\w+): (.*)")
_LAST = re.compile(r"^[A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b.*", re.MULTILINE)
_WHERE = re.compile(r" \[while running '[^']*'\]")


def run(build: Callable[[Any], None], *, runner: str, options: Sequence[str], workers: int) -> None:
    """Runs the pipeline that `build` makes, to its end.

    Args:
        build: called with an empty pipeline.
        runner: one that is allowed (`pipelines.resolve.beam.engine.RUNNERS`).
        options: Beam's, as on a command line.
        workers: of a local run.

    Raises:
        DamagedError, ServiceError: as a worker raised it; the latter too if the job failed for another reason.
    """
    pipeline = beam.Pipeline(runner=_runner(runner), options=_options(runner, options, workers))
    build(pipeline)
    try:
        state = pipeline.run().wait_until_finish()
    except Exception as error:
        raise _translated(error, runner) from error
    if str(state) != "DONE":
        raise ServiceError(
            f"beam on {runner}: the job ended as {state}, expected DONE; see its log, run the same again"
        )


def _runner(name: str) -> Any:
    return FnApiRunner() if name == "local" else _CLASSES[name]


def _options(runner: str, options: Sequence[str], workers: int) -> PipelineOptions:
    """The user's options, and none of those that a command line of ours was called with."""
    own: dict[str, Any] = {"save_main_session": False}
    if runner == "local":
        own |= {"direct_num_workers": workers, "direct_running_mode": "in_memory"}
    return PipelineOptions(list(options), **own)


def _translated(error: Exception, runner: str) -> NullsError:
    """What a worker raised: as it is, or out of the text that a runner makes of it; the first line if there is no more.

    Beam adds the name of the step, which tells a user nothing; the cause has it.
    """
    text = _WHERE.sub("", str(error))
    if isinstance(error, NullsError):
        return type(error)(text)
    if raised := _RAISED.findall(text):
        name, words = raised[-1]
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, NullsError):
            return kind(words)
    found = _LAST.findall(text)
    words = found[-1] if found else f"{type(error).__name__}: {text.strip().partition(chr(10))[0]}"
    return ServiceError(f"beam on {runner}: {words}; nothing was written: run the same command again")
