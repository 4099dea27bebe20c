"""Text of others is shown with nothing hidden in it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.unlearning.report.visible import visible
from registry.messages.shown import escaped


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ayn Rand", "Ayn Rand"),
        ("日本語 한국어 مقالة", "日本語 한국어 مقالة"),
        ("می‌خواهم", "می‌خواهم"),  # Persian is spelled with a zero width non-joiner
        ("ế", "ế"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("a\nb\x1b[31m\x00", "a\\nb\\x1b[31m\\x00"),
        ("\u2028\ufeff\U000e0041", "\\u2028\\ufeff\\U000e0041"),
        ("x" * 301, "x" * 300 + "…"),
        ("s3://me:secret@host/x", "s3://me:***@host/x"),
        ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + "\\u0301\\u0301"),
    ],
)
def test_what_is_hidden_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_nothing_hidden_is_left(text: str) -> None:
    left = {c for c in visible(text) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp")}
    assert left <= {"\u200c", "\u200d"}


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=300).filter(lambda text: "@" not in text))
def test_letters_and_signs_of_any_script_stay(text: str) -> None:
    assert visible(text) == escaped(text)
