"""Fixtures of all scenarios: the MX under test, the platform's stub, the playbook."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from platform_stub import StubClient
from playbooks import ansible_playbook
from probes import Mx, eventually

PROJECT = Path(__file__).resolve().parents[1]
INVENTORY = PROJECT / os.environ.get("MX_INVENTORY", "molecule/inventory")
TESTHOST = PROJECT / "molecule" / "shared" / "testhost.py"
# What systemd and logins write whenever they like.
BY_ITSELF = "-not -path '/var/lib/systemd/*' -not -path '/var/log/journal/*' -not -name 'wtmp*'"
LOGS = ("/var/log/postfix.log", "/var/log/dovecot.log", "/var/log/mx-validator/mx-validator.log")


def tested_host(item: pytest.Item) -> str | None:
    """Return the name of the host that a test is for."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    backend = getattr(params.get("_testinfra_host"), "backend", None)
    return str(backend.get_hostname()) if backend else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fail a run that would be green because it had no host to test; share the hosts out.

    Each of pytest-xdist's workers (--dist=each) tests hosts of its own: the hosts are tested side
    by side, the tests of one host one after the other.
    """
    tested = sorted({host for item in items if (host := tested_host(item))})
    named = re.fullmatch(r"ansible://([^?]+).*", config.getoption("hosts") or "")
    expected = [named[1]] if named and named[1] != "mx" else ["mx-bookworm", "mx-trixie"]
    if not tested or ("MX_INVENTORY" not in os.environ and tested != expected):
        raise pytest.UsageError(f"the tests would run on {tested}, not on {expected}")
    if "PYTEST_XDIST_WORKER" in os.environ:
        number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        mine = tested[number :: int(os.environ["PYTEST_XDIST_WORKER_COUNT"])]
        items[:] = [item for item in items if tested_host(item) in (*mine, None)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the host's logs to the report of a failed test."""
    report = yield
    if report.failed and isinstance(item, pytest.Function) and "host" in item.funcargs:
        host: Any = item.funcargs["host"]
        for log in LOGS:
            with contextlib.suppress(RuntimeError):  # the host may be what failed
                tail = host.run("tail -n 40 %s", log)
                report.sections.append((f"{host.backend.get_hostname()}:{log}", tail.stdout))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have measured; a worker's own output is not seen."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{report.nodeid.partition('[')[2][:-1]}: {name}: {value}")


def drain(host: Host) -> None:
    """Wait until nothing is in the queue."""
    eventually(
        lambda: host.check_output("postqueue -j && postqueue -f"), lambda queue: not queue, 120
    )


@pytest.fixture
def variables(host: Host) -> dict[str, Any]:
    """The host's inventory variables."""
    found: dict[str, Any] = host.ansible.get_variables()
    return found


@pytest.fixture
def mx(variables: dict[str, Any]) -> Mx:
    """The MX as senders and the platform see it."""
    return Mx(
        address=variables["ansible_host"],
        hostname=variables["mx_hostname"],
        username=variables.get("catchall_username", "catchall"),
        password=variables["catchall_password"],
    )


@pytest.fixture
def mailbox(host: Host, mx: Mx) -> Mx:
    """The MX with an empty queue, from which an earlier test's mail could come, and mailbox."""
    drain(host)
    mx.empty()
    return mx


@pytest.fixture
def platform(variables: dict[str, Any]) -> Iterator[StubClient]:
    """The platform's stub, which denies every domain until it is told otherwise."""
    control = f"http://{variables['testhost_gateway']}:{variables['testhost_stub_port'] + 1}"
    stub = StubClient(control)
    stub.reset()
    yield stub
    stub.reset()


@pytest.fixture
def domain(request: pytest.FixtureRequest, host: Host) -> str:
    """A domain of this test's own, of which nothing is remembered."""
    name = request.node.name.partition("[")[0].replace("_", "-")[5:45].strip("-")
    unique = hashlib.sha256(f"{request.node.name} {os.getpid()}".encode()).hexdigest()[:12]
    return f"{name}.{unique}.{host.backend.get_hostname()}.example"


@pytest.fixture
def smtp_attempts(host: Host) -> Any:
    """Return a call that says how many connections to SMTP ports outside the host has tried."""
    name = host.backend.get_hostname()
    return lambda: int(subprocess.check_output([TESTHOST, "smtp-attempts", name]))


@dataclass(frozen=True)
class Run:
    """One run of the playbook against one host."""

    status: int
    output: str
    recap: dict[str, int]

    @property
    def said(self) -> str:
        """The output in one line, since Ansible breaks long messages anywhere."""
        return " ".join(self.output.split())

    @property
    def changed(self) -> set[str]:
        """Names of the tasks and handlers that changed something."""
        found = set()
        for task in re.split(r"(?m)^(?=(?:TASK|RUNNING HANDLER|PLAY) )", self.output):
            if re.search(r"(?m)^changed: ", task):
                found.add(task.split("[", 1)[1].split("]", 1)[0])
        return found


@pytest.fixture
def site(host: Host) -> Any:
    """Run the playbook against the host, as an operator does."""

    def run(
        *arguments: str,
        check: bool = True,
        inventory: Path = INVENTORY,
        project: Path = PROJECT,
        playbook: str = "site.yml",
        **extra: object,
    ) -> Run:
        name = host.backend.get_hostname()
        done = ansible_playbook(
            project,
            *(f"--inventory={inventory}", f"--limit={name}", playbook),
            *(f"--extra-vars={json.dumps(extra)}", *arguments),
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
                "ANSIBLE_FORCE_COLOR": "0",
            },
        )
        line = re.search(rf"(?m)^{name}\s+: (.*)$", done.stdout)
        recap = dict(re.findall(r"(\w+)=(\d+)", line[1])) if line else {}
        result = Run(
            done.returncode, done.stdout, {key: int(value) for key, value in recap.items()}
        )
        assert not check or result.status == 0, result.output
        return result

    return run


@pytest.fixture
def untouched(host: Host) -> Iterator[None]:
    """Assert after the test that the host is as it was."""

    def state() -> set[str]:
        """Packages, files, and what is in those of /etc."""
        return {
            *host.check_output("dpkg-query -W").splitlines(),
            *host.check_output(f"find /etc /opt /usr /var -xdev {BY_ITSELF}").splitlines(),
            *host.check_output("find /etc -xdev -type f -exec sha256sum {} +").splitlines(),
        }

    before = state()
    yield
    assert state() == before
