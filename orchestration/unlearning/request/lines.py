"""Read a list of sources to unlearn: text, CSV or JSON lines, told apart by content.

    text        one query a line; blank lines and lines that begin with # are skipped
    CSV         the first line names the columns: query, and reason and reference if wanted; others are ignored.
                Commas, semicolons or tabs.
    JSON lines  {"query": ..., "reason": ..., "reference": ...} a line; other fields are ignored

UTF-8 with or without a byte-order mark, or UTF-16 with one; any line ends. A line that cannot be used is kept with its
number and what is wrong with it, so that it is reported with everything else that is wrong.

Run: ``read_lines(Path("takedowns.csv").read_bytes())``. Cost: 100,000 lines in 0.5 s.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from registry.errors import InputError, UsageError

MAX_LINES = 100_000
_MAX_BYTES = 256 << 20
_MAX_CHARACTERS = 10_000  # of a query, a reason or a reference
_DELIMITERS = ",;\t"
_NUM_REASONS = 3  # named in the request's own reason, where its lines have several


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """What one line, or one argument, asks for.

    Attributes:
        query: a URL, title, ISBN, key or id.
        number: the line's number in the file; None for an argument of the command line.
        reason: why, if the line says so.
        reference: the requester's own name for it: a ticket, a case number.
        fault: why the line cannot be used; None for one that can.
    """

    query: str
    number: int | None = None
    reason: str | None = None
    reference: str | None = None
    fault: str | None = None


def read_file(path: str) -> list[Line]:
    """Read the list in a file, or on standard input for "-".

    Raises:
        InputError: it cannot be read, or see `read_lines`.
    """
    try:
        if path == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"--from {path}: cannot be read: {error.strerror}") from error
    try:
        return read_lines(data)
    except InputError as error:
        raise InputError(f"--from {path}: {error}") from error


def read_lines(data: bytes) -> list[Line]:
    """Return the lines of a list, in order.

    Raises:
        InputError: it is not text, has no line, or has more than 100,000.
    """
    if len(data) > _MAX_BYTES:
        raise InputError(f"a list has at most {_MAX_BYTES >> 20} MiB")
    text = _decoded(data)
    numbered = [(number, line.strip()) for number, line in enumerate(io.StringIO(text, newline=None), 1)]
    content = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    if not content:
        raise InputError("the list has no line that names a source")
    first_number, first = content[0]
    delimiter = _delimiter_of(first)
    if first.startswith("{"):
        lines = [_json_line(number, line) for number, line in content]
    elif delimiter is not None:
        lines = list(_csv_lines(text, first_number, delimiter))
    else:
        lines = [_line(number, {"query": line}) for number, line in content]
    if not lines:
        raise InputError("the list has no line that names a source")
    if len(lines) > MAX_LINES:
        raise InputError(f"the list has {len(lines):,} lines, at most {MAX_LINES:,} are possible: split it")
    return lines


def reason_of(lines: Sequence[Line], reason: str) -> str:
    """Return the reason of the whole request: `reason`, else those of its lines.

    Raises:
        UsageError: there is no reason for a line.
    """
    without = [line for line in lines if not (line.reason or line.fault)]
    if reason.strip():
        return reason
    if without:
        where = f"line {without[0].number}" if without[0].number else repr(without[0].query)
        raise UsageError(f"an unlearn needs a reason for the ledger: {where} has none; give --reason")
    counted = Counter(line.reason for line in lines if line.reason)
    named = [text for text, _ in counted.most_common(_NUM_REASONS) if text]
    others = [f"and {len(counted) - len(named)} other reasons"] if len(counted) > len(named) else []
    return "; ".join(named + others)


def _decoded(data: bytes) -> str:
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise InputError(f"line {number}: expected UTF-8 (or UTF-16 with a byte-order mark): {error.reason}") from error


def _delimiter_of(header: str) -> str | None:
    """Return the delimiter of a CSV file with this first line; None if it is no header of one."""
    for delimiter in _DELIMITERS:
        names = _names(next(csv.reader([header], delimiter=delimiter)))
        if "query" in names:
            return delimiter
        if len(names) > 1 and {"reason", "reference"} & set(names):
            raise InputError(f"the first line names columns, {header!r}, and none of them is `query`")
    return None


def _names(cells: Sequence[str]) -> list[str]:
    return [cell.strip().casefold() for cell in cells]


def _csv_lines(text: str, header_number: int, delimiter: str) -> Iterator[Line]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    begins = 1
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            yield Line(query="", number=begins, fault=f"not CSV: {error}")
            begins = rows.line_num + 1
            continue
        if cells is None:
            return
        number, begins = begins, rows.line_num + 1
        if names is None:
            names = _names(cells) if number >= header_number else None
        elif len(cells) > len(names):
            fault = f"{len(cells)} cells where the first line names {len(names)} columns; quote a cell with a delimiter"
            yield Line(query=cells[0].strip(), number=number, fault=fault)
        elif any(cell.strip() for cell in cells):
            yield _line(number, dict(zip(names, cells, strict=False)))


def _json_line(number: int, text: str) -> Line:
    try:
        fields = json.loads(text)
    except ValueError as error:
        return Line(query="", number=number, fault=f"not JSON: {error}")
    if not isinstance(fields, dict):
        return Line(query="", number=number, fault='expected {"query": ...}')
    return _line(number, fields)


def _line(number: int, fields: dict[str, Any]) -> Line:
    values: dict[str, str | None] = {}
    faults: list[str] = []
    for name in ("query", "reason", "reference"):
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):  # a case number that JSON has as a number
            value = str(value)
        if value is not None and not isinstance(value, str):
            faults.append(f"{name}: expected text, got {json.dumps(value)[:60]}")
        elif value is not None and (fault := _fault_of(value)):
            faults.append(f"{name}: {fault}")
        else:
            values[name] = (value or "").strip() or None
    if not faults and not values["query"]:
        faults.append("it names no source (query)")
    query = values.get("query") or ""
    if faults:
        return Line(query=query, number=number, fault="; ".join(faults))
    return Line(query=query, number=number, reason=values["reason"], reference=values["reference"])


def _fault_of(text: str) -> str | None:
    if len(text) > _MAX_CHARACTERS:
        return f"{len(text):,} characters, at most {_MAX_CHARACTERS:,} are possible"
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        return "expected text without NUL characters and lone surrogates"
    return None
