"""Each thing that `oempro-mx status` looks at is broken, seen, and mended as printed."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from testinfra.host import Host

from faults import MESSAGE, rebooted
from findings import Status, found
from platform_stub import StubClient
from probes import Mx, eventually

PLAYBOOK = "ansible-playbook -i inventory site.yml --limit "
# Write into the validator's file that a domain was confirmed so many days ago.
CONFIRM = """runuser -u mx-validator -- python3 -c '
import sys, time
sys.path.insert(0, "/opt/mx-validator/current")
from pathlib import Path
from mx_validator.database import SCHEMA, UPSERT, connect, make_row
with connect(Path("/var/lib/mx-validator/known-good.sqlite")) as file:
    file.execute(SCHEMA)
    file.execute(UPSERT, make_row(sys.argv[1], time.time() - 86400 * float(sys.argv[2])))
'"""
FLAKY = """[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/test -e /run/flaky-may-start
"""


@dataclass(frozen=True)
class Fault:
    """How something is broken, and what is said of it."""

    broken_by: str
    name: str
    state: str
    seen: str
    remedy: str


SERVICES = {
    "postfix": Fault(
        *("systemctl stop postfix", "services", "FAIL", "postfix.service is inactive (dead)"),
        "systemctl restart postfix.service",
    ),
    "dovecot": Fault(
        *("systemctl stop dovecot", "services", "FAIL", "dovecot.service is inactive (dead)"),
        "systemctl restart dovecot.service",
    ),
    "supervisor": Fault(
        *("systemctl stop supervisor", "services", "FAIL", "supervisor.service is inactive"),
        "systemctl restart supervisor.service",
    ),
    "timer": Fault(
        *("systemctl stop logrotate.timer", "services", "WARN", "logrotate.timer is inactive"),
        "systemctl restart logrotate.timer",
    ),
    "not enabled": Fault(
        *("systemctl disable dovecot", "services", "WARN", "does not start with the host"),
        "systemctl enable dovecot.service",
    ),
    "smtpd": Fault(
        *("systemctl stop postfix", "port 25", "FAIL", "Connection refused"),
        "systemctl restart postfix",
    ),
    "imaps": Fault(
        *("doveadm service stop imap-login", "port 993", "FAIL", "does not answer"),
        "systemctl restart dovecot",
    ),
    "pop3s": Fault(
        *("doveadm service stop pop3-login", "port 995", "FAIL", "does not answer"),
        "systemctl restart dovecot",
    ),
    "lmtp": Fault(
        *("doveadm service stop lmtp", "delivery", "FAIL", "Dovecot takes no mail on"),
        "systemctl restart dovecot",
    ),
    "validator": Fault(
        *("supervisorctl stop mx-validator", "validator", "FAIL", "STOPPED"),
        "supervisorctl restart mx-validator",
    ),
    "supervisord": Fault(
        *("systemctl stop supervisor", "validator", "FAIL", "no such file"),
        "systemctl restart supervisor",
    ),
    "firewall": Fault(
        *("nft delete table inet oempro_mx", "firewall", "FAIL", "oempro_mx is not loaded"),
        "systemctl restart oempro-mx-firewall",
    ),
}


@pytest.mark.usefixtures("well")
@pytest.mark.parametrize("fault", SERVICES.values(), ids=SERVICES)
def test_service(host: Host, status: Callable[[], Status], fault: Fault) -> None:
    host.run(fault.broken_by)
    finding = found(status, fault.name, fault.state, fault.seen)
    assert finding["remedy"] == fault.remedy
    host.check_output(fault.remedy)


@pytest.mark.usefixtures("well")
def test_unit_of_somebody_else(host: Host, status: Callable[[], Status]) -> None:
    host.check_output(f"printf %s {shlex.quote(FLAKY)} > /run/systemd/system/flaky.service")
    host.run("systemctl daemon-reload; systemctl start flaky")
    finding = found(status, "services", "WARN", "flaky.service has failed")
    host.check_output("touch /run/flaky-may-start")
    host.check_output(finding["remedy"])
    host.check_output(
        "systemctl stop flaky; rm /run/flaky-may-start /run/systemd/system/flaky.service"
    )


@pytest.mark.usefixtures("well")
def test_platform_away(host: Host, status: Callable[[], Status], platform: StubClient) -> None:
    platform.listen(False)
    finding = found(status, "platform", "FAIL", "Unknown domains get 451")
    assert "Connection refused" in finding["seen"]
    platform.listen(True)
    eventually(lambda: host.run(finding["remedy"]).rc == 1)  # the platform denies the host's name


@pytest.mark.usefixtures("well")
def test_slow_platform(host: Host, status: Callable[[], Status], platform: StubClient) -> None:
    platform.default("deny", delay_ms=3500)
    finding = found(status, "platform", "WARN", "That is slow")
    platform.default("deny")
    assert host.run(finding["remedy"]).rc == 1


