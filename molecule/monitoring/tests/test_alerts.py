"""What is broken on a host arrives as an alert, and is over when it is mended."""

from __future__ import annotations

import dataclasses
import imaplib
import json
import re
import shlex
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

from ca import self_signed
from faults import APT, MESSAGE
from platform_stub import StubClient
from probes import Mx, eventually

PROJECT = Path(__file__).resolve().parents[3]
ALERT_SECONDS = 120  # the exporters write once a minute
QUIET_SECONDS = 150
WRONG_LOGINS = 120
LOG = "/run/webhook.log"
# Of Postfix's long queue IDs.
DIGITS = "0123456789BCDFGHJKLMNPQRSTVWXYZbcdfghjklmnpqrstvwxyz"


@pytest.fixture
def watcher(host: Host) -> Host:
    """The host with Prometheus."""
    inventory = PROJECT / "molecule/inventory"
    found: Host = testinfra.get_host("ansible://watcher", ansible_inventory=str(inventory))
    if found.run("test -e /etc/prometheus/rules.yml").rc != 0:
        pytest.skip("there is no Prometheus: make monitoring has one")
    assert host
    return found


def prometheus(watcher: Host, call: str) -> dict[str, Any]:
    """Return the data of a call of Prometheus's API."""
    url = f"http://127.0.0.1:9090/api/v1/{call}"
    code = f"import urllib.request as r; print(r.urlopen({url!r}).read().decode())"
    data: dict[str, Any] = json.loads(watcher.check_output("python3 -c %s", code))["data"]
    return data


def query(watcher: Host, expression: str) -> list[dict[str, Any]]:
    """Evaluate an expression now."""
    encoded = urllib.parse.quote(expression)
    result: list[dict[str, Any]] = prometheus(watcher, f"query?query={encoded}")["result"]
    return result


@pytest.fixture
def told(host: Host, watcher: Host) -> Callable[[str, str], None]:
    """Return a call that waits until an alert of this host is firing, or is resolved."""
    name = host.backend.get_hostname()

    def last(alert: str) -> str:
        lines = watcher.run(f"grep ' {alert} {name}$' {LOG}").stdout.splitlines()
        return str(lines[-1].split()[0]) if lines else "never"

    def wait(alert: str, status: str) -> None:
        host.run("systemctl start oempro-mx-metrics")  # rather than wait for the timer
        eventually(lambda: last(alert), lambda seen: seen == status, ALERT_SECONDS)

    return wait


@pytest.fixture
def quiet(host: Host, watcher: Host) -> Iterator[None]:
    """No alert of this host is firing before the test, nor after it."""
    name = host.backend.get_hostname()

    def firing() -> list[str]:
        alerts = prometheus(watcher, "alerts")["alerts"]
        return [a["labels"]["alertname"] for a in alerts if a["labels"].get("host") == name]

    eventually(firing, lambda seen: not seen, ALERT_SECONDS)
    yield
    eventually(firing, lambda seen: not seen, 2 * ALERT_SECONDS)


def test_rules_by_promtool(watcher: Host) -> None:
    done = watcher.run("cd /etc/prometheus/tested && promtool test rules rules_test.yml")
    assert done.rc == 0, done.stdout + done.stderr
    assert watcher.run("promtool check rules /etc/prometheus/tested/rules.yml").rc == 0


