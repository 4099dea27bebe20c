"""Run the `nulls` command inside a job: `python -m orchestration.jobs.entrypoint train ... --json`.

A job has one log, for results and progress alike. The JSON document of the command is written to it as one marked line,
so that a reader of the log can tell the two apart (`orchestration.jobs.cluster`).
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from orchestration.jobs.submission import RESULT_MARK


def main() -> None:
    """Run the command, write its result as one line, and exit with the command's code."""
    from orchestration.cli.main import main as command

    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            command()
    finally:
        if text := answer.getvalue().strip():
            # ASCII: the locale of a node may allow nothing else.
            sys.stdout.write(f"{RESULT_MARK}{json.dumps(json.loads(text))}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
