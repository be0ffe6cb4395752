"""Where the certificate comes from, and that no wrong one gets to the services."""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from acme_server import AcmeServer
from ca import CA
from platform_stub import StubClient
from probes import Mx, eventually, unverified

MASTERS = "systemctl show --property MainPID --value dovecot; cat /var/spool/postfix/pid/master.pid"
PEM = "/etc/oempro-mx/tls/mx.pem"
INSTALL = Path(__file__).resolve().parents[3] / "roles/tls/files/install-certificate"
RENEW = "certbot renew --quiet --force-renewal --no-random-sleep-on-renew"
TAGS = "--tags=tls,dovecot,postfix"
ACME_TAGS = "--tags=firewall,tls,dovecot,postfix"

DNS_HOOK = """#!/bin/sh
# Tells the test's DNS server; "auth" publishes the record, "cleanup" takes it away.
case $1 in auth) do=set-txt ;; cleanup) do=clear-txt ;; esac
exec python3 -c "import urllib.request as r, sys; r.urlopen(sys.argv[1], sys.argv[2].encode())" \\
    URL/$do '{"host": "_acme-challenge.'$CERTBOT_DOMAIN'.", "value": "'$CERTBOT_VALIDATION'"}'
"""


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], AcmeServer]]:
    """The ACME server; it is started on the address it is asked for first."""
    started: list[AcmeServer] = []

    def server(address: str) -> AcmeServer:
        if not started:
            started.append(AcmeServer(tmp_path_factory.mktemp("acme"), address).__enter__())
        return started[0]

    yield server
    for each in started:
        each.__exit__()


@pytest.fixture
def server(acme: Callable[[str], AcmeServer], variables: dict[str, Any], mx: Mx) -> AcmeServer:
    """The ACME server, which knows the host's address."""
    running = acme(variables["testhost_gateway"])
    running.resolve(mx.hostname, mx.address)
    return running


def acme_variables(server: AcmeServer, **more: str) -> dict[str, str]:
    return {
        "tls_mode": "acme",
        "tls_acme_directory_url": server.directory_url,
        "tls_acme_ca_file": str(server.ca_file),
        **more,
    }


def trusting(root: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(root))


def certificates(mx: Mx, context: ssl.SSLContext) -> set[bytes]:
    """Return what 25, 993 and 995 show, verified as the context does."""
    shown = set()
    for port in (993, 995):
        with (
            socket.create_connection((mx.address, port), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname=mx.hostname) as wrapped,
        ):
            shown.add(wrapped.getpeercert(binary_form=True) or b"")
    with smtplib.SMTP(mx.address, 25, timeout=30) as session:
        session._host = mx.hostname  # type: ignore[attr-defined]  # the name to verify
        session.starttls(context=context)
        assert isinstance(session.sock, ssl.SSLSocket)
        shown.add(session.sock.getpeercert(binary_form=True) or b"")
    return shown


def one_certificate(mx: Mx, context: ssl.SSLContext) -> bytes:
    shown = certificates(mx, context)
    assert len(shown) == 1
    return shown.pop()


def readable_keys(host: Host) -> str:
    """Files below the folders of keys and certificates that others than root may read."""
    assert host.file(PEM).mode == 0o600
    folders = "$(ls -d /etc/oempro-mx/tls/* /etc/letsencrypt/archive /etc/letsencrypt/accounts)"
    return str(host.check_output(f"find {folders} -type f -name '*key*' -perm /077"))


def key(host: Host) -> str:
    return str(host.check_output(f"openssl pkey -in {PEM} -pubout"))


# -- acme ---------------------------------------------------------------------


def test_acme(host: Host, mx: Mx, site: Callable[..., Any], server: AcmeServer) -> None:
    run = site(ACME_TAGS, **acme_variables(server))
    one_certificate(mx, trusting(server.root))
    assert readable_keys(host) == ""
    # Such a short time left means that renewals have failed.
    assert "fewer than 20 days left" in run.said
    assert site(ACME_TAGS, **acme_variables(server)).recap["changed"] == 0
    assert host.check_output("systemctl is-active certbot.timer") == "active"


