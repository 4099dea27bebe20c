"""Requests to a served model: every shape is understood as one thing, or is an error that says what is right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from registry.errors import UsageError
from training.serving.request import AUTO, DEFAULTS, NONE, Row, read_body, read_params, read_rows

TEXT = "Ayn Rand was"
NAN = float("nan")


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        [TEXT],
        (TEXT,),
        np.array([TEXT]),
        np.array([TEXT], dtype=object),
        pd.Series([TEXT]),
        pd.Series([TEXT], name="anything"),
        {"prompt": TEXT},
        {"prompt": [TEXT]},
        {"prompt": np.array([TEXT])},
        [{"prompt": TEXT}],
        pd.DataFrame({"prompt": [TEXT]}),
        pd.DataFrame({"prompt": [TEXT], "source": [AUTO]}, index=[7]),
    ],
    ids=lambda data: f"{type(data).__name__}-{data!r}"[:40],
)
def test_forms_of_one_prompt(data: Any) -> None:
    assert read_rows(data) == [Row(prompt=TEXT)]


def test_a_source_that_is_null_means_the_backbone_and_none_given_means_the_closest() -> None:
    expected = [Row(prompt="a", source="wiki:x:1"), Row(prompt="b", source=NONE)]
    assert read_rows([{"prompt": "a", "source": "wiki:x:1"}, {"prompt": "b", "source": None}]) == expected
    assert read_rows({"prompt": ["a", "b"], "source": ["wiki:x:1", None]}) == expected
    assert read_rows(pd.DataFrame({"prompt": ["a", "b"], "source": ["wiki:x:1", None]})) == expected
    assert read_rows([{"prompt": "a", "source": "wiki:x:1"}, {"prompt": "b"}])[1].source == AUTO
    assert read_rows(pd.DataFrame({"prompt": []})) == []


@pytest.mark.parametrize(
    "data",
    [
        None,
        5,
        b"bytes",
        "",
        "  ",
        [],
        {},
        [[TEXT]],
        [[TEXT, "source"]],
        [TEXT, {"prompt": TEXT}],
        [5],
        [None],
        np.array([[TEXT]]),
        pd.Series([1.0, NAN]),
        {"messages": [{"role": "user", "content": TEXT}]},
        {"prompt": TEXT, "source": ["a"]},
        {"prompt": [TEXT, TEXT], "source": ["a"]},
        {"prompt": []},
        {"prompt": [[TEXT]]},
        {"prompt": {"0": TEXT}},
        {"prompt": NAN},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": TEXT, "source": 5},
        {"prompt": TEXT, "source": ""},
        {"prompt": TEXT, "max_new_tokens": 5},
        {"source": "wiki:x:1"},
        [{"prompt": TEXT}, {"text": TEXT}],
        pd.DataFrame({"text": [TEXT]}),
        pd.DataFrame([[TEXT]]),
        pd.DataFrame({"prompt": [TEXT], "temperature": [1.0]}),
        pd.DataFrame({"prompt": [TEXT, None]}),
    ],
    ids=lambda data: f"{type(data).__name__}-{data!r}"[:50],
)
def test_anything_else_is_an_error_that_says_what_is_right(data: Any) -> None:
    with pytest.raises(UsageError, match=r"^got .*; expected .*dataframe_records"):
        read_rows(data)


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"prompt": TEXT}]},
        {"dataframe_split": {"columns": ["prompt"], "data": [[TEXT]], "index": [4]}},
        {"inputs": [{"prompt": TEXT}]},
        {"inputs": [TEXT]},
        {"inputs": {"prompt": TEXT}},
        {"inputs": {"prompt": [TEXT]}, "params": {"max_new_tokens": 64}},
        {"inputs": [TEXT], "params": None},
    ],
)
def test_bodies_of_one_prompt(body: dict[str, Any]) -> None:
    assert read_body(body) == ([Row(prompt=TEXT)], DEFAULTS)


@pytest.mark.parametrize(
    "body",
    [
        TEXT,
        [TEXT],
        {},
        {"prompt": TEXT},
        {"messages": [{"role": "user", "content": TEXT}]},
        {"instances": [{"prompt": TEXT}]},
        {"inputs": TEXT},
        {"inputs": [[TEXT]]},
        {"inputs": {"prompt": TEXT, "temperature": 1}},
        {"inputs": [TEXT], "max_new_tokens": 3},
        {"inputs": [TEXT], "dataframe_records": [{"prompt": TEXT}]},
        {"inputs": [TEXT], "params": [1]},
        {"dataframe_records": [TEXT]},
        {"dataframe_records": {"prompt": [TEXT]}},
        {"dataframe_records": []},
        {"dataframe_split": [[TEXT]]},
        {"dataframe_split": {"data": [[TEXT]]}},
        {"dataframe_split": {"columns": ["prompt"], "data": [TEXT]}},
        {"dataframe_split": {"columns": ["prompt"], "data": [[TEXT, "x"]]}},
        {"dataframe_split": {"columns": ["prompt", "prompt"], "data": [[TEXT, "x"]]}},
        {"dataframe_split": {"columns": ["text"], "data": [[TEXT]]}},
        {"dataframe_split": {"columns": ["prompt"], "data": [[TEXT]], "more": 1}},
    ],
)
def test_bodies_that_are_wrong(body: Any) -> None:
    with pytest.raises(UsageError, match=r"^got .*; expected .*dataframe_records"):
        read_body(body)


def test_parameters_have_defaults_and_keep_their_values() -> None:
    assert read_params({}) == DEFAULTS
    given = {"max_new_tokens": 3, "temperature": 1, "top_p": 0.5, "seed": 9, "source": "none", "sources": ["wiki:x:1"]}
    assert read_params(given) == given
    assert read_params({"max_new_tokens": np.int64(3), "sources": np.array(["a"])}) == DEFAULTS | {
        "max_new_tokens": 3,
        "sources": ["a"],
    }


@pytest.mark.parametrize(
    "params",
    [
        {"max_tokens": 3},
        {"max_new_tokens": 0},
        {"max_new_tokens": 2.5},
        {"max_new_tokens": "3"},
        {"max_new_tokens": True},
        {"temperature": -0.1},
        {"temperature": NAN},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**63},
        {"source": 5},
        {"source": ""},
        {"sources": "wiki:x:1"},
        {"sources": [5]},
    ],
)
def test_parameters_that_are_wrong(params: dict[str, Any]) -> None:
    (name,) = params
    with pytest.raises(UsageError, match=rf"parameter {name}.*expected"):
        read_params(params)
