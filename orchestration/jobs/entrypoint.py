"""The `nulls` command as a job of a cluster runs it: `python -m orchestration.jobs.entrypoint train ... --json`.

A job has one log, for results and progress alike. Its JSON document goes there as one marked line, so that whoever
follows the log can tell the two apart (`orchestration.jobs.cluster`).
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

RESULT_MARK = "nulls-result: "


def main() -> None:
    """Runs the command, then writes its result as one line; ends with the command's exit code."""
    from orchestration.cli.main import main as command

    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            command()
    finally:
        if text := answer.getvalue().strip():
            # ASCII: a node's locale may know no more.
            sys.stdout.write(f"{RESULT_MARK}{json.dumps(json.loads(text))}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