def test_renewal_is_live_without_a_restart(
    host: Host, mx: Mx, server: AcmeServer, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    before = one_certificate(mx, trusting(server.root))
    same = host.check_output(MASTERS), key(host)
    with mx.smtp() as smtp, mx.imap() as imap:
        host.check_output(f"REQUESTS_CA_BUNDLE=/etc/oempro-mx/tls/acme/ca.pem {RENEW}")
        assert eventually(lambda: one_certificate(mx, trusting(server.root))) != before
        assert smtp.command("MAIL FROM:<>").code == 250
        assert smtp.command(f"RCPT TO:<a@{domain}>").code == 250
        assert smtp.message(b"Subject: x\r\n\r\nx\r\n").code == 250
        assert imap.noop()[0] == "OK"
    assert (host.check_output(MASTERS), key(host)) == same


def test_failed_renewal_keeps_the_certificate_and_says_so(
    host: Host, mx: Mx, server: AcmeServer, site: Callable[..., Any]
) -> None:
    before = one_certificate(mx, unverified())
    server.stop()
    assert host.run("systemctl start certbot").rc != 0
    assert host.check_output("systemctl is-failed certbot || true") == "failed"
    assert "Failed to renew certificate oempro-mx" in host.check_output("journalctl -u certbot")
    other = {"tls_acme_email": "postmaster@example.com"}
    run = site("--tags=tls", check=False, **acme_variables(server, **other))
    assert run.status != 0
    assert f"{server.directory_url} gave no certificate for {mx.hostname}" in run.said
    server.start()
    # It keeps nothing on disk, and so has forgotten us.
    host.check_output("rm -r /etc/letsencrypt/accounts")
    assert one_certificate(mx, unverified()) == before
    host.check_output("systemctl reset-failed certbot")


def test_name_proven_by_dns(
    mx: Mx, server: AcmeServer, site: Callable[..., Any], tmp_path: Path
) -> None:
    before = one_certificate(mx, unverified())
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\necho 'the DNS server is away' >&2\nexit 1\n")
    run = site("--tags=tls", check=False, **acme_variables(server, tls_acme_dns_hook=str(hook)))
    assert run.status != 0
    assert "the DNS server is away" in run.said
    assert one_certificate(mx, unverified()) == before
    hook.write_text(DNS_HOOK.replace("URL", server.dns_control_url))
    site(ACME_TAGS, **acme_variables(server, tls_acme_dns_hook=str(hook)))
    assert one_certificate(mx, trusting(server.root)) != before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((mx.address, 80), timeout=10)


def test_half_a_renewed_certificate_is_not_taken(host: Host, mx: Mx, server: AcmeServer) -> None:
    before = one_certificate(mx, trusting(server.root))
    lineage = "/root/lineage"
    host.check_output(f"cp -rL /etc/letsencrypt/live/oempro-mx {lineage}")
    host.check_output(f"truncate --size=-200 {lineage}/fullchain.pem")
    hook = f"/usr/local/lib/oempro-mx/deploy-certificate {mx.hostname} {PEM}"
    done = host.run(f"RENEWED_LINEAGE={lineage} {hook}")
    assert done.rc == 1
    assert f"in {lineage}/fullchain.pem is damaged" in done.stderr
    assert one_certificate(mx, unverified()) == before
    host.check_output(f"rm -r {lineage}")


# -- provided -----------------------------------------------------------------


def test_provided(host: Host, mx: Mx, site: Callable[..., Any], tmp_path: Path) -> None:
    ca = CA(tmp_path)
    chain = ca.chain("right", f"DNS:{mx.hostname}")
    files = {
        "tls_mode": "provided",
        "tls_certificate_file": str(chain),
        "tls_private_key_file": str(tmp_path / "right.key"),
    }
    run = site(TAGS, **files)
    assert "warning: " not in run.said
    assert readable_keys(host) == ""
    right = one_certificate(mx, trusting(tmp_path / "root.pem"))
    assert not host.file("/etc/letsencrypt/live/oempro-mx").exists  # it cannot be renewed over ours

    ca.chain("other", "DNS:other.example.com")
    ca.chain("ended", f"DNS:{mx.hostname}", days=0)
    swapped = tmp_path / "swapped.pem"
    swapped.write_text("".join((tmp_path / f"{n}.pem").read_text() for n in ("right", "root")))
    certificate = tmp_path / "other.chain.pem"
    run = site(
        "--tags=tls",
        check=False,
        tls_mode="provided",
        tls_certificate_file=str(certificate),
        tls_private_key_file=str(tmp_path / "other.key"),
    )
    assert run.status != 0
    assert f"is for other.example.com, not for {mx.hostname}" in run.said
    assert f"tls_certificate_file ({certificate})" in run.said
    assert one_certificate(mx, unverified()) == right

    # By the script that the role has run: a run of the playbook for each would take minutes.
    for name, key, reason in (
        ("ended.chain.pem", "ended.key", "ended on"),
        ("right.chain.pem", "other.key", "does not belong to the first certificate"),
        ("swapped.pem", "right.key", "is not valid by the one that follows it"),
    ):
        done = host.run(
            "cd $(mktemp -d) && echo %s > key && echo %s > chain && sh -c %s - %s key chain %s",
            (tmp_path / key).read_text(),
            (tmp_path / name).read_text(),
            INSTALL.read_text(),
            mx.hostname,
            PEM,
        )
        assert done.rc == 1
        assert reason in done.stderr
        assert one_certificate(mx, unverified()) == right


def test_weak_key_is_taken_with_a_warning(mx: Mx, site: Callable[..., Any], tmp_path: Path) -> None:
    ca = CA(tmp_path)
    weak = ca.key("weak.key", "RSA -pkeyopt rsa_keygen_bits:2048")
    chain = ca.chain("weak", f"DNS:{mx.hostname}")
    run = site(
        TAGS, tls_mode="provided", tls_certificate_file=str(chain), tls_private_key_file=str(weak)
    )
    assert "the RSA key has 2048 bits: better 3072, or an ECDSA key" in run.said
    one_certificate(mx, trusting(tmp_path / "root.pem"))


# -- and back -----------------------------------------------------------------


def test_selfsigned_again(mx: Mx, site: Callable[..., Any]) -> None:
    before = one_certificate(mx, unverified())
    site(TAGS)
    assert one_certificate(mx, unverified()) != before
    assert site("--tags=tls").recap["changed"] == 0
