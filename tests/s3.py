"""A real S3 server on loopback (moto), and an HTTP proxy before it that fails as a network or a store does.

proxy.fault = once_each("500")       every distinct call fails at its first attempt, then at its third, ...
proxy.fault = always("500", method="PUT", suffix="manifest.json")
proxy.before = callback              runs before each call is passed on
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from registry.storage import retries
from registry.storage.s3 import S3Path

_NUMBERS = itertools.count()


@dataclasses.dataclass(frozen=True)
class Call:
    """A request to the store: `key` is path and query, no bucket; `status` and `sent` (bytes) are the response."""

    method: str
    key: str
    headers: dict[str, str]
    body: bytes
    status: int = 0
    sent: int = 0


# The fault of a call: None, "500", "503", "lost" (done, no response), "refused" (not done, no response), "cut" (the
# response ends in the middle of its body), "stall" (the same, but the connection stays open), "slow" (small pieces).
Fault = Callable[[Call], str | None]


def once_each(kind: str) -> Fault:
    """Return a fault: of the calls with the same method and key, every other one fails, beginning with the first."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    lock = threading.Lock()

    def fault(call: Call) -> str | None:
        with lock:
            counts[(call.method, call.key)] += 1
            return kind if counts[(call.method, call.key)] % 2 else None

    return fault


def always(kind: str, *, method: str, suffix: str = "") -> Fault:
    """Return a fault: every call of `method` to a key that ends in `suffix` fails."""
    return lambda call: kind if call.method == method and call.key.partition("?")[0].endswith(suffix) else None


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Ignore errors of the connection: a client was killed, or hung up."""


class Proxy:
    """Passes requests on to `backend` ("host:port"), with faults; `calls` lists all requests passed on."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.reset()
        self.closing = threading.Event()
        self._server = _QuietServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """Forget all calls and faults, and pass requests on unchanged."""
        self.calls: list[Call] = []
        self.faulted: list[tuple[str, Call]] = []
        self.fault: Fault = lambda call: None
        self.before: Callable[[Call], None] = lambda call: None
        self.tampered: Callable[[Call, bytes], bytes] = lambda call, body: body  # changes what is sent to the store
        self.returned: Callable[[Call, bytes], bytes] = lambda call, data: data  # changes what the store returns
        self.answer: Callable[[Call], tuple[int, bytes] | None] = lambda call: None  # replaces the store's response
        self.keeps_conditions = True
        self.keeps_checksums = True  # older S3-compatible stores do not return any

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def made(self, method: str, suffix: str = "") -> list[Call]:
        """Return the calls of `method` whose key ends in `suffix`."""
        return [c for c in self.calls if c.method == method and c.key.partition("?")[0].endswith(suffix)]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                return

            def do_any(self) -> None:
                with contextlib.suppress(ConnectionError):
                    proxy._serve(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_any

        return Handler

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        parts = urlsplit(handler.path)
        key = unquote(parts.path).lstrip("/").partition("/")[2] + (f"?{parts.query}" if parts.query else "")
        call = Call(handler.command, key, {k.lower(): v for k, v in handler.headers.items()}, body)
        kind = self.fault(call)
        if kind:
            self.faulted.append((kind, call))
        if kind == "refused":
            return self._hang_up(handler)
        if kind in ("500", "503"):
            return self._answer(handler, int(kind), [("Content-Type", "text/html")], b"<html>out of order</html>")
        instead = self.answer(call)
        if instead:
            return self._answer(handler, instead[0], [], instead[1])
        self.before(call)
        connection = http.client.HTTPConnection(self.backend, timeout=60)
        try:
            passed = {k: v for k, v in handler.headers.items() if k.lower() not in ("expect", "connection")}
            if not self.keeps_conditions:
                passed = {k: v for k, v in passed.items() if k.lower() not in ("if-match", "if-none-match")}
            connection.request(handler.command, handler.path, body=self.tampered(call, body), headers=passed)
            response = connection.getresponse()
            data = self.returned(call, response.read())
        finally:
            connection.close()
        self.calls.append(dataclasses.replace(call, status=response.status, sent=len(data)))
        if kind == "lost":
            return self._hang_up(handler)
        headers = [(k, v) for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")]
        return self._answer(handler, response.status, headers, data, kind)

    def _answer(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
        kind: str | None = None,
    ) -> None:
        if not self.keeps_checksums:
            headers = [header for header in headers if "checksum" not in header[0].lower()]
        handler.send_response_only(status)
        has_length = any(name.lower() == "content-length" for name, _ in headers)
        for name, value in headers if has_length else [*headers, ("Content-Length", str(len(data)))]:
            handler.send_header(name, value)
        handler.end_headers()
        if kind == "slow":
            for i in range(0, len(data), max(1, len(data) // 50)):
                handler.wfile.write(data[i : i + max(1, len(data) // 50)])
                handler.wfile.flush()
                self.closing.wait(0.001)
        elif kind in ("cut", "stall"):
            handler.wfile.write(data[: len(data) // 2])
            handler.wfile.flush()
            if kind == "stall":
                self.closing.wait(3 * retries.READ_TIMEOUT_S)
            self._hang_up(handler)
        elif handler.command != "HEAD":
            handler.wfile.write(data)

    def _hang_up(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        with contextlib.suppress(OSError):
            handler.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The host:port of an S3 server."""
    server_module = pytest.importorskip("moto.server")
    pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_proxy(s3_server: str) -> Iterator[Proxy]:
    """A proxy to the server."""
    proxy = Proxy(s3_server)
    yield proxy
    proxy.close()


@pytest.fixture
def proxy(s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """The proxy to the store, without faults, set as the endpoint in the environment; retries wait briefly."""
    proxy = s3_proxy
    proxy.reset()
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setattr(retries, "BASE_DELAY_S", 0.002)
    monkeypatch.setattr(retries, "READ_TIMEOUT_S", 5)
    return proxy


@pytest.fixture
def fresh_client() -> Iterator[None]:
    """Drop cached clients before and after the test, for tests that change the settings of clients."""
    retries._client.cache_clear()
    yield
    retries._client.cache_clear()


@pytest.fixture
def bucket(proxy: Proxy) -> S3Path:
    """A new, empty bucket."""
    name = f"bucket-{next(_NUMBERS)}"
    retries.client().create_bucket(Bucket=name)
    proxy.calls.clear()
    return S3Path(name, "")


def put(path: S3Path, data: bytes) -> None:
    """Store an object without conditions, as another program would."""
    retries.client().put_object(Bucket=path.bucket, Key=path.key, Body=data)


def keys(prefix: S3Path) -> list[str]:
    """Return all keys below `prefix`."""
    return [path.key for path, _ in prefix.walk()]
