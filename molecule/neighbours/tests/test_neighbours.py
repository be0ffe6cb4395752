"""A host that was somebody's: a run refuses it and says why, or takes it over and loses nothing.

The tests of a host build on each other, in the order of this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

import testhost
from faults import APT, MESSAGE, NO_WAY, OUTSIDE, rebooted
from platform_stub import StubClient
from probes import Mx, eventually

MAILBOX = "/var/mail/admin"
TABLE = "list table inet oempro_mx"
LOGS = {
    "/var/log/postfix.log": "%b %d %H:%M:%S",
    "/var/log/dovecot.log": "%Y-%m-%dT%H:%M:%SZ",
    "/var/log/mx-validator/mx-validator.log": "%Y-%m-%dT%H:%M:%SZ",
    "/var/log/supervisor/supervisord.log": "%Y-%m-%d %H:%M:%S",
}
TAKE_OVER = {"preflight_take_over": True}
FOREIGN = f"""
echo 'postfix postfix/main_mailer_type select Internet Site' | debconf-set-selections
{APT} install --no-install-recommends postfix dovecot-imapd chrony ufw nftables tzdata
ln -sf /usr/share/zoneinfo/Asia/Tokyo /etc/localtime
postconf -e 'relayhost = [{OUTSIDE}]' mydestination=localhost
echo '# ours' > /etc/dovecot/conf.d/99-ours.conf
systemctl restart postfix dovecot
printf 'From a@b Mon Nov 23 00:00:00 2026\\nSubject: kept\\n\\nkept\\n\\n' > {MAILBOX}
for n in 1 2 3; do echo hello | sendmail -f root someone@[{OUTSIDE}]; done
"""


def root_of(host: Host) -> Path:
    """Return where the host's files are on this machine."""
    return testhost.Host(testhost.this_lab(), host.backend.get_hostname()).root


@pytest.fixture
def small(host: Host) -> Iterator[None]:
    """A minimal image, on which an installation was cut off, and whose sudo wants a terminal."""
    status = "/var/lib/dpkg/status"
    half = "s/^Status: .*/Status: install ok half-configured/"
    host.check_output(f"sed -i '/^Package: iproute2$/,/^$/{half}' {status}")
    host.check_output(
        "mv /usr/bin/python3 /usr/bin/python3.away && mv /usr/bin/ss /usr/bin/ss.away"
    )
    requiretty = root_of(host) / "etc/sudoers.d/tty"
    requiretty.write_text("Defaults requiretty\n")
    yield
    requiretty.unlink()
    host.check_output(
        "mv /usr/bin/python3.away /usr/bin/python3 && mv /usr/bin/ss.away /usr/bin/ss"
    )
    host.check_output("dpkg --configure -a")  # as the message says


@pytest.mark.usefixtures("small")
def test_what_is_missing_is_said_with_the_way_out(
    site: Callable[..., Any], variables: dict[str, Any]
) -> None:
    run = site(check=False)
    assert run.status != 0
    assert run.recap["changed"] == 0
    assert "Run apt-get install python3 there." in run.said
    assert "Run apt-get install iproute2 there." in run.said
    assert "not completely installed: iproute2. Run dpkg --configure -a there." in run.said
    asked = "Add 'Defaults:admin !requiretty' to /etc/sudoers there." in run.said
    assert asked == (variables["ansible_user"] == "admin")


@pytest.mark.usefixtures("untouched")
def test_one_role_is_not_provisioned_alone(site: Callable[..., Any]) -> None:
    run = site("--tags=postfix", check=False)
    assert run.status != 0
    assert "is not an MX yet: run once without --tags (postfix)." in run.said


def test_exim_is_named(host: Host, site: Callable[..., Any]) -> None:
    """Debian's usual mail server, as it is installed."""
    host.check_output(f"{APT} update && {APT} install --no-install-recommends exim4-daemon-light")
    eventually(lambda: host.run("ss -Hlnt sport = :25").stdout)
    run = site(check=False)
    assert run.status != 0
    assert run.recap["changed"] == 0
    assert '"exim4"' in run.said
    assert "apt-get purge exim4-base" in run.said
    host.check_output("echo hello | exim4 -odq root")
    assert "1 messages in Exim's queue (exim4 -qff delivers them" in site(check=False).said
    host.check_output(f"{APT} purge exim4-base")


def queued(host: Host) -> set[str]:
    """Return the ids of the messages in Postfix's queue, which tries them again meanwhile."""
    lines = host.check_output("postqueue -j").splitlines()
    return {json.loads(line)["queue_id"] for line in lines}


