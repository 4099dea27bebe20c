"""Lists of sources: three forms told apart by content, and every line that cannot be used by its number."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.unlearning.request.lines import MAX_LINES, Line, read_file, read_lines, reason_of
from registry.errors import InputError, UsageError

FIELDS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
ROWS = st.lists(st.tuples(FIELDS.map(lambda text: f"q{text}"), FIELDS, FIELDS), min_size=1, max_size=8)


def faults(data: bytes) -> dict[int | None, str]:
    return {line.number: line.fault for line in read_lines(data) if line.fault}


def test_text_has_a_query_a_line() -> None:
    text = "\n# a comment\n  Anarchism \r\nwiki:enwiki:12\n\nC# (language)\n"
    assert read_lines(text.encode()) == [
        Line(query="Anarchism", number=3),
        Line(query="wiki:enwiki:12", number=4),
        Line(query="C# (language)", number=6),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_marks_and_line_ends(encoding: str, ends: str) -> None:
    assert read_lines(f"東京{ends}Ayn Rand{ends}".encode(encoding)) == [
        Line(query="東京", number=1),
        Line(query="Ayn Rand", number=2),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@given(rows=ROWS)
def test_csv_and_json_lines_say_the_same(delimiter: str, rows: list[tuple[str, str, str]]) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(["Reference", " other", "QUERY", "reason"])
    writer.writerows((reference, "x", query, reason) for query, reason, reference in rows)
    as_json = "\n".join(json.dumps({"query": q, "reason": r, "reference": e, "more": [1]}) for q, r, e in rows)
    expected = [(q.strip(), r.strip() or None, e.strip() or None) for q, r, e in rows]
    for data in (file.getvalue(), as_json):
        assert [(line.query, line.reason, line.reference) for line in read_lines(data.encode())] == expected
        assert not faults(data.encode())


def test_the_number_of_a_row_of_csv_is_that_of_its_first_line() -> None:
    found = read_lines(b'query,reason\n"A",\n\n"B","two\nlines"\nC,x,too much\nD\n')
    assert [(line.number, line.query, line.reason) for line in found if not line.fault] == [
        (2, "A", None),
        (4, "B", "two\nlines"),
        (7, "D", None),
    ]
    assert [(line.number, line.query) for line in found if line.fault] == [(6, "C")]


def test_bad_lines_are_all_named() -> None:
    lines = [
        '{"query": "A"}',
        '{"query": 7, "reference": 117}',
        '{"query": ""}',
        "{",
        '["A"]',
        '{"query": ["A"]}',
        '{"query": "a\\u0000b"}',
        '{"query": "\\ud800"}',
        json.dumps({"query": "A" * 10_001}),
        '{"query": "A", "reason": true}',
    ]
    found = read_lines("\n".join(lines).encode())
    assert found[:2] == [Line(query="A", number=1), Line(query="7", number=2, reference="117")]
    assert [line.number for line in found if line.fault] == list(range(3, 11))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no line"),
        (b"# only a comment\n\n", "no line"),
        (b"query,reason\n", "no line"),
        (b"good\nb\xe4d\n", "line 2"),
        (b"url,reason\nhttp://a.example/,x\n", "`query`"),
        (b"A\n" * (MAX_LINES + 1), "100,001"),
    ],
)
def test_what_is_no_list_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_lines(data)


def test_the_largest_list_is_read() -> None:
    assert len(read_lines(b"A\n" * MAX_LINES)) == MAX_LINES


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--from .*nowhere"):
        read_file(str(tmp_path / "nowhere"))


def test_the_reason_of_a_request() -> None:
    with_reason = [Line(query="A", number=n, reason=f"r{n % 5}") for n in range(1, 10)]
    assert reason_of([Line(query="A")], "asked") == "asked"
    assert reason_of(with_reason, "asked") == "asked"
    assert reason_of(with_reason, "") == "r1; r2; r3; and 2 other reasons"
    assert reason_of([*with_reason, Line(query="", number=10, fault="bad")], "") == "r1; r2; r3; and 2 other reasons"
    with pytest.raises(UsageError, match="line 10 has none"):
        reason_of([*with_reason, Line(query="B", number=10)], " ")
