"""What Prometheus reads of a host, each number moved by what it stands for."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

from exporters import PORTS, Metrics, scrape
from faults import MESSAGE
from platform_stub import StubClient
from probes import Mx, eventually
from testhost import TESTER


@pytest.fixture
def metrics(host: Host, mx: Mx, site: Callable[..., Any]) -> Callable[[], Metrics]:
    """Return a call that lets the timer's command run, and reads all exporters."""
    try:
        scrape(mx.address)
    except OSError:  # a host that is kept for tests of everything
        site(monitoring_enabled=True, firewall_metrics_sources=[f"{TESTER}/32"])

    def read() -> Metrics:
        host.check_output("systemctl start oempro-mx-metrics")
        return scrape(mx.address)

    return read


def test_mail_that_comes_waits_and_is_fetched(
    host: Host,
    mailbox: Mx,
    platform: StubClient,
    domain: str,
    metrics: Callable[[], Metrics],
) -> None:
    platform.answer(domain, "allow")
    before = metrics()
    host.check_output("systemctl stop dovecot")
    assert mailbox.send(f"a@{domain}", MESSAGE).code == 250
    assert mailbox.rcpt("a@foreign.example").code == 554

    def waits() -> Metrics | None:
        host.check_output("systemctl start oempro-mx-metrics")
        with urllib.request.urlopen(f"http://{mailbox.address}:9100/metrics") as reply:
            text = reply.read().decode()
        found = dict(re.findall(r"(?m)^(oempro_mx_\S+) (\S+)$", text))
        deferred = 'oempro_mx_queue_messages{queue="deferred"}'
        return found if float(found[deferred]) == 1 else None

    waiting = eventually(waits)
    assert waiting is not None
    assert float(waiting["oempro_mx_queue_oldest_seconds"]) > 0
    # The mailbox cannot be asked now: its metrics are missing, and not as they were.
    assert (
        "oempro_mx_mailbox_messages" not in waiting
        or float(waiting["oempro_mx_mailbox_messages"]) == 0
    )

    host.check_output("systemctl start dovecot && postqueue -f")
    mailbox.fetch_when(1)
    stored = metrics()
    for name, more in (
        ("oempro_mx_messages_accepted_total", 1),
        ('oempro_mx_deliveries_total{status="sent"}', 1),
        ('oempro_mx_recipients_refused_total{reply="554 5.7.1"}', 1),
    ):
        assert stored[name] == before.get(name, 0) + more, name
    assert stored['oempro_mx_deliveries_total{status="deferred"}'] >= 1
    assert stored["oempro_mx_mailbox_messages"] == 1
    assert stored["oempro_mx_mailbox_oldest_seconds"] >= 0
    assert stored["oempro_mx_queue_oldest_seconds"] == 0
    assert stored["dovecot_deliveries_total"] == 1  # since Dovecot was started

    mailbox.empty()
    fetched = metrics()
    assert fetched["oempro_mx_mailbox_messages"] == 0
    assert fetched["dovecot_expunged_total"] == 1
    assert fetched["dovecot_delivery_failures_total"] == stored["dovecot_delivery_failures_total"]


def test_logins_are_counted(mx: Mx, metrics: Callable[[], Metrics]) -> None:
    before = metrics()
    with mx.imap():
        pass
    wrong = Mx(mx.address, mx.hostname, mx.username, "not-the-password")
    with pytest.raises(Exception, match="AUTHENTICATIONFAILED"), wrong.imap():
        pass
    after = eventually(
        metrics,
        lambda seen: seen["dovecot_auth_failed_total"] > before["dovecot_auth_failed_total"],
    )
    assert after["dovecot_auth_failed_total"] == before["dovecot_auth_failed_total"] + 1
    assert after["dovecot_auth_ok_total"] == before["dovecot_auth_ok_total"] + 1


def test_certificate_and_timer(host: Host, metrics: Callable[[], Metrics]) -> None:
    found = metrics()
    now = float(host.check_output("date +%s"))
    assert found["oempro_mx_certificate_begin_seconds"] <= now
    assert found["oempro_mx_certificate_end_seconds"] > now + 300 * 86400
    file = "/var/lib/prometheus/node-exporter/oempro-mx.prom"
    host.check_output(f"rm {file}")
    eventually(lambda: host.file(file).exists, seconds=100)  # the timer, by itself
    assert found["node_textfile_scrape_error"] == 0


def test_others_cannot_read_them(mx: Mx, variables: dict[str, Any]) -> None:
    """Only firewall_metrics_sources reach the ports; this address is not among them."""
    for port in PORTS:
        with pytest.raises(OSError, match=r"timed out|refused|unreachable|prohibited"):
            socket.create_connection(
                (mx.address, port), timeout=3, source_address=(variables["testhost_gateway"], 0)
            )


def test_switched_off_and_on(
    host: Host, mx: Mx, site: Callable[..., Any], metrics: Callable[[], Metrics]
) -> None:
    metrics()
    files = "/etc/systemd/system/oempro-mx-metrics.* /var/lib/prometheus/node-exporter/oempro-mx.*"
    site("--tags=monitoring")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((mx.address, PORTS[0]), timeout=5)
    assert host.run(f"ls {files}").stdout == ""
    assert site("--tags=monitoring").changed == set()
    site("--tags=monitoring", monitoring_enabled=True)
    assert site("--tags=monitoring", monitoring_enabled=True).changed == set()
    assert "oempro_mx_mailbox_messages" in metrics()
