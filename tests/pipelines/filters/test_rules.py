"""Test the filter rules: each drop has a reason, and all else is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.document import Document
from pipelines.filters import rules as filters
from pipelines.filters.rules import FilterConfig, judge
from registry.errors import UsageError
from registry.schema import Kind, Status


def document(text: str, *, is_disambiguation: bool = False) -> Document:
    return Document(kind=Kind.WIKI, key="wiki:enwiki:1", locator="x", text=text, is_disambiguation=is_disambiguation)


@pytest.mark.parametrize(
    ("text", "is_disambiguation", "reason"),
    [
        ("one two three four five six seven eight nine ten", False, None),
        ("one two three four five six seven eight nine", False, "short"),
        ("日本語の文章は空白なし", False, None),
        ("日本語の文章", False, "short"),
        ("ภาษาไทยเขียนติดกันโดยไม่เว้นวรรค", False, None),
        ("- – … ! ? . , ; : ( )", False, "short"),
        ("", False, "empty"),
        (" \n ", False, "empty"),
        ("one two three four five six seven eight nine ten", True, "disambiguation"),
        ("", True, "disambiguation"),
    ],
)
def test_judge_gives_the_reason(text: str, is_disambiguation: bool, reason: str | None) -> None:
    verdict = judge(document(text, is_disambiguation=is_disambiguation), FilterConfig())
    assert (verdict[0] if verdict else None) == reason


@given(st.text(max_size=80), st.integers(0, 20))
def test_a_lower_min_words_never_drops_more(text: str, min_words: int) -> None:
    dropped = judge(document(text), FilterConfig(min_words=min_words))
    stricter = judge(document(text), FilterConfig(min_words=min_words + 1))
    assert not dropped or stricter


def test_the_detail_states_got_and_expected() -> None:
    assert judge(document("one two"), FilterConfig(min_words=3)) == ("short", "2 words, expected 3 or more")


def test_apply_leaves_a_document_that_has_ended() -> None:
    short = document("one two")
    filters.apply(short, FilterConfig())
    assert (short.status, short.reason) == (Status.FILTERED, "short")
    failed = document("")
    failed.end(Status.FAILED, "truncated")
    filters.apply(failed, FilterConfig())
    assert (failed.status, failed.reason) == (Status.FAILED, "truncated")


def test_disambiguation_pages_can_be_kept() -> None:
    page = document("one two three", is_disambiguation=True)
    assert judge(page, FilterConfig(min_words=0, keep_disambiguation=True)) is None


def test_a_negative_min_words_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="min_words must be 0 or more, got -1"):
        FilterConfig(min_words=-1)
