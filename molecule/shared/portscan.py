"""Prints which TCP ports of an address are open, found by trying all of them."""

from __future__ import annotations

import selectors
import socket
import sys

AT_ONCE = 500
SECONDS = 5.0  # without any answer: the rest is silent


def open_ports(address: str, source: str = "") -> list[int]:
    """Return the ports that accept a connection, from ``source`` if it is given."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    selector = selectors.DefaultSelector()
    ports = iter(range(1, 65536))
    found: list[int] = []
    waiting = 0
    while True:
        while waiting < AT_ONCE and (port := next(ports, None)):
            connection = socket.socket(family)
            connection.setblocking(False)
            if source:
                connection.bind((source, 0))
            connection.connect_ex((address, port))
            selector.register(connection, selectors.EVENT_WRITE, port)
            waiting += 1
        events = selector.select(SECONDS)
        if not events:
            return sorted(found)
        for key, _ in events:
            connection = key.fileobj  # type: ignore[assignment]
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(key.data)
            selector.unregister(connection)
            connection.close()
            waiting -= 1


if __name__ == "__main__":
    print(*open_ports(*sys.argv[1:]))
