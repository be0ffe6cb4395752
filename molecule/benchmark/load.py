"""Mail servers that send as fast as the MX takes it, with little work of their own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

from probes import unverified

CONNECTIONS = 20
TIMEOUT_SECONDS = 60
HEADER = b"From: MAILER-DAEMON@isp.example\r\nSubject: Undelivered Mail\r\n\r\n"
LINE = b"The quick brown fox jumps over the lazy dog, and so on, to 78 characters: ...\r\n"
MESSAGE = HEADER + LINE * ((4096 - len(HEADER)) // len(LINE))  # 4 kB


class RefusedError(Exception):
    """The MX said something else than a benchmark wants to hear."""


class Session:
    """One connection for one message, as bounces come in."""

    def __init__(self, address: tuple[str, int], tls: bool) -> None:
        self._socket = socket.create_connection(address, TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")
        self._expect(220)
        self._say(b"EHLO mail.isp.example\r\n", 250)
        if tls:
            self._say(b"STARTTLS\r\n", 220)
            self._socket = unverified().wrap_socket(self._socket)
            self._file = self._socket.makefile("rb")
            self._say(b"EHLO mail.isp.example\r\n", 250)

    def _expect(self, *codes: int) -> None:
        for code in codes:
            while (line := self._file.readline())[3:4] == b"-":
                pass
            if line[:3] != str(code).encode():
                raise RefusedError(f"{code} was expected, and this came: {line.decode()!r}")

    def _say(self, data: bytes, *codes: int) -> None:
        self._socket.sendall(data)
        self._expect(*codes)

    def send(self, recipient: str) -> None:
        envelope = f"MAIL FROM:<>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n"
        self._say(envelope.encode(), 250, 250, 354)
        self._say(MESSAGE + b".\r\n", 250)
        self._say(b"QUIT\r\n", 221)
        self._file.close()
        self._socket.close()


def send_all(address: tuple[str, int], recipients: Iterator[str], tls: bool) -> float:
    """Send a message to each recipient; return the seconds until the last was accepted.

    Raises:
        RefusedError: the MX did not accept one.
    """
    lock = threading.Lock()
    failures: list[Exception] = []

    def work() -> None:
        try:
            while not failures:
                with lock:
                    recipient = next(recipients, None)
                if recipient is None:
                    return
                Session(address, tls).send(recipient)
        except Exception as error:  # noqa: BLE001 - handed on below
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(CONNECTIONS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - began
