"""What can be reached, from where; and that nothing leaves."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

import portscan
import testhost
from faults import TESTHOST, rebooted
from probes import Mx
from testhost import Network, this_lab

NOBODY = "192.0.2.0/24"
RULES = "nft list table inet oempro_mx"
EVERYBODY = ["0.0.0.0/0", "::/0"]
ETH_P_IPV6 = 0x86DD
ROUTER_ALERT = bytes((0, 0, 5, 2, 0, 0, 1, 0))  # in a hop-by-hop options header (RFC 2711)
# Type 130, to be answered within 100 ms, about all groups; the kernel fills the checksum in.
LISTENER_QUERY = bytes((130, 0, 0, 0, 0, 100, 0, 0)) + bytes(16) + bytes((2, 125, 0, 0))
LISTENER_REPORT = bytes((143,))
REPORT_SECONDS = 5
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


def test_another_host_sees_ssh_and_smtp(
    host: Host,
    mx: Mx,
    variables: dict[str, Any],
    third_host: Network,
    outsiders: list[str],
) -> None:
    scan = [sys.executable, portscan.__file__]
    scans = (
        ["ip", "netns", "exec", third_host.namespace, *scan, mx.address],
        # This machine does not forward IPv6: from one of its own addresses.
        [*scan, variables["testhost_address6"], outsiders[-1]],
    )
    for each in scans:
        assert subprocess.check_output(each) == b"22 25\n"
    with rebooted(host):
        pass
    for each in scans:
        assert subprocess.check_output(each) == b"22 25\n"


def listeners_report(link: str) -> bool:
    """Ask a link who listens to multicast, as a switch does; return whether the host reports.

    The query is RFC 3810's, 5.1: from a link-local address, with hop limit 1 and a router alert.
    """
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IPV6)) as seen,
        socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as query,
    ):
        seen.bind((link, 0))
        seen.settimeout(REPORT_SECONDS)
        query.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
        query.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, ROUTER_ALERT)
        query.sendto(LISTENER_QUERY, ("ff02::1", 0, 0, socket.if_nametoindex(link)))
        # The Ethernet and IPv6 headers have 54 bytes, the router alert of a report another 8.
        with contextlib.suppress(TimeoutError):
            while seen.recv(2048)[62:63] != LISTENER_REPORT:
                pass
            return True
    return False


def test_multicast_listener_query_is_answered(host: Host) -> None:
    """Else a switch that snoops lets no neighbour solicitation through: the host has no IPv6."""
    lab = this_lab()
    assert listeners_report(testhost.Host(lab, host.backend.get_hostname()).network.link)


def test_the_platform_reads_the_mailbox(mx: Mx, variables: dict[str, Any]) -> None:
    for address in (mx.address, variables["testhost_address6"]):
        for port in (993, 995):
            socket.create_connection((address, port), timeout=10).close()
        for port in (80, 110, 143, 587, 9854):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=10)


@pytest.mark.parametrize("user", ["root", "mx-validator", "postfix"])
def test_no_mail_leaves(
    host: Host, variables: dict[str, Any], smtp_attempts: Callable[[], int], user: str
) -> None:
    before = smtp_attempts()
    for address in (variables["testhost_gateway"], variables["testhost_gateway6"]):
        for port in ("25", "465", "587"):
            command = f"setpriv --reuid={user} --regid=nogroup --clear-groups python3 -c %s %s %s"
            done = host.run(command, CONNECT, address, port)
            assert "ConnectionRefusedError" in done.stderr
    assert smtp_attempts() == before
    platform_port = str(variables["testhost_stub_port"])
    host.check_output("python3 -c %s %s %s", CONNECT, variables["testhost_gateway"], platform_port)


def test_whoever_guesses_passwords_is_slowed_down(mx: Mx, site: Callable[..., Any]) -> None:
    site(
        "--tags=firewall",
        firewall_mailbox_sources=EVERYBODY,
        firewall_mailbox_rate_per_minute=5,
    )
    with contextlib.ExitStack() as connections:
        for _ in range(5):
            connections.enter_context(socket.create_connection((mx.address, 993), timeout=10))
        with pytest.raises(TimeoutError):
            socket.create_connection((mx.address, 993), timeout=2)
        with pytest.raises(TimeoutError):
            socket.create_connection((mx.address, 995), timeout=2)
        with mx.smtp() as session:
            assert session.command("NOOP").code == 250
    site("--tags=firewall")
    assert mx.count() >= 0


def test_other_tables_are_left_alone(host: Host, site: Callable[..., Any]) -> None:
    host.check_output("nft add table inet of_somebody_else")
    site("--tags=firewall", firewall_extra_rules=["tcp dport 9100 accept"])
    assert "tcp dport 9100 accept" in host.check_output(RULES)
    site("--tags=firewall", firewall_enabled=False)
    assert host.run(RULES).rc != 0
    run = site("--tags=firewall")
    assert "tcp dport 9100" not in host.check_output(RULES)
    assert run.recap["changed"] > 0
    assert site("--tags=firewall").recap["changed"] == 0
    host.check_output("nft delete table inet of_somebody_else")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"firewall_ssh_sources": [NOBODY]}, f"firewall_ssh_sources ({NOBODY})"),
        ({"firewall_ssh_ports": [2222]}, "not in firewall_ssh_ports (2222)"),
        ({"firewall_mailbox_sources": ["the office"]}, 'firewall_mailbox_sources has "the office"'),
    ],
)
def test_rules_that_cannot_be_meant_change_nothing(
    host: Host, site: Callable[..., Any], wrong: dict[str, Any], reason: str
) -> None:
    before = host.check_output(RULES)
    run = site("--tags=firewall", check=False, **wrong)
    assert run.status != 0
    assert reason in run.said
    assert host.check_output(RULES) == before


def test_rules_that_shut_us_out_are_gone_after_a_minute(
    host: Host, site: Callable[..., Any]
) -> None:
    """What no check can foresee; here a further rule that does more than its author meant."""
    hook = "type filter hook input priority -1"
    wrong = f"}}\nchain own {{\n{hook}\ntcp dport 22 ct state new drop\n}}\nchain rest {{"
    run = site("--tags=firewall", check=False, firewall_extra_rules=[wrong])
    assert run.status != 0
    assert "No new SSH connection comes through the new rules" in run.said
    subprocess.run([TESTHOST, "wait", host.backend.get_hostname()], check=True)
    assert host.check_output("systemctl is-enabled oempro-mx-firewall || true") == "disabled"
    assert "chain own" not in host.check_output("nft list ruleset")
    site("--tags=firewall")
    assert "tcp dport 25 accept" in host.check_output(RULES)
