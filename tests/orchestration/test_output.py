"""The one door to the terminal: whatever a command prints from data is one line, safe, and as wide as it should be."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.output import PIPE_COLUMNS, Output, columns, field, table, traceback_lines
from orchestration.safe_logs import safe_logs
from registry.errors import ServiceError
from registry.messages.shown import width
from tests.registry.messages.test_shown import ANY_TEXT, forbidden


def printed(action: Callable[[], None]) -> tuple[str, str]:
    """Return what `action` writes to stdout and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        action()
    return out.getvalue(), err.getvalue()


@given(ANY_TEXT, ANY_TEXT)
def test_every_way_to_print_is_one_safe_line_per_item(title: str, message: str) -> None:
    def progress() -> None:
        with Output().progress(title) as update:
            update(message, 0.5)

    output = Output(as_json=True)
    outputs = [
        (printed(lambda: Output().result(None, lambda: [f"title {title}", message + "."]))[0], 2),
        (printed(lambda: Output().result(None, lambda: table([(title, message)], ("a", "b"))))[0], 2),
        (printed(lambda: Output().note(f"note: {title}"))[1], 1),
        (printed(lambda: Output().error(ServiceError(title)))[1], 1),
        (printed(lambda: Output().line(f"log: {title}"))[0], 1),
        (printed(progress)[1], 1),
        (printed(lambda: output.result({"title": title}, list))[0], 3),
    ]
    for text, num_lines in outputs:
        assert not forbidden(text.replace("\n", ""))
        assert text.count("\n") == num_lines, text
    assert json.loads(outputs[-1][0])["title"] == title or "://" in title


@given(ANY_TEXT)
def test_a_traceback_has_one_line_for_the_message(message: str) -> None:
    def failing(text: str) -> None:
        raise ValueError(text)

    with pytest.raises(ValueError) as one:  # noqa: PT011
        failing(message)
    with pytest.raises(ValueError) as two:  # noqa: PT011
        failing(f"one{message}")
    num_lines = len(traceback_lines(one.value))
    assert num_lines == len(traceback_lines(two.value)) > 2
    assert not any(map(forbidden, traceback_lines(one.value)))


def test_a_bug_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "S3CRETpw")
    error = ValueError("login with S3CRETpw at http://a:0ther@h failed\nerror: forged")
    error.__cause__ = KeyError("AWS_SECRET_ACCESS_KEY=third")
    _, err = printed(lambda: Output().bug(error))
    assert "S3CRETpw" not in err
    assert "0ther" not in err
    assert "third" not in err
    assert "login with *** at http://a:***@h failed\\nerror: forged" in err
    assert err.splitlines()[-1].startswith("error: this is a bug in nulls")


def test_an_error_in_json_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NULLS_CATALOG", "postgresql://bob:S3CRETpw@h/db")
    out, err = printed(lambda: Output(as_json=True).error(ServiceError("S3CRETpw is wrong; password=0ther")))
    assert json.loads(out)["error"]["message"] == "*** is wrong; password=***"
    assert err == "error: *** is wrong; password=***\n"


def test_logins_are_masked_in_results_and_addresses_of_pages_stay() -> None:
    data = {"ray": "http://bob:S3CRETpw@h:1", "page": "https://a.example/?token=abc"}
    out, _ = printed(lambda: Output(as_json=True).result(data, list))
    assert json.loads(out) == {"ray": "http://bob:***@h:1", "page": "https://a.example/?token=abc"}
    out, _ = printed(lambda: Output().result(data, lambda: table([list(data.values())], ("ray", "page"))))
    assert out.splitlines()[1].split() == ["http://bob:***@h:1", "https://a.example/?token=abc"]


@given(st.lists(st.tuples(ANY_TEXT, st.text("a中", max_size=400), st.integers()), min_size=1, max_size=4))
def test_a_table_has_a_width(rows: list[tuple[str, str, int]]) -> None:
    lines = table(rows, ("title", "reason", "number"))
    assert all(width(line) <= PIPE_COLUMNS for line in lines)
    assert len(lines) == len(rows) + 1


def test_the_widest_cells_of_a_table_are_cut() -> None:
    lines = table([("0123456789abcdef", "short", "long " * 900), ("f" * 16, "x", "y")], ("id", "state", "reason"))
    assert [len(line) for line in lines] == [16 + 2 + 5 + 2 + 6, PIPE_COLUMNS, 16 + 2 + 5 + 2 + 1]
    assert lines[1].startswith("0123456789abcdef  short  long long ")
    assert lines[1].endswith("…")


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.redirect_stdout(Terminal()):
        assert columns() == 80
        assert max(map(width, table([("東京" * 50, "wiki:a")], ("title", "key")))) <= 80
    assert columns() == PIPE_COLUMNS


def test_a_long_field_hangs() -> None:
    lines = field("reason", "word " * 200)
    assert lines[0].startswith("reason           word word")
    assert all(line.startswith(" " * 17) for line in lines[1:])
    assert max(map(len, lines)) <= PIPE_COLUMNS
    assert field("reason", "") == ["reason           "]
    assert field("reason", "a\nb") == [r"reason           a\nb"]


def test_a_stream_without_these_letters_gets_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with contextlib.redirect_stdout(stream):
        Output().result(None, lambda: ["caf\u00e9"])
        Output(as_json=True).result(["caf\u00e9"], list)
    line, document = raw.getvalue().decode("ascii").split("\n", 1)
    assert line == r"caf\xe9"
    assert json.loads(document) == ["caf\u00e9"]


def test_logs_and_warnings_are_safe_while_a_command_runs() -> None:
    def act() -> None:
        handler = logging.StreamHandler()
        log = logging.getLogger("tests.safe_logs")
        log.addHandler(handler)
        try:
            with warnings.catch_warnings(), safe_logs(Output()):
                log.warning("title %s of %s", "a\x1b[2J\nforged", "http://a:S3CRETpw@h")
                try:
                    raise ValueError("b\x1b\nforged")
                except ValueError:
                    log.exception("failed")
        finally:
            log.removeHandler(handler)

    factory = logging.getLogRecordFactory()
    _, err = printed(act)
    assert err.splitlines()[0] == r"title a\x1b[2J\nforged of http://a:***@h"
    assert err.splitlines()[-1] == r"ValueError: b\x1b\nforged"
    assert not forbidden(err.replace("\n", ""))
    assert logging.getLogRecordFactory() is factory
