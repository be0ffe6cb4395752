"""Somebody is told of a change, once, and that the host is alive while nothing fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testinfra.host import Host

from findings import look as look_at
from probes import eventually
from receiver import Receiver

SAID = "/run/said"


@pytest.fixture
def receiver(variables: dict[str, Any]) -> Iterator[Receiver]:
    made = Receiver(variables["testhost_gateway"], "/secret-token")
    yield made
    made.stop()


def seen(host: Host) -> dict[str, str]:
    """Return the status's finding of the alarms."""
    (found,) = look_at(host).of("alarms")
    return found


def set_up(host: Host, url: str, site: Callable[..., Any]) -> None:
    told = {"alarm_url": url, "alarm_command": f"cat >> {SAID}", "alarm_interval_minutes": 1}
    run = site("--tags=status,alarm", "--diff", **told)
    assert "secret-token" not in run.output
    assert site("--tags=status,alarm", **told).changed == set()
    config = host.file("/etc/oempro-mx/alarm.json")
    assert (config.mode, config.user) == (0o600, "root")


def remove(host: Host, site: Callable[..., Any]) -> None:
    site("--tags=status,alarm")
    assert seen(host)["seen"] == "nobody is told: neither alarm_url nor alarm_command is set"
    assert host.run("ls /etc/systemd/system/oempro-mx-alarm.* /etc/oempro-mx/alarm.json").rc != 0
    assert site("--tags=status,alarm").changed == set()
    host.check_output(f"rm {SAID}")


def test_alarms(host: Host, receiver: Receiver, site: Callable[..., Any]) -> None:
    eventually(lambda: host.run("oempro-mx status").rc, lambda code: code == 0)
    set_up(host, receiver.url, site)

    # The timer's own looks, while all is well.
    pings = eventually(lambda: receiver.requests, lambda found: len(found) >= 2, 180)
    assert set(pings) == {("GET", "/secret-token", "")}
    host.check_output("systemctl stop oempro-mx-alarm.timer")

    def look() -> list[tuple[str, str, str]]:
        receiver.requests.clear()
        host.check_output("systemctl start oempro-mx-alarm")
        return receiver.requests

    host.check_output("systemctl stop dovecot")
    assert [each[:2] for each in look()] == [("GET", "/secret-token")]
    receiver.status = 500
    look()
    warned = seen(host)
    assert warned["state"] == "WARN"
    assert "alarm_url cannot be told for " in warned["seen"]
    assert ": it answers 500" in warned["seen"]
    assert "secret-token" not in host.check_output("journalctl --unit=oempro-mx-alarm")
    receiver.status = 200
    receiver.requests.clear()
    host.check_output(warned["remedy"])
    assert seen(host)["state"] == "OK"
    ((method, path, body),) = receiver.requests
    assert (method, path) == ("POST", "/secret-token/fail")
    message = json.loads(body)
    assert (message["host"], message["state"]) == (
        f"{host.backend.get_hostname()}.example.com",
        "FAIL",
    )
    (stopped,) = [each for each in message["changes"] if each["name"] == "services"]
    assert stopped["seen"] == "dovecot.service is inactive (dead)"
    assert look() == []
    assert host.check_output(f"grep -c ': FAIL$' {SAID}") == "1"
    assert f"-> {stopped['remedy']}" in host.check_output(f"cat {SAID}")

    host.check_output(stopped["remedy"])
    eventually(look)
    ((method, path, body),) = receiver.requests
    assert (method, path) == ("POST", "/secret-token")
    assert "services" in {each["name"] for each in json.loads(body)["changes"]}
    assert json.loads(body)["state"] in {"OK", "WARN"}
    eventually(look, lambda found: found == [("GET", "/secret-token", "")])

    told = "/var/lib/oempro-mx/alarm-told.json"
    host.check_output(f'sed -i \'s/"looked": [0-9.]*/"looked": 1/\' {told}')
    blind = seen(host)
    assert blind["state"] == "WARN"
    assert "nothing has looked for " in blind["seen"]
    host.check_output(blind["remedy"])
    assert seen(host)["state"] == "OK"

    (timer,) = [
        each
        for each in look_at(host).findings
        if "oempro-mx-alarm.timer is inactive" in each["seen"]
    ]
    host.check_output(timer["remedy"])
    assert host.run("oempro-mx status").rc == 0

    remove(host, site)
