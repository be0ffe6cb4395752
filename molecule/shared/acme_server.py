"""Pebble, the test CA of Let's Encrypt, on the gateway of the test hosts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Self

from ca import CA
from probes import eventually, unverified

VALID_DAYS = 15  # so that a renewal is due from the first day


def free_port(address: str) -> int:
    with socket.create_server((address, 0)) as listener:
        return int(listener.getsockname()[1])


class AcmeServer:
    """The server, its DNS server, and the CA of its own HTTPS certificate."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        ca = CA(folder)
        self.ca_file = folder / "root.pem"
        self._certificate = ca.chain("server", f"IP:{address}", by="root")
        ports = [free_port(address) for _ in range(4)]
        self._directory, self._management, self._dns, self._control = (
            f"{address}:{port}" for port in ports
        )
        self.directory_url = f"https://{self._directory}/dir"
        self.dns_control_url = f"http://{self._control}"

    def __enter__(self) -> Self:
        self._run(
            *("pebble-challtestsrv", "-dns01", self._dns, "-management", self._control),
            *("-http01", "", "-https01", "", "-tlsalpn01", ""),
            *("-defaultIPv4", "", "-defaultIPv6", ""),
        )
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def start(self) -> None:
        """Start the server itself; its issuing CA is another one each time."""
        config = self._folder / "pebble.json"
        pebble = {
            "listenAddress": self._directory,
            "managementListenAddress": self._management,
            "certificate": str(self._certificate),
            "privateKey": str(self._folder / "server.key"),
            "httpPort": 80,
            "tlsPort": 443,
            "certificateValidityPeriod": VALID_DAYS * 86400,
        }
        config.write_text(json.dumps({"pebble": pebble}))
        self._run("pebble", "-config", str(config), "-dnsserver", self._dns)
        root = eventually(lambda: self._get(f"https://{self._management}/roots/0"))
        self.root = self._folder / "acme-root.pem"
        self.root.write_text(root)

    def stop(self) -> None:
        """Stop the server itself."""
        process = self._processes.pop()
        process.kill()
        process.wait()

    def resolve(self, name: str, address: str) -> None:
        """Let a name have an address, in the eyes of the server."""
        body = json.dumps({"host": f"{name}.", "addresses": [address]}).encode()
        urllib.request.urlopen(f"{self.dns_control_url}/add-a", body, timeout=10).close()

    def _run(self, *command: str) -> None:
        # It dies with this process, however that ends.
        command = ("setpriv", "--pdeathsig", "KILL", *command)
        environment = {
            **os.environ,
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": "0",
            "PEBBLE_AUTHZREUSE": "0",  # every name is proven anew
        }
        with (self._folder / "acme-server.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            )

    def _get(self, url: str) -> str:
        try:
            with urllib.request.urlopen(url, context=unverified(), timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""
