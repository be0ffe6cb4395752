"""What is broken on a host arrives as an alert, and is over when it is mended."""

from __future__ import annotations

import datetime
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from testinfra.host import Host

from faults import MESSAGE
from platform_stub import StubClient
from probes import Mx, eventually

PROJECT = Path(__file__).resolve().parents[3]
ALERT_SECONDS = 120  # the exporters write once a minute
LOG = "/run/webhook.log"


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


@pytest.fixture
def told(host: Host, watcher: Host) -> Callable[[str, str], None]:
    """Return a call that waits until an alert of this host is firing, or is resolved."""
    name = host.backend.get_hostname()

    def last(alert: str) -> str:
        lines = watcher.run(f"grep ' {alert} {name}$' {LOG}").stdout.splitlines()
        return str(lines[-1].split()[0]) if lines else "never"

    def wait(alert: str, status: str) -> None:
        eventually(lambda: last(alert), lambda seen: seen == status, ALERT_SECONDS)

    return wait


@pytest.fixture
def quiet(host: Host, watcher: Host) -> Iterator[None]:
    """No alert of this host is firing before the test, nor after it."""
    name = host.backend.get_hostname()

    def firing() -> list[str]:
        alerts = prometheus(watcher, "alerts")["alerts"]
        found = [a["labels"]["alertname"] for a in alerts if a["labels"].get("host") == name]
        return [each for each in found if each != "MxDeliveriesFail"]  # true for ten minutes more

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
            query = json.loads(f'"{found}"')
            for name, value in variables.items():
                query = query.replace(name, value)
            query = re.sub(r"\$\{?\w+(:\w+)?\}?", ".*", query)
            if not prometheus(watcher, f"query?query={urllib.parse.quote(query)}")["result"]:
                missing.append(query)
        return missing

    # A host in a container has no clock of its own.
    clock = 'node_timex_sync_status{host=~".*"}'
    eventually(empty, lambda seen: set(seen) <= {clock}, ALERT_SECONDS)


@pytest.mark.usefixtures("quiet")
def test_disk_that_fills(host: Host, told: Callable[[str, str], None]) -> None:
    host.check_output("mount -o remount,size=4G /var/spool/postfix")
    told("MxDiskShort", "firing")
    host.check_output("mount -o remount,size=8G /var/spool/postfix")
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
    host.check_output("postsuper -h ALL")
    told("MxMessagesHeld", "firing")
    host.check_output("systemctl start dovecot && postsuper -H ALL && postqueue -f")
    mailbox.fetch_when(1)
    told("MxTargetGone", "resolved")
    told("MxMessagesHeld", "resolved")
    mailbox.empty()


@pytest.mark.usefixtures("quiet")
def test_certificate_near_its_end(host: Host, told: Callable[[str, str], None]) -> None:
    """The file alone: a renewal that failed leaves the old one there."""
    file = "/etc/oempro-mx/tls/mx.pem"
    host.check_output(f"cp -p {file} /run/mx.pem")
    aged = aged_certificate(days_ago=80, days_left=10)
    host.check_output(
        f"sed '/BEGIN CERT/,$d' /run/mx.pem > {file}; printf '%%s' %s >> {file}", aged
    )
    told("MxCertificateEnds", "firing")
    host.check_output(f"cp -p /run/mx.pem {file}")
    told("MxCertificateEnds", "resolved")


def aged_certificate(days_ago: int, days_left: int) -> str:
    """Return a certificate (PEM) that has most of its life behind it."""
    now = datetime.datetime.now(datetime.timezone.utc)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "aged")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=days_ago))
        .not_valid_after(now + datetime.timedelta(days=days_left))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()
