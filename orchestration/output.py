r"""Write a command's result to stdout (lines, or one JSON document with --json), and progress and notes to stderr.

Every command reports through `Output`, so that nothing else mixes with the JSON document on stdout, and a pipe that
closes early ends the command quietly. It is also where text from data is made safe, so that no command can forget it:

- An item of `lines()`, a note and an error are each one line. A newline in them is shown as `\n`, as are all characters
  that act on a terminal or cannot be seen (`messages.shown`); a command that means two lines returns two items.
- JSON is exact, and has those characters as `\u` escapes.
- Passwords in URLs are masked everywhere, other secrets in notes and errors (`messages.masking`); the query of a page's
  URL is part of its address, so results keep it.
- `table` has the width of the terminal, else `PIPE_COLUMNS`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from registry.errors import NullsError
from registry.messages.masking import masked, secrets, without, without_login
from registry.messages.shown import escaped, json_text, shortened, width

ProgressUpdate = Callable[[str, float | None], None]
"""Called with a message, and the share done (0 to 1) if known."""
PIPE_COLUMNS = 240
"""Width of a table in a file or a pipe."""
_MIN_COLUMNS = 60  # below this a table is wider than the terminal, rather than unreadable
_GAP = 2
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Output:
    """Writes what a command reports.

    Args:
        as_json: whether `--json` was given.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json

    def result(self, data: Any, lines: Callable[[], Sequence[str]]) -> None:
        """Print a command's result: `data` as JSON, or else `lines()`, each item as one line."""
        if self.as_json:
            text = without_login(json_text(data))
            if not _can_encode(sys.stdout, text):
                text = json.dumps(json.loads(text), indent=2)
        else:
            text = "\n".join(escaped(without_login(line)) for line in lines())
        if text:
            _write(sys.stdout, text)

    def line(self, text: str) -> None:
        """Print one line of another program's output on stdout, without its colours."""
        _write(sys.stdout, escaped(safe_message(_COLOUR.sub("", text))))

    def note(self, text: str) -> None:
        """Print a line on stderr."""
        _write(sys.stderr, escaped(masked(text)))

    def error(self, error: NullsError) -> None:
        """Print an error: a message on stderr, and with --json a document on stdout too."""
        message = safe_message(str(error))
        self.note(f"error: {message}")
        if self.as_json:
            kind = type(error).__name__
            document = {"kind": kind, "message": message, "exit_code": error.exit_code}
            self.result({"error": document, **error.facts}, lambda: ())

    def bug(self, error: BaseException) -> None:
        """Print the traceback of an unexpected exception; a newline in its message does not begin a line."""
        for line in traceback_lines(error):
            self.note(line)
        self.note("error: this is a bug in nulls; please report it with the lines above")

    @contextlib.contextmanager
    def progress(self, title: str) -> Iterator[ProgressUpdate]:
        """Show a progress bar on stderr; if stderr is not a terminal, print a line whenever the message changes."""
        if not sys.stderr.isatty():
            yield self._plain_progress(title)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        # markup=False: `[red]` in a title is text.
        text = TextColumn("{task.description}", markup=False)
        columns = (SpinnerColumn(), text, BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)

            def update(message: str, share: float | None) -> None:
                shown = escaped(masked(f"{title}: {message}"))
                bar.update(task, description=shown, total=None if share is None else 1.0, completed=share)

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
    """Align rows in columns, counting wide characters as two; the widest cells are cut until a row fits."""
    cells = [[escaped(without_login(str(cell))) for cell in row] for row in (header, *rows)]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    limit = _fair_limit(widths, columns() - _GAP * (len(widths) - 1))
    widths = [min(natural, limit) for natural in widths]
    return [
        (" " * _GAP).join(_padded(cell, wanted) for cell, wanted in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def field(name: str, value: object, *, name_columns: int = 16) -> list[str]:
    """Format a named value as one line, or several with a hanging indent if it is longer than a row of a table."""
    indent = " " * (name_columns + 1)
    text = escaped(without_login(str(value)))
    return textwrap.wrap(
        text,
        width=columns(),
        initial_indent=f"{name:<{name_columns}} ",
        subsequent_indent=indent,
        break_on_hyphens=False,
        drop_whitespace=False,
    ) or [f"{name:<{name_columns}} "]


def columns() -> int:
    """Return the width of a table: the terminal's, or `PIPE_COLUMNS` if stdout is none."""
    return max(_MIN_COLUMNS, shutil.get_terminal_size().columns) if sys.stdout.isatty() else PIPE_COLUMNS


def safe_message(text: str) -> str:
    """Return a message without secrets: those of a known form, and the values of this process's environment."""
    return without(masked(text), secrets(os.environ))


def traceback_lines(error: BaseException) -> list[str]:
    """Format an exception and its causes as safe lines: a message that spans several stays one."""
    found: list[str] = []
    if error.__cause__ is not None:
        found += [*traceback_lines(error.__cause__), "The above exception was the direct cause of the following one:"]
    elif error.__context__ is not None and not error.__suppress_context__:
        found += [*traceback_lines(error.__context__), "While it was handled, another exception occurred:"]
    found.append("Traceback (most recent call last):")
    found += [line for frame in traceback.format_tb(error.__traceback__) for line in frame.rstrip("\n").split("\n")]
    try:
        message = str(error)
    except Exception:
        message = "(no message)"
    return [*found, escaped(safe_message(f"{type(error).__qualname__}: {message}"))]


def _fair_limit(widths: Sequence[int], available: int) -> int:
    """Return the largest width of a column at which all together fit; narrower columns keep their own."""
    remaining = available
    for done, natural in enumerate(sorted(widths)):
        share = remaining // (len(widths) - done)
        if natural > share:
            return max(1, share)
        remaining -= natural
    return max(widths, default=1)


def _padded(cell: str, wanted: int) -> str:
    cell = shortened(cell, wanted)
    return cell + " " * (wanted - width(cell))


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _write(stream: TextIO, text: str) -> None:
    """Write lines, with escapes for the letters that the stream's encoding lacks."""
    if not _can_encode(stream, text):
        text = text.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
    stream.write(text + "\n")
    stream.flush()


def size(num_bytes: float) -> str:
    """Format a number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
