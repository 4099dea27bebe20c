"""Write a command's result to stdout (lines, or one JSON document with --json), and progress and notes to stderr.

Every command reports through `Output.result`, so that nothing else mixes with the JSON document on stdout, and a pipe
that closes early ends the command quietly.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from registry.errors import NullsError

ProgressUpdate = Callable[[str, float | None], None]
"""Called with a message, and the share done (0 to 1) if known."""


class Output:
    """Writes what a command reports.

    Args:
        as_json: whether `--json` was given.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def result(self, data: Any, lines: Callable[[], Sequence[str]]) -> None:
        """Print a command's result: `data` as JSON, or else `lines()`."""
        text = json.dumps(data, ensure_ascii=False, indent=2) if self.as_json else "\n".join(lines())
        if text:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line on stderr."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def error(self, error: NullsError) -> None:
        """Print an error: a message on stderr, and with --json a document on stdout too."""
        self.note(f"error: {error}")
        if self.as_json:
            kind = type(error).__name__
            document = {"kind": kind, "message": str(error), "exit_code": error.exit_code}
            self.result({"error": document, **error.facts}, lambda: ())

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[ProgressUpdate]:
        """Show a progress bar on stderr; if stderr is not a terminal, print a line whenever the message changes."""
        if not sys.stderr.isatty():
            yield self._plain_progress(title)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)

            def update(message: str, share: float | None) -> None:
                bar.update(
                    task, description=f"{title}: {message}", total=None if share is None else 1.0, completed=share
                )

            yield update

    def _plain_progress(self, title: str) -> ProgressUpdate:
        printed: set[str] = set()

        def update(message: str, share: float | None) -> None:
            # At most ten lines of one stage, so that a log stays readable.
            step = f"{message.split(' (')[0]} {'' if share is None else int(share * 10)}"
            if step not in printed:
                printed.add(step)
                self.note(f"{title}: {message}" + ("" if share is None else f" [{share:.0%}]"))

        return update


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> list[str]:
    """Align rows in columns, counting wide characters as two."""
    from rich.cells import cell_len

    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(cell_len(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def size(num_bytes: float) -> str:
    """Format a number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
