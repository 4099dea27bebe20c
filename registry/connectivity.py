"""A check that a server listens at an address, before a client library that would wait for it is called.

Ray waits ten minutes and more for a cluster that is not there; one TCP connection shows it within 5 s.
"""

from __future__ import annotations

import socket

from registry.errors import ServiceError

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
