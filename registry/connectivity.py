"""Connect to a server: a check that it listens or answers, before a client library that would wait is called; Ray.

Ray waits ten minutes and more for a cluster that is not there; one TCP connection shows it within 5 s. Client libraries
try the addresses of a host one after another, each with their whole time limit; here the limit is for all together, and
includes the look-up of the name.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from registry.errors import ServiceError

T = TypeVar("T")

OWN_RAY = "local"
"""The address that means a new Ray on this machine, even where another one runs."""
CONNECT_S = 5.0
"""Seconds a host may take to accept a connection: a packet that is lost twice and sent again takes 3 s."""
ANSWER_S = 10.0
"""Seconds a server that listens may take to answer a first request."""
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and empty SETTINGS


def check_listening(address: str, *, service: str, advice: str, grpc: bool = False) -> None:
    """Return if a server accepts a TCP connection at `address`.

    Args:
        address: `host:port`, with or without a scheme and a path; anything else is not checked.
        service: the name of the server expected there, for the message.
        advice: what to do if there is none, for the message.
        grpc: whether it must also send something, within `ANSWER_S`, to a client that begins to speak gRPC.

    Raises:
        ServiceError: no connection was accepted within `CONNECT_S`, or there was no answer.
    """
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        host = host.rpartition("@")[2].strip("[]")
        within(CONNECT_S, lambda: _connect(host, int(port)))
        if grpc:
            within(ANSWER_S, lambda: _greet(host, int(port)))
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServiceError(f"no {service} at {address}: {error}; {advice}") from error


def check_answers(url: str, path: str, *, service: str, advice: str, seconds: float | None = None) -> None:
    """Return if an HTTP server answers at `url` + `path`, whatever its answer; the environment's proxies are used.

    Args:
        url: http:// or https://; anything else is not checked.
        path: what is asked for, e.g. `/health`.
        service: the name of the server expected there, for the message.
        advice: what to do if there is none, for the message.
        seconds: the limit; by default `ANSWER_S`.

    Raises:
        ServiceError: nothing answered in time.
    """
    if not url.lower().startswith(("http://", "https://")):
        return
    scheme, _, rest = url.partition("://")
    seconds = seconds or ANSWER_S
    # Without the login: a server that asks for one answers, too.
    request = f"{scheme}://{rest.rpartition('@')[2].rstrip('/')}{path}"
    try:
        within(seconds, lambda: urllib.request.urlopen(request, timeout=seconds).close())
    except urllib.error.HTTPError as error:
        error.close()
    except ssl.SSLError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return
        reason = getattr(error, "reason", None) or error
        raise ServiceError(f"no {service} at {url}: {reason}; {advice}") from error


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what `call` returns, or raise what it raises; it runs in a thread, which is abandoned after a while.

    Raises:
        TimeoutError: it took longer than `seconds`.
    """
    ended: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except BaseException as error:
            ended.put((None, error))

    threading.Thread(target=run, name="nulls-connect", daemon=True).start()
    try:
        value, error = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    result: T = value
    return result


def _greet(host: str, port: int) -> None:
    """Send the preface of HTTP/2, which every gRPC server answers at once; a server that hangs up answers, too."""
    with socket.create_connection((host, port), timeout=ANSWER_S) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(_HTTP2_PREFACE)
        connection.recv(1)


def _connect(host: str, port: int) -> None:
    """Connect to the first address of a host that accepts; all are tried at once."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ended: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()

    def run(family: int, kind: int, protocol: int, address: Any) -> None:
        try:
            with socket.socket(family, kind, protocol) as connection:
                connection.settimeout(CONNECT_S)
                connection.connect(address)
            ended.put(None)
        except OSError as error:
            ended.put(error)

    for family, kind, protocol, _, address in addresses:
        threading.Thread(target=run, args=(family, kind, protocol, address), daemon=True).start()
    failure: OSError | None = None
    for _ in addresses:
        failure = ended.get()
        if failure is None:
            return
    raise failure or OSError(f"{host} has no address")


@contextlib.contextmanager
def ray_session(address: str | None, *, num_cpus: int, advice: str) -> Iterator[None]:
    """Connect this process to Ray for the duration of the block; does nothing where it is connected already.

    Args:
        address: of a cluster; by default RAY_ADDRESS, which Ray sets in its jobs, else `OWN_RAY`.
        num_cpus: the cores of a Ray of our own.
        advice: what to do if there is none at the address, for the message.

    Raises:
        ServiceError: there is no Ray at the address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or OWN_RAY
    own: dict[str, Any] = {"num_cpus": num_cpus, "include_dashboard": False} if address == OWN_RAY else {}
    if not own:
        check_listening(address, service="Ray cluster", advice=advice, grpc=True)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ServiceError(f"no Ray cluster at {address}: {error}; {advice}") from error
    try:
        yield
    finally:
        ray.shutdown()
