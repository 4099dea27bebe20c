"""Run the command line from tests: in the test's own process, or in one of its own.

In this process a command takes well under a second; a process of its own takes up to ten to load torch and MLflow, and
proves only that nothing depends on what the tests have loaded. One test of each family of commands uses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestration.cli import main as cli

ROOT = Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def nulls(*arguments: str, cwd: Path, **environment: str) -> Done:
    """Run `nulls` with these arguments in a directory, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        arguments_of(["nulls", *arguments], environment),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def nulls_process(*arguments: str, cwd: Path, **environment: str) -> Done:
    """Run `nulls` in a process of its own."""
    command = [sys.executable, "-m", "orchestration.cli", *arguments]
    # Generous: on a busy machine torch and MLflow alone take half a minute to import.
    done = subprocess.run(
        command,
        cwd=cwd,
        env=process_environment(**environment),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def process_environment(**environment: str) -> dict[str, str]:
    """The environment of a process that runs this checkout's code."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment}


@contextlib.contextmanager
def arguments_of(arguments: list[str], environment: Mapping[str, str]) -> Iterator[None]:
    """Set `sys.argv` and environment variables for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


def answer(done: Done, code: int = 0) -> Any:
    """Return the JSON document of a command that ended with `code`."""
    assert done.code == code, f"{done.stderr}\n{done.stdout[-2000:]}"
    return json.loads(done.stdout)
