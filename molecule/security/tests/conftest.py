"""Those whom the inventory does not name: further addresses of this machine, and a third host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from testhost import Network, this_lab

FIRST = 200  # the test hosts' own addresses are lower
EACH = 6
THIRD = 220  # the same for the third host


@pytest.fixture
def side(variables: dict[str, Any]) -> int:
    """0 or 1: the two hosts are tested side by side, each by outsiders of its own."""
    if "MX_INVENTORY" in os.environ:
        pytest.skip("needs the test hosts' network")
    return int(ip_address(variables["ansible_host"])) % 2


@pytest.fixture
def outsiders(variables: dict[str, Any], side: int) -> Iterator[list[str]]:
    """Addresses of this machine besides the one that the tests come from; the last is IPv6."""
    first = FIRST + EACH * side
    ipv4, ipv6 = (
        ip_address(variables[name]) - 1 for name in ("testhost_gateway", "testhost_gateway6")
    )
    found = [*(str(ipv4 + first + n) for n in range(EACH)), str(ipv6 + first)]
    for address in found:
        subprocess.run(["ip", "address", "replace", address, "dev", "lo"], check=True)
    yield found
    for address in found:
        length = 128 if ":" in address else 32
        subprocess.run(["ip", "address", "delete", f"{address}/{length}", "dev", "lo"], check=True)


@pytest.fixture
def third_host(side: int) -> Iterator[Network]:
    """A host besides those under test; there is nothing on it but a network."""
    lab = this_lab()
    network = Network(lab, f"mx{lab.number}-third-{side}", THIRD + side)
    network.make()
    yield network
    network.remove()
