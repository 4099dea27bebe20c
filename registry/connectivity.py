"""Connect to a server: a check that it listens, before a client library that would wait for it is called; Ray.

Ray waits ten minutes and more for a cluster that is not there; one TCP connection shows it within 5 s.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from registry.errors import ServiceError

OWN_RAY = "local"
"""The address that means a new Ray on this machine, even where another one runs."""
CONNECT_S = 5.0
"""Seconds a host may take to accept a connection: a packet that is lost twice and sent again takes 3 s."""


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
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServiceError(f"no {service} at {address}: {error}; {advice}") from error


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