@pytest.mark.usefixtures("well")
def test_key_refused(
    host: Host, status: Callable[[], Status], platform: StubClient, site: Callable[..., Any]
) -> None:
    right = platform.api_key
    platform.api_key = "another"
    finding = found(status, "API key", "FAIL", "the API key is refused")
    name = host.backend.get_hostname()
    assert finding["remedy"] == f"{PLAYBOOK}{name} --tags validator"
    assert right not in host.run("oempro-mx status").stdout
    site("--tags=validator", oempro_admin_api_key="another")
    eventually(lambda: status().of("platform")[0]["state"] == "OK")
    platform.api_key = right
    site("--tags=validator")


@pytest.mark.usefixtures("well")
def test_end_of_a_run(
    host: Host,
    mx: Mx,
    platform: StubClient,
    domain: str,
    site: Callable[..., Any],
) -> None:
    """A run fails with what stays until it is corrected, and warns of what may pass."""
    right, mail = platform.api_key, "/var/vmail/catchall/mail"
    platform.api_key = "another"
    host.check_output(f"chown --recursive root {mail}/*")
    refused = site(check=False)
    assert refused.status != 0
    assert "the API key is refused for " in refused.said
    assert "Put the right one into vault.yml, and run" in refused.said
    assert "it does not open: " in refused.said
    assert right not in refused.output
    assert mx.rcpt(f"a@{domain}").code == 451
    platform.api_key = right
    host.check_output(f"chown --recursive --reference {mail} {mail}/*")

    platform.default("redirect")
    redirected = site("--tags=status", check=False)
    assert redirected.status != 0
    advice = "a redirect to another path: set oempro_url to the base URL of Oempro, and run: "
    assert advice in redirected.said

    platform.reset()
    platform.listen(wanted=False)
    away = site("--tags=status")
    assert "FAIL: platform: no verdict for " in away.said
    platform.listen(wanted=True)


@pytest.mark.usefixtures("well")
def test_what_the_playbook_mends(
    host: Host, status: Callable[[], Status], site: Callable[..., Any]
) -> None:
    host.check_output("echo '# by hand' >> /etc/dovecot/dovecot.conf")
    host.check_output("postconf -e queue_minfree=99999999999999 && postfix reload")
    host.check_output("rm /var/lib/oempro-mx/version")
    unfinished = found(status, "version", "WARN", "no whole run has ended on this host")
    host.check_output("echo 0.9.0 > /var/lib/oempro-mx/version")
    full = found(status, "port 25", "FAIL", "every sender is told: 452 4.3.1")
    assert full["remedy"] == "df -h /var/spool/postfix"
    disk = found(status, "disk /var/spool/postfix", "FAIL", "every sender is told 452")
    assert "/var/spool/postfix" in host.check_output(disk["remedy"])
    remedies = {
        found(status, name, state, words)["remedy"]
        for name, state, words in (
            ("files", "WARN", "2 differ from what the last run wrote and loaded"),
            ("version", "WARN", "the last whole run was of 0.9.0, this command is of 1.0.0"),
        )
    }
    remedies.add(unfinished["remedy"])
    assert remedies == {f"{PLAYBOOK}{host.backend.get_hostname()}"}
    site()


@pytest.mark.usefixtures("well")
def test_damaged_known_good_domains(host: Host, status: Callable[[], Status]) -> None:
    file = "/var/lib/mx-validator/known-good.sqlite"
    host.check_output("supervisorctl stop mx-validator")
    host.check_output(f"rm -f {file}-wal {file}-shm; echo damaged > {file}")
    host.check_output("supervisorctl start mx-validator")
    finding = found(status, "known good", "WARN", "the file was damaged and written anew")
    host.check_output(finding["remedy"])


@pytest.mark.usefixtures("well")
def test_known_good_domains_that_nobody_has_confirmed_for_days(
    host: Host, status: Callable[[], Status], platform: StubClient, domain: str
) -> None:
    """The platform has been away for most of the week for which they are known good."""
    host.check_output("supervisorctl stop mx-validator")
    host.check_output(f"{CONFIRM} {domain} 6.5")
    platform.listen(False)
    host.check_output("supervisorctl start mx-validator")
    finding = found(status, "known good", "WARN", "After that it gets 451")
    assert domain in host.check_output(finding["remedy"])
    platform.answer(domain, "allow")
    platform.listen(True)
    host.check_output(f"mx-validator forget {domain}")


