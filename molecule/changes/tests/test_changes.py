"""A changed variable changes what it must; a broken one changes nothing; a run repairs the host."""

from __future__ import annotations

import imaplib
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from platform_stub import StubClient
from probes import Mx, eventually
from testinfra.host import Host

MESSAGE = b"Subject: test\r\n\r\nHello.\r\n"
MEBIBYTE = 1024 * 1024
MASTERS = "systemctl show --property MainPID --value dovecot; cat /var/spool/postfix/pid/master.pid"


def processes(host: Host) -> tuple[str, str]:
    """Process numbers of the services' masters and of the validator."""
    return host.check_output(MASTERS), host.check_output("supervisorctl pid mx-validator")


def size_offered(mx: Mx) -> int:
    with mx.smtp() as session:
        return int(session.esmtp_features["size"])


def works(mx: Mx, platform: StubClient, domain: str) -> None:
    """Mail for an authorised domain comes through, for a foreign one it does not."""
    platform.answer(domain, "allow")
    mx.empty()
    assert mx.send(f"a@{domain}", MESSAGE).code == 250
    assert mx.fetch_when(1)[0].original_to == f"a@{domain}"
    assert mx.rcpt(f"a@foreign.{domain}").code == 554


@pytest.fixture
def back(site: Callable[..., Any]) -> Any:
    """Bring the host back to the inventory's values after the test."""
    yield
    site()
    assert site().recap["changed"] == 0


@pytest.mark.usefixtures("back")
def test_message_size_changes_one_file_and_reloads_one_service(
    host: Host, mx: Mx, site: Callable[..., Any]
) -> None:
    before = processes(host)
    run = site(postfix_message_size_limit=10 * MEBIBYTE)
    assert run.changed == {
        "postfix : configure | Render main.cf",
        "postfix : run | Look for files newer than what Postfix runs with",
        "postfix : Reload Postfix",
        "postfix : Remember what Postfix runs with",
    }
    assert size_offered(mx) == 10 * MEBIBYTE
    assert processes(host) == before


@pytest.mark.usefixtures("back")
def test_password(mx: Mx, site: Callable[..., Any]) -> None:
    changed = Mx(
        mx.address, mx.hostname, mx.username, "another long password: äöü".replace("äöü", "!")
    )
    run = site(catchall_password=changed.password)
    assert changed.password not in run.output
    assert eventually(changed.count, lambda seen: seen >= 0) >= 0
    with pytest.raises(imaplib.IMAP4.error, match=r"(?i)authentication failed"):
        mx.count()


@pytest.mark.usefixtures("back")
def test_api_key_is_reloaded_without_a_restart(
    host: Host, mx: Mx, platform: StubClient, domain: str, site: Callable[..., Any]
) -> None:
    before = processes(host)
    run = site(oempro_admin_api_key="another-key")
    assert "another-key" not in run.output
    assert mx.rcpt(f"a@{domain}").code == 451
    assert [request["authorized"] for request in platform.requests()] == [False]
    assert processes(host) == before


@pytest.mark.usefixtures("back")
def test_protocols(mx: Mx, site: Callable[..., Any]) -> None:
    site(dovecot_protocols=["imap", "pop3s"])
    with pytest.raises(ConnectionRefusedError):
        mx.count()
    trust = ssl.create_default_context()
    trust.check_hostname = False
    trust.verify_mode = ssl.CERT_NONE
    with imaplib.IMAP4(mx.address) as session:
        assert "LOGINDISABLED" in session.capabilities
        with pytest.raises(imaplib.IMAP4.error):
            session.login(mx.username, mx.password)
        session.starttls(trust)
        session.login(mx.username, mx.password)
    mx.fetch_pop3()


@pytest.mark.usefixtures("back")
def test_host_name(
    host: Host, mx: Mx, platform: StubClient, domain: str, site: Callable[..., Any]
) -> None:
    key = host.check_output("openssl pkey -in /etc/oempro-mx/tls/mx.pem -pubout")
    renamed = Mx(mx.address, "renamed.example.com", mx.username, mx.password)
    site(mx_hostname=renamed.hostname)
    certificate = ssl.get_server_certificate((mx.address, 993))
    assert "renamed.example.com" in host.check_output(
        "echo %s | openssl x509 -noout -ext subjectAltName", certificate
    )
    assert host.check_output("openssl pkey -in /etc/oempro-mx/tls/mx.pem -pubout") == key
    assert renamed.rcpt("abuse@renamed.example.com").code == 250
    works(renamed, platform, domain)


