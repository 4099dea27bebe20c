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


def check_listening(address: str, *, service: str, advice: str) -> None:
    """Return if a server accepts a TCP connection at `address`.

    Args:
        address: `host:port`, with or without a scheme and a path; anything else is not checked.
        service: the name of the server expected there, for the message.
        advice: what to do if there is none, for the message.

    Raises:
        ServiceError: no connection was accepted within `CONNECT_S`.
    """
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        within(CONNECT_S, lambda: _connect(host.rpartition("@")[2].strip("[]"), int(port)))
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServiceError(f"no {service} at {address}: {error}; {advice}") from error


def check_answers(url: str, *, service: str, advice: str) -> None:
    """Return if an HTTP server answers at `url`, whatever its answer; the proxies of the environment are used.

    Args:
        url: http:// or https://; anything else is not checked.
        service: the name of the server expected there, for the message.
        advice: what to do if there is none, for the message.

    Raises:
        ServiceError: nothing answered within `ANSWER_S`.
    """
    if not url.lower().startswith(("http://", "https://")):
        return
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    request = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"  # whoever asks for a login answers, too
    try:
        within(ANSWER_S, lambda: urllib.request.urlopen(request, timeout=ANSWER_S).close())
    except (urllib.error.HTTPError, ssl.SSLError):
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", None), ssl.SSLError):
            return
        raise ServiceError(f"no {service} at {url}: {error}; {advice}") from error


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
        check_listening(address, service="Ray cluster", advice=advice)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ServiceError(f"no Ray cluster at {address}: {error}; {advice}") from error
    try:
        yield
    finally:
        ray.shutdown()
