"""Finds out in seconds what client libraries find out in minutes: that nobody listens at an address.

Ray waits ten minutes and more for a cluster that is not there. One TCP connection tells it within 5 s.
"""

from __future__ import annotations

import socket

from registry.errors import ServiceError

CONNECT_S = 5.0
"""How long a host may take to accept a connection: a packet lost twice and sent again takes 3 s."""


def check_listening(address: str, *, service: str, advice: str) -> None:
    """Returns if somebody listens at `address`.

    Args:
        address: `host:port`, with a scheme and a path or without; anything else is not checked.
        service: what should listen there, for the message.
        advice: what to do if nothing does.

    Raises:
        ServiceError: nobody does, within `CONNECT_S`.
    """
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ServiceError(f"no {service} at {address}: {error}; {advice}") from error
