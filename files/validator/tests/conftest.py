from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from platform_stub import PlatformStub, StubClient

from support import PATIENCE, eventually, free_port

SOURCE = Path(__file__).parent.parent / "src"
API_KEY = "Zm9vYmFy-the-key-0123456789"
# No deadline, since the machine may be busy; no files in the working directory; and the same
# examples in every run, so that a failure can be reproduced.
settings.register_profile(
    "here",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
    derandomize=True,
)
settings.load_profile("here")


class FakeClock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def _logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG, "mx_validator"):
        yield


@dataclass
class Stub:
    """A running stub of the platform, and the client that sets its answers."""

    url: str
    client: StubClient


@pytest.fixture
def stub() -> Iterator[Stub]:
    server = PlatformStub(API_KEY)
    server.start()
    yield Stub(server.url, StubClient(server.control_url))
    server.state.reset()
    server.stop()


def request_for(recipient: str) -> bytes:
    """A request as Postfix 3.7 sends it, shortened."""
    return (
        "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\n"
        "client_address=192.0.2.1\nclient_name=unknown\nhelo_name=mail.example.org\nsender=\n"
        f"recipient={recipient}\nrecipient_count=0\nqueue_id=\ninstance=1a2b.5f3c.0\nsize=0\n"
        "policy_context=\n\n"
    ).encode("utf-8", "surrogateescape")


OK = b"action=OK\n\n"
DUNNO = b"action=DUNNO\n\n"
OTHER_TRANSACTION = (
    b"action=452 4.5.3 This may differ from an earlier recipient in case only, send to it in a"
    b" transaction of its own\n\n"
)
RETRY = b"action=451 4.4.3 This domain cannot be checked right now, please try again later\n\n"


@dataclass
class DaemonProcess:
    """The daemon as a process of its own, in a directory of its own."""

    directory: Path
    url: str
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.socket = self.directory / "policy"
        self.config = self.directory / "mx-validator.conf"
        self.key = self.directory / "key"
        self.log_file = self.directory / "log"
        self.store = self.directory / "known-good.sqlite"
        self.metrics_port = free_port()
        self.key.write_text(f"{API_KEY}\n")
        self.configure()

    def configure(self, level: str = "debug", **changes: object) -> None:
        values: dict[str, dict[str, object]] = {
            "platform": {
                "oempro_url": self.url,
                "oempro_admin_api_key_file": self.key,
                "api_rate_per_second": 100,
                "api_burst": 1000,
            },
            "cache": {
                "allow_ttl_seconds": 300,
                "deny_ttl_seconds": 60,
                "deny_grace_seconds": 900,
            },
            "known_good": {"file": self.store, "days": 7},
            "server": {"socket": self.socket},
            "metrics": {"address": "127.0.0.1", "port": self.metrics_port},
            "log": {"level": level},
        }
        for name, value in changes.items():
            (section,) = [keys for keys in values.values() if name in keys]
            section[name] = value
        self.config.write_text(
            "".join(
                f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items())
                for section, keys in values.items()
            )
        )

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def start(self) -> None:
        seen = self.log.count("listening on")
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(self.command("serve"), stderr=log, env=self.environ)
        eventually(lambda: self.log.count("listening on") > seen)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "mx_validator", *arguments, "--config", str(self.config)]

    @property
    def environ(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(SOURCE), **self.environment}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
            env=self.environ,
        )

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(str(self.socket))
        except OSError:
            connection.close()
            raise
        return connection

    def ask(self, recipient: str) -> bytes:
        with self.connect() as connection:
            connection.sendall(request_for(recipient))
            return read_reply(connection)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.wait() == 0


def read_reply(connection: socket.socket) -> bytes:
    """Return one reply, or what was sent before the connection was closed."""
    reply = b""
    while not reply.endswith(b"\n\n") and (data := connection.recv(4096)):
        reply += data
    return reply


@pytest.fixture
def daemon(tmp_path: Path, stub: Stub) -> Iterator[DaemonProcess]:
    daemon = DaemonProcess(tmp_path, stub.url)
    yield daemon
    daemon.stop()
    assert API_KEY not in daemon.log
