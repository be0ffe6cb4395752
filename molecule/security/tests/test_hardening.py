"""What the services can do no more, and what lynis says."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from testinfra.host import Host

from faults import APT
from probes import Mx, eventually, unverified

UNITS = ("supervisor", "dovecot", "postfix")
MOST_EXPOSURE = 4.0  # 10 is the worst
LEAST_HARDENING = 61  # the index of a bare host is 59 on Debian 12, 60 on Debian 13


def unit_of(host: Host, service: str) -> str:
    """Return the unit in which a service's daemons run."""
    instance = "postfix@-.service"
    if service == "postfix" and host.run(f"systemctl is-active {instance}").rc == 0:
        return instance
    return f"{service}.service"


@pytest.mark.parametrize("service", UNITS)
def test_service_is_locked_in(
    host: Host, service: str, record_property: Callable[[str, object], None]
) -> None:
    unit = unit_of(host, service)
    said = host.run(f"systemd-analyze security --no-pager {unit}").stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    record_property("systemd-analyze security", f"{unit} {found[1]}")
    assert float(found[1]) <= MOST_EXPOSURE, said


@pytest.mark.parametrize("service", UNITS)
def test_service_runs_as_its_unit_says(host: Host, service: str) -> None:
    """A drop-in that was written but not entered would look as good to systemd-analyze."""
    pid = host.check_output(
        "systemctl show --property=MainPID --value supervisor"
        if service == "supervisor"
        else "cat /var/spool/postfix/pid/master.pid"
        if service == "postfix"
        else "cat /run/dovecot/master.pid"
    ).strip()
    assert "NoNewPrivs:\t1" in host.file(f"/proc/{pid}/status").content_string
    assert host.run("nsenter --mount --target %s touch /usr/local/written", pid).rc != 0
    assert host.check_output("nsenter --mount --target %s find /root -mindepth 1", pid) == ""


def test_who_guesses_the_password_is_shut_out(
    host: Host, mx: Mx, site: Callable[..., Any], outsiders: list[str]
) -> None:
    everybody = {"firewall_mailbox_sources": ["0.0.0.0/0", "::/0"]}
    never = [f"{outsiders[1]}/32"]
    on = {"fail2ban_enabled": True, "fail2ban_failures": 3, "fail2ban_never": never, **everybody}
    site("--tags=firewall,fail2ban", **on)

    def guess(source: str, port: int = 993) -> None:
        with (
            socket.create_connection((mx.address, port), 30, (source, 0)) as plain,
            unverified().wrap_socket(plain) as wrapped,
        ):
            stream = wrapped.makefile("rb")
            stream.readline()
            # A name that looks like somebody else's address in the log.
            command = f'a LOGIN "x, rip={outsiders[2]}, lip=" wrong\r\n'
            wrapped.sendall(command.encode() if port == 993 else b"USER catchall\r\nPASS wrong\r\n")
            while not stream.readline().startswith((b"a NO", b"-ERR")):
                pass

    def shut_out(source: str) -> bool:
        try:
            socket.create_connection((mx.address, 993), 10, (source, 0)).close()
        except ConnectionRefusedError:
            return True
        return False

    def guess_on(source: str) -> None:
        for port in (993, 995, 993):
            guess(source, port)

    with ThreadPoolExecutor() as pool:  # Dovecot lets each of them wait
        list(pool.map(guess_on, outsiders[:2]))
    eventually(lambda: shut_out(outsiders[0]))
    assert not shut_out(outsiders[1])
    assert not shut_out(outsiders[2])
    assert site("--tags=firewall,fail2ban", **on).recap["changed"] == 0
    site("--tags=firewall,fail2ban")
    assert "oempro-mx" not in host.check_output("fail2ban-client status")


def test_security_updates_install_themselves(host: Host) -> None:
    settings = host.check_output("apt-config dump")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in settings
    assert 'APT::Periodic::Update-Package-Lists "1";' in settings
    assert "label=Debian-Security" in settings
    assert host.check_output("systemctl is-enabled unattended-upgrades") == "enabled"


def test_lynis_finds_nothing_about_mail(
    host: Host, record_property: Callable[[str, object], None]
) -> None:
    host.check_output(f"{APT} update && {APT} install --no-install-recommends lynis")
    host.check_output("lynis audit system --quick --quiet --report-file /root/lynis.dat")
    report = host.file("/root/lynis.dat").content_string
    assert re.findall(r"(?m)^(?:warning|suggestion)\[\]=MAIL-.*", report) == []
    index = int(re.findall(r"(?m)^hardening_index=(\d+)", report)[0])
    record_property("lynis", f"hardening index {index}")
    assert index >= LEAST_HARDENING
