"""The door to MLflow: which store a call means, and how soon a store that fails is given up."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from registry.errors import ServiceError
from training.tracking import store


@pytest.fixture
def failing_store() -> Iterator[tuple[str, list[str]]]:
    """A tracking server that answers every request with 503: its URI, and the paths of the requests."""
    requests: list[str] = []

    class Unavailable(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unavailable)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_store_that_fails_is_given_up_after_two_retries(
    failing_store: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow retries seven times by default, which takes minutes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    uri, requests = failing_store
    with pytest.raises(ServiceError, match=f"MLflow at {uri}: .*check MLFLOW_TRACKING_URI"):
        store.client(uri)
    assert len([path for path in requests if path != "/health"]) == 3
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("configured", [None, "sqlite:////elsewhere/mlflow.db"])
def test_a_store_that_is_named_once_is_not_the_default_of_later_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if configured:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", configured)
    default, named = store.tracking_uri(), f"sqlite:///{tmp_path}/named.db"
    store.client(named)
    assert mlflow.get_tracking_uri() == named
    assert store.tracking_uri() == default == (configured or f"sqlite:///{tmp_path}/mlflow.db")
