"""Addresses outside the hosts, for those whom the inventory does not name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

FIRST = 200  # the test hosts' own addresses are lower
EACH = 6


@pytest.fixture
def outsiders(variables: dict[str, Any]) -> Iterator[list[str]]:
    """Addresses of this machine besides the one that the tests come from; the last is IPv6."""
    if "MX_INVENTORY" in os.environ:
        pytest.skip("needs the test hosts' network")
    # The two hosts are tested side by side.
    first = FIRST + EACH * (int(ip_address(variables["ansible_host"])) % 2)
    ipv4, ipv6 = (
        ip_address(variables[name]) - 1 for name in ("testhost_gateway", "testhost_gateway6")
    )
    found = [*(str(ipv4 + first + n) for n in range(EACH)), str(ipv6 + first)]
    for address in found:
        subprocess.run(["ip", "address", "replace", address, "dev", "lo"], check=True)
    yield found
    for address in found:
        subprocess.run(["ip", "address", "delete", address, "dev", "lo"], check=True)