def test_mail_server_of_somebody_else_is_refused(
    host: Host, site: Callable[..., Any], request: pytest.FixtureRequest
) -> None:
    host.check_output("set -e; " + FOREIGN)
    eventually(
        lambda: host.check_output("postqueue -j"), lambda seen: seen.count("delay_reason") == 3
    )
    waiting = queued(host)
    request.getfixturevalue("untouched")
    run = site(check=False)
    assert run.status != 0
    assert run.recap["changed"] == 0
    for found in ("Postfix (/etc/postfix/main.cf)", "Dovecot (/etc/dovecot/dovecot.conf)"):
        assert found in run.said
    assert "3 messages in Postfix's queue" in run.said
    assert "set preflight_take_over to true" in run.said
    assert queued(host) == waiting


@pytest.mark.usefixtures("untouched")
def test_check_of_a_host_that_has_half_of_it(site: Callable[..., Any]) -> None:
    site("--check", "--diff", **TAKE_OVER)


def test_taken_over(
    host: Host, mx: Mx, site: Callable[..., Any], smtp_attempts: Callable[[], int]
) -> None:
    host.check_output("ufw allow 22/tcp && ufw --force enable")
    host.check_output("systemctl enable nftables")  # whose nftables.conf begins with a flush
    run = site(**TAKE_OVER)
    saved = host.check_output("echo /var/backups/oempro-mx/*")
    assert f"/etc/postfix was copied to {saved}." in run.said
    assert f"/etc/dovecot was copied to {saved}." in run.said
    assert "Held in the queue: 3 messages" in run.said
    assert f"relayhost = [{OUTSIDE}]" in host.file(f"{saved}/postfix/main.cf").content_string
    assert host.file(f"{saved}/dovecot/conf.d/99-ours.conf").content_string == "# ours\n"
    assert host.file(MAILBOX).content_string.endswith("kept\n\n")
    # Debian has one time daemon at a time, and this one was there.
    assert host.package("chrony").is_installed
    assert not host.package("systemd-timesyncd").is_installed
    # ufw drops, whatever our own table accepts.
    assert f"WARNING: port 25 of {mx.address} does not answer this machine" in run.said
    assert "WARNING: other firewalls" in run.said
    assert "table ip filter" in run.said
    host.check_output("ufw disable && iptables-legacy -A INPUT -p tcp --dport 110 -j DROP")
    assert "the table of iptables-legacy." in site("--tags=reachability").said
    host.check_output("iptables-legacy -F INPUT")
    assert "WARNING: " not in site("--tags=reachability").said

    before = smtp_attempts()
    queue = [json.loads(line) for line in host.check_output("postqueue -j").splitlines()]
    assert [each["queue_name"] for each in queue] == ["hold"] * 3
    host.check_output("postsuper -H ALL && postqueue -f")
    eventually(
        lambda: host.check_output("postqueue -j"),
        lambda seen: seen.count(NO_WAY) == 3,
    )
    assert smtp_attempts() == before
    host.check_output("postsuper -h ALL")
    assert site().recap["changed"] == 0


def test_mail_arrives(mx: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    assert mx.send(f"a@{domain}", MESSAGE).code == 250
    assert mx.fetch_when(1)[0].sent == MESSAGE
    assert mx.rcpt(f"a@foreign.{domain}").code == 554


def test_logs_are_in_utc(host: Host, mx: Mx, platform: StubClient, domain: str) -> None:
    """The host's own zone is nine hours ahead."""
    now = datetime.now(timezone.utc)
    platform.answer(domain, "allow")
    assert mx.send(f"a@{domain}", MESSAGE).code == 250
    assert mx.count() > 0
    for log, form in LOGS.items():
        last = host.check_output(f"tail -n 1 {log}")
        full = last if "%Y" in form else f"{now.year} {last}"
        complete = form if "%Y" in form else f"%Y {form}"
        stamp = full[: len(now.strftime(complete))]
        written = datetime.strptime(f"{stamp} +0000", f"{complete} %z")
        assert abs(written - now) < timedelta(hours=1), last


@pytest.mark.parametrize("command", ["restart", "reload", "stop", "enable --now"])
def test_flushed_table_is_loaded_again(host: Host, command: str) -> None:
    """Debian's nftables.conf, and the end of its service, remove the tables of everybody."""
    handle = f"nft -a {TABLE} | head -n 1"  # another one for each table that is made
    before = host.check_output(handle)
    host.check_output(f"systemctl {command} nftables")
    eventually(lambda: host.run(handle).stdout, lambda seen: seen.strip() not in ("", before))
    assert "tcp dport 25 accept" in host.check_output(f"nft {TABLE}")


def test_table_is_there_after_a_reboot(host: Host) -> None:
    with rebooted(host):
        pass
    assert host.check_output("systemctl is-active nftables") == "active"
    assert "tcp dport 25 accept" in host.check_output(f"nft {TABLE}")
