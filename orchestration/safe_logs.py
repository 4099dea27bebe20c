"""Make what other code prints while a command runs as safe as the command's own output: log records and warnings.

Libraries log to stderr with handlers of their own (MLflow, Ray, datatrove), and quote titles, URLs and passwords. The
record itself is made safe here, whichever handler prints it: one line, escaped (`registry.messages`), without secrets
(`messages.masking`).
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from orchestration.output import Output, safe_message, traceback_lines
from registry.messages.shown import escaped


class SafeRecord(logging.LogRecord):
    """A log record whose message and traceback can be printed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.exc_info and isinstance(self.exc_info[1], BaseException):
            self.exc_text = "\n".join(traceback_lines(self.exc_info[1]))  # handlers print this text if it is there

    def getMessage(self) -> str:  # noqa: N802 - the name in `logging`
        """Return the message with its arguments, as one safe line."""
        return escaped(safe_message(super().getMessage()))


@contextlib.contextmanager
def safe_logs(output: Output) -> Iterator[None]:
    """Make log records and warnings safe for the duration of the block."""
    factory, show = logging.getLogRecordFactory(), warnings.showwarning

    def show_safely(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        output.note(safe_message(f"{filename}:{lineno}: {category.__name__}: {message}"))

    logging.setLogRecordFactory(SafeRecord)
    if sys.stderr is not None and show.__module__ == "warnings":  # not one that records warnings, as in a test
        warnings.showwarning = show_safely
    try:
        yield
    finally:
        logging.setLogRecordFactory(factory)
        if warnings.showwarning is show_safely:
            warnings.showwarning = show
