"""The model as MLflow's pyfunc has it: `predict`, and its errors as MLflow reports them over HTTP.

MLflow drops fields, columns and parameters that a signature does not name, and answers without them. For models of
this flavour, and only for those, `guard` lets `training.serving.request` read a request before MLflow does: what is not
understood is an error. Errors are MLflow's and ours at once: 400 for a wrong request, 403 for a source that is revoked,
404 for one that was never trained.

Run: ``mlflow.pyfunc.load_model("models:/wiki/2").predict([{"prompt": "Who founded anarchism?"}])``.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from mlflow import pyfunc
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
)

from registry import ids
from registry.errors import NotFoundError, NullsError, RefusedError, UsageError
from registry.ids import SourceId
from registry.schema import Kind
from training.serving import request
from training.serving.request import AUTO, NONE, Row
from training.serving.served_model import ServedModel

_JSON = "application/json"


class _ReportedError(MlflowException):  # type: ignore[misc]  # MLflow's class has no types
    code: int

    def __init__(self, error: NullsError | str) -> None:
        super().__init__(str(error), error_code=self.code)


class WrongRequestError(_ReportedError, UsageError):
    """A request of the wrong shape; 400."""

    code = INVALID_PARAMETER_VALUE


class RefusedRequestError(_ReportedError, RefusedError):
    """A request for a source that may not be used; 403."""

    code = PERMISSION_DENIED


class UnknownSourceError(_ReportedError, NotFoundError):
    """A request for a source that was not trained; 404."""

    code = RESOURCE_DOES_NOT_EXIST


class PythonModel:
    """The object that `mlflow.pyfunc.load_model` wraps.

    Args:
        served: the model.
        model_uri: what answers name as the version.
    """

    def __init__(self, served: ServedModel, model_uri: str) -> None:
        self.served = served
        self.model_uri = model_uri
        self._keys: dict[SourceId, str] = {}

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, str | None]]:
        """Continue each prompt.

        Args:
            model_input: rows with `prompt` and optionally `source`; see `training.serving.request`.
            params: `max_new_tokens`, `temperature`, `top_p`, `seed`; `source` for the rows that name none; `sources`,
                which are the only ones that a prompt is routed to.

        Returns:
            For each row its `text`, the `source` whose sinks were used (its key, or its id where the registry is not
            here; None for the backbone only), and the `model_uri`.

        Raises:
            WrongRequestError: a row or a parameter is not understood.
            RefusedRequestError: a source is revoked, or was held out.
            UnknownSourceError: a source was not trained.
        """
        try:
            rows, options = request.read_rows(model_input), request.read_params(params or {})
            # All rows first: a request that is refused has computed nothing.
            asked = [self._asked(row, options) for row in rows]
            sampling = {name: options[name] for name in ("max_new_tokens", "temperature", "top_p", "seed")}
            return [self._answer(row.prompt, **where, **sampling) for row, where in zip(rows, asked, strict=True)]
        except NullsError as error:
            raise _reported(error) from error

    def _answer(self, prompt: str, **options: Any) -> dict[str, str | None]:
        text, used = self.served.generate(prompt, **options)
        return {"text": text, "source": None if used is None else self._key(used), "model_uri": self.model_uri}

    def _asked(self, row: Row, options: dict[str, Any]) -> dict[str, Any]:
        """Return what `ServedModel.generate` is to be called with for the source of a row."""
        source = options["source"] if row.source == AUTO else row.source
        if source == NONE:
            return {"source_id": None}
        if source != AUTO:
            return {"source_id": self._checked(source)}
        among = [self._checked(name) for name in options["sources"]]
        return {"among": among} if among else {}

    def _checked(self, name: str) -> SourceId:
        source_id = ids.parse_id(name)
        if source_id is None and name.partition(":")[0] in {*Kind}:
            source_id = ids.source_id(name)
        if source_id is None:
            raise UsageError(f"source {name!r}: expected an id or a key, as `nulls lookup` prints them, auto or none")
        try:
            return self.served.check(source_id)
        except (RefusedError, NotFoundError) as error:
            known = self.served.source(SourceId(source_id))
            named = f" ({known.key}, {known.title})" if known and known.title else f" ({known.key})" if known else ""
            raise type(error)(f"{error}{named}") from error

    def _key(self, source_id: SourceId) -> str:
        if source_id not in self._keys:
            found = self.served.source(source_id)
            self._keys[source_id] = found.key if found else ids.format_id(source_id)
        return self._keys[source_id]


def guard() -> None:
    """Read requests to models of this flavour before MLflow does; a second call changes nothing.

    MLflow has no hook for this, so two of its functions are wrapped. For other models they do what they did.
    """
    from mlflow.pyfunc import scoring_server

    if not hasattr(pyfunc.PyFuncModel.predict, "nulls"):
        pyfunc.PyFuncModel.predict = _strict_predict(pyfunc.PyFuncModel.predict)
    if not hasattr(scoring_server.invocations, "nulls"):
        scoring_server.invocations = _strict_invocations(scoring_server.invocations)


def _strict_predict(original: Any) -> Any:
    @functools.wraps(original)
    def predict(model: Any, data: Any, params: Any = None) -> Any:
        if not _is_ours(model):
            return original(model, data, params)
        try:
            return original(model, _table(request.read_rows(data)), request.read_params(params or {}))
        except UsageError as error:
            raise _reported(error) from error

    predict.nulls = True  # type: ignore[attr-defined]
    return predict


def _strict_invocations(original: Any) -> Any:
    @functools.wraps(original)
    def invocations(data: Any, content_type: Any, model: Any, input_schema: Any) -> Any:
        if _is_ours(model) and content_type is None:
            raise WrongRequestError(f"got a request without Content-Type: application/json; {request.EXPECTED}")
        if _is_ours(model) and content_type.partition(";")[0].strip() == _JSON:
            data = _canonical(data)
        return original(data, content_type, model, input_schema)

    invocations.nulls = True  # type: ignore[attr-defined]
    return invocations


def _canonical(data: Any) -> str:
    """Return the body of a request in the one form that MLflow neither drops from nor casts."""
    try:
        rows, params = request.read_body(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise WrongRequestError(f"got a request that is not JSON: {error}; {request.EXPECTED}") from error
    except UsageError as error:
        raise _reported(error) from error
    records = [{"prompt": row.prompt, "source": row.source} for row in rows]
    return json.dumps({"dataframe_records": records, "params": params})


def _reported(error: NullsError) -> MlflowException:
    """Return the error that MLflow turns into a status: 400, 403, 404, or 500 for what is no fault of the request."""
    if isinstance(error, MlflowException):
        return error
    for kind, reported in ((RefusedError, RefusedRequestError), (NotFoundError, UnknownSourceError)):
        if isinstance(error, kind):
            return reported(error)
    if isinstance(error, UsageError):
        return WrongRequestError(error)
    return MlflowException(str(error), error_code=INTERNAL_ERROR)


def _is_ours(model: Any) -> bool:
    return isinstance(getattr(model, "_model_impl", None), PythonModel)


def _table(rows: list[Row]) -> Any:
    import pandas as pd  # type: ignore[import-untyped]

    return pd.DataFrame({"prompt": [row.prompt for row in rows], "source": [row.source for row in rows]})
