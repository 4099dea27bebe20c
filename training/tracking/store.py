"""One door to MLflow: an absolute tracking URI, a client whose store was reached, model URIs, errors.

MLflow retries for minutes by default and prints its migrations. Both are changed here, before it is imported, so that
a store that cannot be reached is an error within about 10 s. Its errors quote the URI, and are shown without the
password in it.

Run: ``client(tracking_uri())``. Cost: 5 s for a new SQLite store, which MLflow migrates; else the import of mlflow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.connectivity import check_answers
from registry.errors import NotFoundError, ServiceError, UsageError
from registry.messages.masking import masked_url, secrets_of_url, without

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
_ADVICE = "check MLFLOW_TRACKING_URI and the server"
_MODEL_URI = re.compile(r"models:/([^/@]+)(?:/(\d+|latest)|@([\w.-]+))")


def tracking_uri(configured: str | None = None) -> str:
    """Return `configured`, else MLFLOW_TRACKING_URI, else `DEFAULT_TRACKING_URI`; a SQLite path is made absolute.

    Raises:
        UsageError: it is a folder: MLflow 3 has no file store.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_TRACKING_URI
    relative = uri.removeprefix("sqlite:///")
    if uri.startswith("sqlite:///") and not relative.startswith("/"):
        return f"sqlite:///{Path(relative).absolute()}"
    if "://" not in uri:
        raise UsageError(
            f"MLFLOW_TRACKING_URI={uri!r}: MLflow 3 has no file store; use sqlite:///mlflow.db or a server"
        )
    return uri


def client(uri: str) -> MlflowClient:
    """Return a client of the store at `uri`, after one request to it.

    Raises:
        ServiceError: the store does not answer within about 10 s.
    """
    check_answers(uri, "/health", service="MLflow server", advice=_ADVICE)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _environment_kept("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(uri)
    with translated(uri):
        found = mlflow.MlflowClient(tracking_uri=uri)
        found.search_registered_models(max_results=1)
    return found


@contextlib.contextmanager
def _environment_kept(name: str) -> Iterator[None]:
    """Restore an environment variable after the block.

    MLflow makes the store of one call the default of all later calls, in this process and its children. A caller who
    names no store means the one in the user's environment.
    """
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def translated(uri: str) -> Iterator[None]:
    """Turn MLflow's errors in the block into ours.

    Raises:
        NotFoundError: the thing asked for does not exist.
        ServiceError: the store at `uri` cannot be reached, or refuses.
    """
    from mlflow.exceptions import MlflowException

    hidden, shown = secrets_of_url(uri), masked_url(uri)
    try:
        yield
    except MlflowException as error:
        message = without(error.message, hidden)
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise NotFoundError(f"MLflow at {shown}: {message}") from error
        raise ServiceError(f"MLflow at {shown}: {message}; {_ADVICE}") from error
    except Exception as error:  # SQLAlchemy, requests and OS errors pass through MLflow unwrapped
        if type(error).__module__.partition(".")[0] in ("sqlalchemy", "requests", "urllib3", "sqlite3", "builtins"):
            raise ServiceError(f"MLflow at {shown}: {without(str(error), hidden)}; {_ADVICE}") from error
        raise


def artifact_location(uri: str) -> str | None:
    """Return the artifact URI for a new experiment: beside an SQLite store; None lets any other store choose."""
    path = Path(uri.removeprefix("sqlite:///"))
    return (path.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:///") else None


def model_version(store: MlflowClient, uri: str, model_uri: str) -> Any:
    """Return the MLflow model version of `models:/NAME/VERSION`, `models:/NAME/latest` or `models:/NAME@ALIAS`.

    Raises:
        UsageError: the URI has another form.
        NotFoundError: there is no such version.
        ServiceError: the store cannot be reached.
    """
    match = _MODEL_URI.fullmatch(model_uri)
    if not match:
        raise UsageError(f"model {model_uri!r}: expected models:/NAME/VERSION or models:/NAME@ALIAS")
    name, version, alias = match.groups()
    with translated(uri):
        if alias:
            return store.get_model_version_by_alias(name, alias)
        if version != "latest":
            return store.get_model_version(name, version)
        versions = all_versions(store, name)
    if not versions:
        raise NotFoundError(f"no model {name!r} in MLflow at {masked_url(uri)}")
    return versions[-1]


def all_versions(store: MlflowClient, name: str) -> list[Any]:
    """Return all versions of a registered model, the oldest first."""
    token, versions = None, []
    while True:
        page = store.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        versions += page
        token = page.token
        if not token:
            return sorted(versions, key=lambda version: int(version.version))
