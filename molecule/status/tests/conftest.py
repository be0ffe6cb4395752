"""Fixtures of the scenario."""

from __future__ import annotations

import json

import pytest
from testinfra.host import Host


@pytest.fixture(scope="module", autouse=True)
def upgraded(host: Host) -> None:
    """Debian may have published updates since the host was made: not what most tests look for."""
    found = host.run("oempro-mx status --json")
    for finding in json.loads(found.stdout)["findings"]:
        if finding["name"] == "updates" and finding["state"] == "WARN":
            assert finding["remedy"] == "unattended-upgrade"
            host.check_output(finding["remedy"])


@pytest.fixture(autouse=True)
def forgotten_space(host: Host) -> None:
    """Other test hosts fill the same disk, from which the time until it is full would follow."""
    host.check_output("rm -f /run/oempro-mx-space.json")
