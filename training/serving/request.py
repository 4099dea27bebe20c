"""What a request to a served model may say: rows with a prompt, and parameters; anything else is an error that helps.

    {"dataframe_records": [{"prompt": "...", "source": "wiki:enwiki:12"}], "params": {"max_new_tokens": 32}}

Also understood are `inputs` (a list of rows or of prompts, or columns) and `dataframe_split`; in Python a DataFrame, a
Series, a list, a dict, or one prompt as a str. A shape that could mean something else is an error, never an answer.

A row's `source`: an id or a key; "none" or null for the backbone only; "auto", or no such field, for the closest source
(of `sources`, if that parameter names some). Run: ``read_rows([{"prompt": "..."}])``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from registry.errors import UsageError

AUTO, NONE = "auto", "none"
DEFAULTS: dict[str, Any] = {
    "max_new_tokens": 64,
    "temperature": 0.0,
    "top_p": 1.0,
    "seed": 0,
    "source": AUTO,
    "sources": [],
}
"""The parameters of a request, with their defaults."""

EXPECTED = (
    'expected {"dataframe_records": [{"prompt": TEXT, "source": ID}], "params": {...}}, where `source` and `params` '
    "may be left out; `dataframe_split` with these columns, and `inputs` with rows, columns or prompts, are read too; "
    f"params: {', '.join(DEFAULTS)}"
)
_COLUMNS = ("prompt", "source")
_FORMATS = ("dataframe_records", "dataframe_split", "inputs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One prompt, and the source it asks for: `AUTO`, `NONE`, or an id or key."""

    prompt: str
    source: str = AUTO


def read_body(body: Any) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows and parameters of a request's JSON.

    Raises:
        UsageError: it has another shape; the message says which is right.
    """
    if not isinstance(body, Mapping):
        raise _wrong(f"a request that is {_kind(body)}")
    unknown = sorted(set(body) - {*_FORMATS, "params"})
    formats = [name for name in _FORMATS if name in body]
    if unknown or len(formats) != 1:
        raise _wrong(f"a request with the fields {sorted(body)}")
    params = body.get("params")
    if params is not None and not isinstance(params, Mapping):
        raise _wrong(f"`params` that are {_kind(params)}")
    value = body[formats[0]]
    if formats[0] == "dataframe_split":
        rows = _split_rows(value)
    elif isinstance(value, str) or (formats[0] == "dataframe_records" and not _is_list_of(value, Mapping)):
        raise _wrong(f"`{formats[0]}` that is {_kind(value)}")
    else:
        rows = value
    return read_rows(rows), read_params(params or {})


def read_rows(data: Any) -> list[Row]:
    """Return the rows of an input: a DataFrame, a Series, a list or array, a dict, or one prompt.

    Raises:
        UsageError: it has another shape, or a field that is not `prompt` or `source`, or a prompt that is no text.
    """
    if isinstance(data, str):
        return [_row({"prompt": data})]
    if hasattr(data, "to_dict") and hasattr(data, "columns"):  # a DataFrame
        _check_columns(data.columns)
        return [_row(record) for record in data.to_dict("records")]
    if hasattr(data, "tolist"):  # a Series or an array
        data = data.tolist()
    if isinstance(data, Mapping):
        _check_columns(data)
        return [_row(record) for record in _columns_to_records(data)]
    if not isinstance(data, list | tuple) or not data:
        raise _wrong(f"{_kind(data)}")
    if all(isinstance(item, str) for item in data):
        return [_row({"prompt": item}) for item in data]
    if not _is_list_of(data, Mapping):
        raise _wrong(f"a list of {', '.join(sorted({_kind(item) for item in data}))}")
    return [_row(record) for record in data]


def read_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return all parameters of a request, with defaults.

    Raises:
        UsageError: an unknown name, or a value of another type or range.
    """
    if unknown := sorted(map(str, set(params) - set(DEFAULTS))):
        raise UsageError(f"unknown parameter {', '.join(unknown)}: expected {', '.join(DEFAULTS)}")
    given = {name: value for name, value in params.items() if value is not None}
    found = DEFAULTS | {name: value.tolist() if hasattr(value, "tolist") else value for name, value in given.items()}
    _check(found, "max_new_tokens", "a whole number from 1", _is_whole(found["max_new_tokens"], 1))
    _check(found, "seed", "a whole number from 0", _is_whole(found["seed"], 0))
    _check(found, "temperature", "a number from 0", _is_number(found["temperature"]) and found["temperature"] >= 0)
    _check(found, "top_p", "a number above 0, at most 1", _is_number(found["top_p"]) and 0 < found["top_p"] <= 1)
    _check(found, "source", "an id, a key, auto or none", isinstance(found["source"], str) and found["source"] != "")
    _check(found, "sources", "a list of ids or keys", _is_list_of(found["sources"], str))
    return found


def _split_rows(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, Mapping) or not set(value) <= {"columns", "data", "index"}:
        raise _wrong("`dataframe_split` that is not {columns, data}")
    columns: Any = value.get("columns")
    data: Any = value.get("data")
    if not _is_list_of(columns, str) or not _is_list_of(data, list):
        raise _wrong("`dataframe_split` without columns, or whose data are not a list of rows")
    if len(set(columns)) != len(columns) or any(len(row) != len(columns) for row in data):
        raise _wrong(f"`dataframe_split` with rows that do not fit the columns {columns}")
    return [dict(zip(columns, row, strict=True)) for row in data]


def _columns_to_records(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in columns.items()}
    if not any(isinstance(value, list | tuple) for value in lists.values()):
        return [lists]
    if not all(isinstance(value, list | tuple) for value in lists.values()):
        raise _wrong("columns of which some are lists and some are not")
    lengths = {len(value) for value in lists.values()}
    if len(lengths) != 1 or not lengths.pop():
        raise _wrong("columns that are empty, or of different lengths")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _row(record: Mapping[str, Any]) -> Row:
    _check_columns(record)
    prompt, source = record["prompt"], record.get("source", AUTO)
    if not isinstance(prompt, str) or not prompt.strip():
        raise _wrong(f"a prompt that is {'empty' if isinstance(prompt, str) else _kind(prompt)}")
    if source is None or (isinstance(source, float) and math.isnan(source)):  # a DataFrame has NaN for null
        source = NONE
    if not isinstance(source, str) or not source:
        raise _wrong(f"a source that is {_kind(source)}")
    return Row(prompt=prompt, source=source)


def _check_columns(names: Any) -> None:
    found = [str(name) for name in names]
    if "prompt" not in found or not set(found) <= set(_COLUMNS) or len(set(found)) != len(found):
        raise _wrong(f"a row with the fields {sorted(found)}")


def _check(params: Mapping[str, Any], name: str, expected: str, is_right: bool) -> None:
    if not is_right:
        raise UsageError(f"parameter {name}: expected {expected}, got {params[name]!r}")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, kind) for v in value)


def _kind(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "null"
    names = {str: "a string", list: "a list", dict: "an object", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), f"of type {type(value).__name__}")


def _wrong(got: str) -> UsageError:
    return UsageError(f"got {got}; {EXPECTED}")
