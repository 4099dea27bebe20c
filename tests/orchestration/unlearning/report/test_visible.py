"""Text of others is shown with nothing hidden in it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.unlearning.report.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ayn Rand", "Ayn Rand"),
        ("日本語 한국어 مقالة", "日本語 한국어 مقالة"),
        ("می‌خواهم", "می‌خواهم"),  # Persian is spelled with a zero width non-joiner
        ("ế", "ế"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("a\nb\x1b[31m\x00", "a\\x0ab\\x1b[31m\\x00"),
        ("\u2028\ufeff\U000e0041", "\\u2028\\ufeff\\U000e0041"),
        ("x" * 301, "x" * 300 + "…"),
        ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + "\\u0301\\u0301"),
    ],
)
def test_what_is_hidden_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_nothing_hidden_is_left_and_nothing_else_is_lost(text: str) -> None:
    shown = visible(text)
    kept = [c for c in text[:300] if unicodedata.category(c)[0] not in "CZM" and c != "\\"]
    rest = iter(shown)
    assert all(character in rest for character in kept), "in the same order"
    left = {c for c in shown if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert left <= {"\u200c", "\u200d"}