@pytest.mark.usefixtures("well")
def test_damaged_message(
    host: Host, mailbox: Mx, status: Callable[[], Status], platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    host.check_output("doveadm service stop lmtp")
    assert mailbox.send(f"a@{domain}", MESSAGE).code == 250
    deferred = "find /var/spool/postfix/deferred -type f"
    file = eventually(lambda: host.check_output(deferred))
    host.check_output(f"printf damaged | dd conv=notrunc status=none of={file}")
    host.check_output("systemctl restart dovecot && postqueue -f")
    finding = found(status, "queue", "WARN", "1 damaged messages are in ")
    listed = host.check_output(finding["remedy"])
    assert file.rpartition("/")[2] in listed
    host.check_output("rm /var/spool/postfix/corrupt/*")


@pytest.mark.usefixtures("well")
def test_queue_and_mailbox(
    host: Host,
    mailbox: Mx,
    status: Callable[[], Status],
    site: Callable[..., Any],
    platform: StubClient,
    domain: str,
) -> None:
    platform.answer(domain, "allow")
    site("--tags=status", status_queue_minutes=0, status_mailbox_minutes=0)
    host.check_output("doveadm service stop lmtp")
    assert mailbox.send(f"a@{domain}", MESSAGE).code == 250
    waits = found(status, "queue", "FAIL", "1 messages wait for the mailbox")
    eventually(lambda: "dovecot/lmtp" in status().of("queue")[0]["seen"])
    host.check_output("postsuper -h ALL")
    held = found(status, "queue", "WARN", "1 messages are on hold")
    host.check_output("systemctl restart dovecot")
    host.check_output(held["remedy"])
    host.check_output(waits["remedy"])
    found(status, "queue", "OK", "empty")

    finding = found(status, "mailbox", "FAIL", "the platform does not fetch: 1 messages")
    assert "last login" in finding["seen"]
    assert "imap-login" in host.check_output(finding["remedy"])
    mailbox.empty()
    assert "last deletion" in found(status, "mailbox", "OK", "empty")["seen"]
    assert "ago (imap)" in status().of("mailbox")[0]["seen"].partition("last deletion")[2]
    site("--tags=status")


PORTS_OF_SERVICES = (("25", "postfix"), ("993", "dovecot"), ("995", "dovecot"))


@pytest.mark.usefixtures("well")
def test_certificate(
    host: Host, mx: Mx, status: Callable[[], Status], site: Callable[..., Any]
) -> None:
    file = "/etc/oempro-mx/tls/mx.pem"
    host.check_output(f"cp --preserve {file} /root/mx.pem")
    host.check_output(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=other -days 9 "
        f"-addext subjectAltName=DNS:other.example.com -keyout {file} -out /root/other.pem"
        f" && cat /root/other.pem >> {file}"
    )
    found(status, "certificate", "FAIL", f"is not for the name {mx.hostname}")
    others = {
        each["seen"].split()[1]: each["remedy"]
        for each in status().of("certificate")
        if "serves another one" in each["seen"]
    }
    reload = "systemctl reload"
    assert others == {p: f"{reload} {s}" for p, s in PORTS_OF_SERVICES}
    for remedy in {*others.values()}:
        host.check_output(remedy)
    eventually(lambda: "serves another" not in str(status().findings))
    site()  # as the line about the name says


@pytest.mark.usefixtures("well")
def test_reboot_is_needed(host: Host, status: Callable[[], Status]) -> None:
    host.check_output("touch /run/reboot-required")
    assert found(status, "updates", "WARN", "a reboot")["remedy"] == "systemctl reboot"
    with rebooted(host):
        pass


def test_what_cannot_be_looked_at(host: Host, status: Callable[[], Status]) -> None:
    """It is neither well nor bad, and all else is still seen."""
    host.check_output("mv /usr/bin/doveadm /usr/bin/doveadm.away")
    try:
        finding = found(status, "mailbox", "COULD NOT LOOK", "doveadm: No such file")
        assert finding["remedy"] == "command -v doveadm"
        assert status().of("port 25")[0]["state"] == "OK"
    finally:
        host.check_output("mv /usr/bin/doveadm.away /usr/bin/doveadm")


def test_nothing_hangs(host: Host, status: Callable[[], Status]) -> None:
    """A program that does not end is not waited for."""
    host.check_output("mv /usr/bin/doveadm /usr/bin/doveadm.away")
    host.check_output("printf '#!/bin/sh\\nexec sleep 1000\\n' > /usr/bin/doveadm")
    host.check_output("chmod 755 /usr/bin/doveadm")
    try:
        finding = found(status, "mailbox", "COULD NOT LOOK", "did not end within 15 s")
        assert finding["remedy"].startswith("doveadm -f json mailbox status")
    finally:
        host.check_output("mv /usr/bin/doveadm.away /usr/bin/doveadm")


def test_who_may_run_it_and_where(host: Host) -> None:
    refused = host.run("setpriv --reuid=nobody --clear-groups oempro-mx status")
    assert refused.rc == 2
    assert "run this as root" in refused.stderr
    elsewhere = host.run("oempro-mx status --config /nowhere.json")
    assert elsewhere.rc == 2
    assert "/nowhere.json cannot be used" in elsewhere.stderr


def test_for_people(host: Host) -> None:
    text = host.run("oempro-mx status").stdout
    assert "\x1b" not in text  # no terminal
    assert all(
        line.startswith(("OK ", "WARN ", "FAIL ", "COULD NOT LOOK ", " "))
        for line in text.splitlines()
    )
    coloured = host.run("script --quiet --command 'oempro-mx status' /dev/null").stdout
    assert "\x1b[32mOK" in coloured