def test_every_expression_of_the_dashboard_gives_data(
    watcher: Host, mailbox: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    assert mailbox.send(f"a@{domain}", MESSAGE).code == 250
    mailbox.fetch_when(1)
    mailbox.empty()
    dashboard = json.loads((PROJECT / "files/monitoring/dashboard.json").read_text())
    expressions = re.findall(r'"expr": "((?:[^"\\]|\\.)*)"', json.dumps(dashboard))
    assert len(expressions) > 10
    variables = {"$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h"}

    def empty() -> list[str]:
        missing = []
        for found in expressions:
            expression = json.loads(f'"{found}"')
            for name, value in variables.items():
                expression = expression.replace(name, value)
            expression = re.sub(r"\$\{?\w+(:\w+)?\}?", ".*", expression)
            if not query(watcher, expression):
                missing.append(expression)
        return missing

    # A host in a container has no clock of its own.
    clock = 'node_timex_sync_status{host=~".*"}'
    eventually(empty, lambda seen: set(seen) <= {clock}, ALERT_SECONDS)


@pytest.mark.usefixtures("quiet")
def test_normal_load(
    host: Host, watcher: Host, mailbox: Mx, platform: StubClient, domain: str
) -> None:
    """Mail comes all the time, and the platform fetches: nothing alarms."""
    platform.answer(domain, "allow")
    deadline = time.monotonic() + QUIET_SECONDS
    fetched = 0
    while time.monotonic() < deadline:
        for number in range(20):
            assert mailbox.send(f"bounce+{number}@{domain}", MESSAGE).code == 250
        fetched += len(mailbox.fetch_when(20))
        mailbox.empty()
    name = host.backend.get_hostname()
    fired = f'count_over_time(ALERTS{{host="{name}", alertstate="firing"}}[{QUIET_SECONDS}s])'
    rate = f'rate(oempro_mx_messages_accepted_total{{host="{name}"}}[{QUIET_SECONDS}s])'
    assert fetched > 20
    assert float(query(watcher, rate)[0]["value"][1]) > 0
    assert query(watcher, fired) == []


@pytest.mark.usefixtures("quiet")
def test_disk_that_fills(host: Host, told: Callable[[str, str], None]) -> None:
    host.check_output("mount -o remount,size=4G /var/spool/postfix")
    told("MxDiskShort", "firing")
    host.check_output("mount -o remount,size=16G /var/spool/postfix")
    told("MxDiskShort", "resolved")


@pytest.mark.usefixtures("quiet")
def test_validator_that_is_dead(host: Host, told: Callable[[str, str], None]) -> None:
    host.check_output("supervisorctl stop mx-validator")
    told("MxTargetGone", "firing")
    host.check_output("supervisorctl start mx-validator")
    told("MxTargetGone", "resolved")


@pytest.mark.usefixtures("quiet")
def test_key_that_is_refused(
    host: Host, platform: StubClient, told: Callable[[str, str], None]
) -> None:
    right = platform.api_key
    platform.api_key = "another"
    host.run("mx-validator check key.refused.example")
    told("MxKeyRefused", "firing")
    platform.api_key = right
    host.run("mx-validator check key.accepted.example")
    told("MxKeyRefused", "resolved")


@pytest.mark.usefixtures("quiet")
def test_dovecot_that_takes_no_mail(
    host: Host,
    mailbox: Mx,
    platform: StubClient,
    domain: str,
    told: Callable[[str, str], None],
) -> None:
    platform.answer(domain, "allow")
    host.check_output("systemctl stop dovecot")
    assert mailbox.send(f"a@{domain}", MESSAGE).code == 250
    eventually(lambda: "status=deferred" in host.check_output("tail /var/log/postfix.log"))
    told("MxTargetGone", "firing")
    told("MxDeliveriesFail", "firing")
    told("MxAcceptedNotDelivered", "firing")
    let_it_have_arrived_earlier(host, seconds=1000)
    told("MxQueueOld", "firing")
    host.check_output("postsuper -h ALL")
    told("MxMessagesHeld", "firing")
    host.check_output("systemctl start dovecot && postsuper -H ALL && postqueue -f")
    mailbox.fetch_when(1)
    for alert in ("TargetGone", "MessagesHeld", "QueueOld", "AcceptedNotDelivered"):
        told(f"Mx{alert}", "resolved")
    mailbox.empty()


def let_it_have_arrived_earlier(host: Host, seconds: int) -> None:
    """Rename the deferred message: its queue ID says when it arrived."""
    deferred = "/var/spool/postfix/deferred"
    (queue_id,) = host.check_output(f"find {deferred} -type f -printf '%f\\n'").split()
    found = re.fullmatch(r"(.+)(.{4}z[^z]+)", queue_id)
    assert found
    arrival = 0
    for digit in found[1]:
        arrival = arrival * len(DIGITS) + DIGITS.index(digit)
    arrival -= seconds
    earlier = ""
    while arrival:
        arrival, digit_of = divmod(arrival, len(DIGITS))
        earlier = DIGITS[digit_of] + earlier
    host.check_output(f"find {deferred} -name {queue_id} -execdir mv {{}} {earlier}{found[2]} ';'")


@pytest.mark.usefixtures("quiet")
def test_platform_with_a_wrong_password(
    host: Host,
    mailbox: Mx,
    platform: StubClient,
    domain: str,
    told: Callable[[str, str], None],
) -> None:
    """It fetches no more, and a message has been there for two hours."""
    platform.answer(domain, "allow")
    host.check_output(f"{APT} install faketime")
    # Dovecot 2.3 takes the file's time until it has been asked when a message was saved.
    assert mailbox.send(f"a@{domain}", MESSAGE).code == 250
    mailbox.fetch_when(1)
    host.check_output("systemctl start oempro-mx-metrics")
    mailbox.empty()
    saved = "faketime --exclude-monotonic '2 hours ago' doveadm save -u"
    host.check_output(f"printf 'Subject: old\\n\\nOld.\\n' | {saved} {mailbox.username}")
    assert mailbox.send(f"a@{domain}", MESSAGE).code == 250
    mailbox.fetch_when(2)

    guess = dataclasses.replace(mailbox, password="wrong")

    def wrong(_: int) -> None:
        with pytest.raises(imaplib.IMAP4.error), guess.imap():
            pass

    with ThreadPoolExecutor(20) as logins:
        list(logins.map(wrong, range(WRONG_LOGINS)))
    for alert in ("LoginsFail", "MailboxNotEmptied", "MailboxOld"):
        told(f"Mx{alert}", "firing")
    mailbox.empty()
    for alert in ("LoginsFail", "MailboxNotEmptied", "MailboxOld"):
        told(f"Mx{alert}", "resolved")


@pytest.mark.usefixtures("quiet")
def test_metrics_that_are_not_written(host: Host, told: Callable[[str, str], None]) -> None:
    command, file = "/usr/local/bin/oempro-mx", "/var/lib/prometheus/node-exporter/oempro-mx.prom"
    host.check_output(f"mv {command} {command}.away && systemctl stop oempro-mx-metrics")
    host.check_output(f"touch --date '10 minutes ago' {file}")
    told("MxMetricsStale", "firing")
    host.check_output(f"mv {command}.away {command}")
    told("MxMetricsStale", "resolved")


@pytest.mark.usefixtures("quiet")
def test_certificate_near_its_end(host: Host, told: Callable[[str, str], None]) -> None:
    """The file alone: a renewal that failed leaves the old one there."""
    file = "/etc/oempro-mx/tls/mx.pem"
    host.check_output(f"cp -p {file} /run/mx.pem")
    aged = self_signed("aged.example.com", days_ago=80, days_left=10)
    host.check_output(f"printf %s {shlex.quote(aged)} > {file}")
    told("MxCertificateEnds", "firing")
    host.check_output(f"cp -p /run/mx.pem {file}")
    told("MxCertificateEnds", "resolved")
