"""Text from data as it is shown: no character acts on a terminal, and ordinary text of every script is unchanged."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import UsageError
from registry.messages.shown import escaped, json_text, listed, refuse_controls, shortened, width

FORBIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp", "Cn", "Co"}
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
"""Any code points, lone surrogates included."""


def forbidden(text: str) -> list[str]:
    """Return the characters of `text` that must not reach a terminal, by their category in Unicode."""
    return [character for character in text if unicodedata.category(character) in FORBIDDEN]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b[31mRED", r"\x1b[2J\x1b[31mRED"),
        ("\x1b]0;pwned\x07", r"\x1b]0;pwned\x07"),
        ("\x9b31mC1", r"\x9b31mC1"),
        ("a\0b\x7f", r"a\x00b\x7f"),
        ("line\nbreak\r\ttab", r"line\nbreak\r\ttab"),
        ("nice\u202egnp.exe", r"nice\u202egnp.exe"),
        ("\u2066iso\u2069\u200e\u200f\u061c", r"\u2066iso\u2069\u200e\u200f\u061c"),
        ("a\u2028b\u2029c\u0085d", r"a\u2028b\u2029c\x85d"),
        ("zero\u200bwidth\ufeff\u2060", r"zero\u200bwidth\ufeff\u2060"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("half\ud800", r"half\ud800"),
        ("filler\u3164\ufe0f\u034f", r"filler\u3164\ufe0f\u034f"),
    ],
)
def test_characters_that_act_or_cannot_be_seen_are_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown


@pytest.mark.parametrize(
    "text",
    ["Douglas Adams", "東京 \u3000 都", "Ελλάδα", "العربية", "עברית", "हिन्दी", "e\u0301", "😀 – « € »", "a\u00a0b"],
)
def test_ordinary_text_stays(text: str) -> None:
    assert escaped(text) == text


@given(ANY_TEXT)
def test_nothing_forbidden_is_shown_and_a_second_time_changes_nothing(text: str) -> None:
    shown = escaped(text)
    assert not forbidden(shown)
    assert escaped(shown) == shown
    assert shown.isascii() or not text.isascii()


@given(st.recursive(ANY_TEXT, lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner), max_leaves=8))
def test_json_is_exact_and_safe(data: object) -> None:
    text = json_text(data)
    assert json.loads(text) == data
    assert not forbidden(text.replace("\n", ""))
    assert text.count("\n") == json.dumps(data, indent=2).count("\n")


@given(ANY_TEXT, st.integers(2, 40))
def test_a_shortened_text_fits(text: str, columns: int) -> None:
    shown = shortened(escaped(text), columns)
    assert width(shown) <= columns
    assert shown == escaped(text) or shown.endswith("…")


def test_width_counts_columns() -> None:
    assert [width(text) for text in ("abc", "中文", "e\u0301")] == [3, 4, 1]
    assert shortened("中文字中文字", 5) == "中文…"
    assert len(shortened("a" + "\u0301" * 10_000, 20)) <= 80


def test_a_long_list_says_how_many_more() -> None:
    names = [f"wiki:enwiki:{number}" for number in range(8_901)]
    shown = listed(names)
    assert shown.startswith("wiki:enwiki:0, wiki:enwiki:1, ")
    assert shown.endswith(" more")
    assert len(shown) < 160
    told = int(shown.rsplit(" and ", 1)[1].removesuffix(" more").replace(",", ""))
    assert told + shown.count("wiki:enwiki:") == 8_901
    assert listed(names[:2]) == "wiki:enwiki:0, wiki:enwiki:1"
    assert listed([]) == ""
    assert len(listed(["x" * 10_000, "y"])) < 160


@pytest.mark.parametrize(
    "text", ["legit\n0000  verified", "a\x1b[2J", "a\0", "a\u202eb", "a\x9b", "a\u2028b", "\ud800"]
)
def test_text_to_be_recorded_is_refused_with_controls(text: str) -> None:
    with pytest.raises(UsageError, match=r"--reason '.*': expected one line of text without control characters"):
        refuse_controls("--reason", text)


@pytest.mark.parametrize("text", ["", "GDPR, article 17", "می\u200cخواهم", "❤\ufe0f", "削除"])
def test_text_to_be_recorded_may_be_of_any_script(text: str) -> None:
    refuse_controls("--reason", text)
