"""Servers that are not there: refused and silent ones are given up in time, whatever the client library would do."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from registry import connectivity
from registry.catalog.database import Catalog
from registry.connectivity import check_answers, check_listening, within
from registry.errors import ServiceError


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that accepts connections and never sends anything; the wait for answers is short."""
    monkeypatch.setattr(connectivity, "ANSWER_S", 0.3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield listener.getsockname()[1]


@pytest.fixture
def answering() -> Iterator[int]:
    """The port of a server that answers everything with an error, and hangs up on what is not HTTP."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def _mlflow(port: int) -> None:
    from training.tracking import store

    store.client(f"http://bob:S3CRETpw@127.0.0.1:{port}")


def _catalog(port: int) -> None:
    Catalog(f"postgresql+psycopg://127.0.0.1:{port}/db?user=bob&password=S3CRETpw")


def _dashboard(port: int) -> None:
    from orchestration.jobs.address import find_job_server

    find_job_server(f"http://bob:S3CRETpw@127.0.0.1:{port}")


def _ray(port: int) -> None:
    check_listening(f"127.0.0.1:{port}", service="Ray cluster", advice="check --ray-address", grpc=True)


CHECKS = {
    "MLFLOW_TRACKING_URI": _mlflow,
    "NULLS_CATALOG": _catalog,
    "--ray-address and": _dashboard,
    "--ray-address": _ray,
}


@pytest.mark.parametrize("setting", CHECKS)
def test_a_port_where_nothing_listens(setting: str) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ServiceError, match=f"refused.*check {setting}") as caught:
        CHECKS[setting](1)
    assert "S3CRETpw" not in str(caught.value)


@pytest.mark.parametrize("setting", CHECKS)
def test_a_server_that_never_answers(silent: int, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr("registry.catalog.database._CONNECT_TIMEOUT_S", 1)
    with pytest.raises(ServiceError, match=f"(no answer within|timed out).*check {setting}") as caught:
        CHECKS[setting](silent)
    assert "S3CRETpw" not in str(caught.value)


def test_a_server_that_answers_with_an_error_is_there(answering: int) -> None:
    check_answers(f"http://bob:pw@127.0.0.1:{answering}", "/health", service="server", advice="")
    check_listening(f"127.0.0.1:{answering}", service="server", advice="", grpc=True)
    check_listening(f"localhost:{answering}", service="server", advice="")  # of its two addresses, one refuses


def test_other_uris_are_not_checked() -> None:
    check_answers("sqlite:///mlflow.db", "/health", service="server", advice="")
    check_listening("auto", service="server", advice="")


@pytest.mark.parametrize("address", ["host.invalid:80", "127.0.0.1:99999", "127.0.0.1:1"])
def test_an_address_that_cannot_be_reached(address: str) -> None:
    with pytest.raises(ServiceError, match=f"no server at {address}: .*; look"):
        check_listening(address, service="server", advice="look")


def test_within_returns_raises_and_gives_up() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError, match="x"):
        within(5, lambda: {}["x"])
    never: Callable[[], bool] = threading.Event().wait
    with pytest.raises(TimeoutError, match="no answer within"):
        within(0.05, never)
