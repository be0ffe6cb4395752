"""Fixtures of the scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

from findings import Status, look
from probes import eventually


@pytest.fixture(scope="module", autouse=True)
def upgraded(host: Host) -> None:
    """Debian may have published updates since the host was made: not what most tests look for."""
    for finding in look(host).of("updates"):
        if finding["state"] == "WARN":
            assert finding["remedy"] == "unattended-upgrade"
            host.check_output(finding["remedy"])


@pytest.fixture
def status(host: Host) -> Callable[[], Status]:
    return lambda: look(host)


@pytest.fixture
def well(status: Callable[[], Status]) -> Iterator[None]:
    """All is well before the test, and again after it."""
    eventually(status, lambda seen: not seen.bad())
    yield
    eventually(status, lambda seen: not seen.bad())
