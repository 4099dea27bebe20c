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
_LOGGED_MODEL_URI = re.compile(r"models:/(m-[0-9a-f]{32})")
LOGGED_MODEL_TAG = "nulls.logged_model"
_REACHED: set[tuple[int, str]] = set()
"""Stores that answered this process, by its id and their URI: a command makes many clients, and asks once."""
_RUN_URI = re.compile(r"runs:/([0-9a-f]{32})(?:/[^/]*)?")


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


def known_tracking_uri() -> str:
    """Return the store that MLflow uses in this process; "" for a folder, or an SQLite file that is not there."""
    import mlflow

    configured = mlflow.get_tracking_uri()
    uri = tracking_uri(configured) if "://" in configured else ""
    return "" if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file() else uri


def client(uri: str) -> MlflowClient:
    """Return a client of the store at `uri`; the first in a process makes a request to it.

    Raises:
        ServiceError: the store does not answer within about 10 s.
    """
    is_new = (os.getpid(), uri) not in _REACHED
    if is_new:
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
        if is_new:
            found.search_registered_models(max_results=1)
    _REACHED.add((os.getpid(), uri))
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
    """Return the MLflow model version of a URI.

    Args:
        store: a client of the store.
        uri: the store's, for messages.
        model_uri: `models:/NAME/VERSION`, `models:/NAME/latest`, `models:/NAME@ALIAS`, `models:/m-ID` (MLflow's logged
            model) or `runs:/RUN_ID` (the version that training registered).

    Raises:
        UsageError: the URI has another form.
        NotFoundError: there is no such version.
        ServiceError: the store cannot be reached.
    """
    for form, search in ((_LOGGED_MODEL_URI, _version_of_logged_model), (_RUN_URI, _version_of_run)):
        if found := form.fullmatch(model_uri):
            with translated(uri):
                version_found = search(store, found[1])
            if version_found is None:
                raise NotFoundError(f"{model_uri} is not registered as a version in MLflow at {uri}")
            return version_found
    match = _MODEL_URI.fullmatch(model_uri)
    if not match:
        raise UsageError(
            f"model {model_uri!r}: expected models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS"
        )
    name, version, alias = match.groups()
    with translated(uri):
        if alias:
            return _version_of_alias(store, name, alias)
        if version != "latest":
            return store.get_model_version(name, version)
        versions = all_versions(store, name)
    if not versions:
        raise NotFoundError(f"no model {name!r} in MLflow at {masked_url(uri)}")
    return versions[-1]


def _version_of_alias(store: MlflowClient, name: str, alias: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return store.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":  # what MLflow says of an alias that does not exist
            raise NotFoundError(f"models:/{name}@{alias}: {error.message}") from error
        raise


def _version_of_logged_model(store: MlflowClient, model_id: str) -> Any:
    """Return the version that was registered from a logged model, not a copy of it, which has its tags."""
    location = store.get_logged_model(model_id).artifact_location
    queries = (f"tags.`{LOGGED_MODEL_TAG}` = '{model_id}'", f"source_path = '{location}'")
    found = [version for query in queries for version in store.search_model_versions(query)]
    return next((version for version in found if not version.source.startswith("models:/")), None)


def _version_of_run(store: MlflowClient, run_id: str) -> Any:
    found = store.search_model_versions(f"run_id = '{run_id}'", max_results=1000)
    trained = [version for version in found if "nulls.request" not in version.tags]
    return min(trained, key=lambda version: version.creation_timestamp, default=None)


def all_versions(store: MlflowClient, name: str) -> list[Any]:
    """Return all versions of a registered model, the oldest first."""
    token, versions = None, []
    while True:
        page = store.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
        versions += page
        token = page.token
        if not token:
            return sorted(versions, key=lambda version: int(version.version))