@pytest.mark.usefixtures("back")
def test_extra_parameters(mx: Mx, site: Callable[..., Any]) -> None:
    site(postfix_extra_parameters={"smtpd_banner_delay": "0"}, check=False)
    run = site(postfix_extra_parameters={"smtpd_recipient_limit": 2})
    assert "postfix : Reload Postfix" in run.changed
    with mx.smtp() as session:
        session.command("MAIL FROM:<>")
        codes = [session.command(f"RCPT TO:<postmaster@{mx.hostname}>").code for _ in range(3)]
    assert codes == [250, 250, 452]


WRONG = (
    ({"postfix_extra_parameters": {"mydestination": "example.com"}}, "mydestination"),
    ({"postfix_extra_parameters": {"no_such_parameter": "1"}}, "no_such_parameter"),
    ({"postfix_extra_parameters": {"smtpd_timeout": "soon"}}, "smtpd_timeout"),
    ({"postfix_message_size_limit": 12}, "postfix_message_size_limit is 12"),
    ({"postfix_queue_lifetime_days": 365}, "postfix_queue_lifetime_days is 365"),
    ({"dovecot_protocols": ["imaps", "jmap"]}, "dovecot_protocols"),
    ({"validator_allow_ttl_seconds": -1}, "allow_ttl_seconds"),
    ({"tls_mode": "magic"}, "tls_mode"),
    ({"catchall_username": "Über user"}, "catchall_username"),
)


@pytest.mark.parametrize(("wrong", "named"), WRONG, ids=[named for _, named in WRONG])
def test_wrong_value_is_named_and_changes_nothing_that_runs(
    host: Host,
    mx: Mx,
    platform: StubClient,
    domain: str,
    site: Callable[..., Any],
    wrong: dict[str, Any],
    named: str,
) -> None:
    before = processes(host)
    run = site(check=False, **wrong)
    assert run.status != 0
    assert named in run.output
    assert processes(host) == before
    works(mx, platform, domain)


def test_run_that_was_cut_off_before_the_reload(mx: Mx, site: Callable[..., Any]) -> None:
    """The file is there, the service has not loaded it: the next run sees that."""
    changed = {"postfix_message_size_limit": 20 * MEBIBYTE}
    site("--skip-tags=postfix_run,postfix_verify", **changed)
    assert size_offered(mx) != 20 * MEBIBYTE
    site(**changed)
    assert size_offered(mx) == 20 * MEBIBYTE
    site()
    assert site().recap["changed"] == 0


DAMAGE = {
    "half the packages": "apt-get -qq purge -y dovecot-pop3d postfix && rm -rf /etc/postfix",
    "no code": "supervisorctl stop mx-validator && rm -rf /opt/mx-validator",
    "no configuration": "rm -rf /etc/mx-validator /etc/dovecot/dovecot.conf /etc/dovecot/users",
    "half a certificate": ": > /etc/oempro-mx/tls/selfsigned/2-chain.pem && : > /etc/oempro-mx/tls/mx.pem",
    "an empty main.cf": ": > /etc/postfix/main.cf",
    "stopped": "systemctl disable --now postfix dovecot supervisor",
    "no drop-in": "rm -rf /etc/systemd/system/supervisor.service.d /var/lib/oempro-mx",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_run_repairs(
    host: Host,
    mx: Mx,
    platform: StubClient,
    domain: str,
    site: Callable[..., Any],
    damage: str,
) -> None:
    host.check_output("export DEBIAN_FRONTEND=noninteractive; " + DAMAGE[damage])
    site()
    works(mx, platform, domain)
    assert site().recap["changed"] == 0
    assert (
        host.check_output("systemctl is-enabled postfix dovecot supervisor").split()
        == ["enabled"] * 3
    )
