"""The host cannot relay and cannot send, whatever it is given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

from faults import NO_WAY, OUTSIDE, services_that_send
from platform_stub import StubClient
from probes import Mx, eventually

SOMEONE = f"someone@[{OUTSIDE}]"
RELAY_FORMS = (
    "user%foreign.example@{ours}",
    "foreign.example!user@{ours}",
    '"user@foreign.example"@{ours}',
    "@{ours}:user@foreign.example",
    "user@foreign.example@{ours}",
    '"user%foreign.example"@{ours}',
    "user%foreign.example",
    "foreign.example!user",
    "user@foreign.example",
)


@pytest.fixture(autouse=True)
def only_the_first_lock(host: Host) -> Iterator[None]:
    """Take the firewall's lock away: it would hide what Postfix tries."""
    host.check_output("nft flush chain inet oempro_mx outgoing")
    yield
    host.check_output("systemctl reload oempro-mx-firewall")


@pytest.fixture
def quiet(host: Host, smtp_attempts: Callable[[], int]) -> Callable[[], None]:
    """Return a check that nothing was sent, and that nothing waits to be sent."""
    before = smtp_attempts()

    def check() -> None:
        eventually(lambda: host.check_output("postqueue -j"), lambda seen: seen == "")
        assert smtp_attempts() == before

    return check


def test_the_counter_counts(host: Host, smtp_attempts: Callable[[], int]) -> None:
    """Without this, the tests below could not fail."""
    before = smtp_attempts()
    host.run(f"timeout 1 bash -c ': < /dev/tcp/{OUTSIDE}/25'")
    assert smtp_attempts() > before


@pytest.mark.parametrize("form", RELAY_FORMS)
def test_relay_forms(
    mailbox: Mx, platform: StubClient, domain: str, quiet: Callable[[], None], form: str
) -> None:
    platform.answer(domain, "allow")
    recipient = form.format(ours=domain)
    reply = mailbox.send(recipient, b"Subject: relay\r\n\r\nx\r\n")
    # Taking a routing form into the mailbox would be harmless, but relay testers would object.
    assert 500 <= reply.code < 600, reply
    quiet()


def test_source_route_is_ignored(
    mailbox: Mx, platform: StubClient, domain: str, quiet: Callable[[], None]
) -> None:
    """RFC 5321, appendix C: the route is stripped; what is left is ours."""
    platform.answer(domain, "allow")
    assert mailbox.send(f"@foreign.example:user@{domain}", b"Subject: x\r\n\r\n").code == 250
    assert mailbox.fetch_when(1)[0].original_to == f"user@{domain}"
    quiet()


def test_null_sender_to_a_foreign_domain(mx: Mx, domain: str, quiet: Callable[[], None]) -> None:
    assert mx.rcpt(f"a@{domain}", sender="").code == 554
    quiet()


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_local_submission_is_refused(
    host: Host, mailbox: Mx, quiet: Callable[[], None], user: str
) -> None:
    """Whoever runs a program that sends mail, such as cron, learns that it was not taken."""
    done = host.run("echo hello | setpriv --reuid=%s sendmail root", user)
    assert done.rc == os.EX_TEMPFAIL
    assert "is not allowed to submit mail" in done.stderr
    quiet()
    assert mailbox.count() == 0


@pytest.fixture
def submission(host: Host) -> Iterator[None]:
    """Take away the lock on local submission: it would hide what Postfix does with such mail."""
    host.check_output("postconf -e authorized_submit_users=static:all")
    yield
    host.check_output("postconf -e authorized_submit_users=")
    host.check_output("postsuper -d ALL")


@pytest.mark.usefixtures("submission")
def test_mail_without_a_way_waits(
    host: Host, mailbox: Mx, smtp_attempts: Callable[[], int]
) -> None:
    """Neither sent, nor thrown away, nor put into the mailbox; also when it is requeued."""
    before = smtp_attempts()
    senders = ("", "root", SOMEONE)
    recipients = (SOMEONE, "root", "root@localhost", "nobody@foreign.example")
    for sender in senders:
        for recipient in recipients:
            host.check_output("echo hello | sendmail -f %s %s", sender, recipient)

    def reasons() -> list[str]:
        queue = host.check_output("postqueue -j").splitlines()
        found = [each for line in queue for each in json.loads(line)["recipients"]]
        return [each.get("delay_reason", "") for each in found]

    everything = [NO_WAY] * len(senders) * len(recipients)
    eventually(reasons, lambda seen: seen == everything)
    host.check_output("postsuper -r ALL && postqueue -f")
    eventually(reasons, lambda seen: seen == everything)
    assert smtp_attempts() == before
    assert mailbox.count() == 0


def test_undeliverable_mail_comes_back_to_nobody(
    host: Host, mailbox: Mx, platform: StubClient, domain: str, quiet: Callable[[], None]
) -> None:
    """What the mailbox refuses for good waits; when its time is over, no bounce leaves the host."""
    platform.answer(domain, "allow")
    socket = "/var/spool/postfix/dovecot/lmtp"
    refuse = (
        "import socket,os,shutil\n"
        f"s=socket.socket(socket.AF_UNIX); s.bind('{socket}.test'); s.listen(9)\n"
        f"shutil.chown('{socket}.test','postfix'); os.rename('{socket}.test','{socket}')\n"
        "while True:\n"
        " c,_=s.accept(); c.sendall(b'554 5.0.0 no\\r\\n'); c.recv(99); c.close()\n"
    )
    host.check_output(f"mv {socket} {socket}.real")
    host.check_output("systemd-run --unit=refuser python3 -c %s", refuse)
    try:
        eventually(lambda: host.file(socket).is_socket)
        assert mailbox.send(f"a@{domain}", b"Subject: x\r\n\r\nx\r\n", SOMEONE).code == 250
        waiting = eventually(
            lambda: host.check_output("postqueue -j"), lambda seen: "delay_reason" in seen
        )
        assert "554 5.0.0 no" in waiting
        host.check_output("postconf -e maximal_queue_lifetime=0 && postfix reload")
        host.check_output("postqueue -f")
        quiet()
    finally:
        host.check_output("systemctl stop refuser")
        host.check_output(f"mv {socket}.real {socket}")
        host.check_output("postconf -e maximal_queue_lifetime=100d && postfix reload")


def test_no_program_that_could_send(host: Host) -> None:
    # The package's own script, as an upgrade runs it, may add services.
    host.check_output("DEBIAN_FRONTEND=noninteractive dpkg-reconfigure postfix")
    services = host.check_output("postconf -M")
    assert services_that_send(services) == []
    clients = [line.split()[0] for line in services.splitlines() if line.split()[7] == "lmtp"]
    assert clients == ["catchall"]
