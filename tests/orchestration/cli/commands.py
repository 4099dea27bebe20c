"""The command line, run in the test's own process: a process each takes ten seconds to load torch and MLflow."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.cli import main as cli


@dataclasses.dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def nulls(*arguments: str, cwd: Path) -> Done:
    """Runs `nulls` with these arguments in a directory."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        arguments_of(["nulls", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return Done(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@contextlib.contextmanager
def arguments_of(arguments: list[str]) -> Iterator[None]:
    """`sys.argv` for a while."""
    before, sys.argv = sys.argv, arguments
    try:
        yield
    finally:
        sys.argv = before


def answer(done: Done, code: int = 0) -> Any:
    """The JSON document of a command that ended with `code`."""
    assert done.code == code, f"{done.stderr}\n{done.stdout[-2000:]}"
    return json.loads(done.stdout)
