"""`playbooks/check.yml`: what only somebody outside sees, and the DNS of all domains."""

from __future__ import annotations

import contextlib
import http.server
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.reversename
import pytest
from testinfra.host import Host

from ca import CA
from dns_stub import DnsStub
from platform_stub import StubClient
from probes import eventually

LINE = re.compile(r"^ *(OK|WARN|FAIL|COULD NOT LOOK) +(.{14})  (\S.*)$|^ +-> (.*)$")
HOSTNAMES = ("mx-bookworm.example.com", "mx-trixie.example.com")
PATH = "/.well-known/mta-sts.txt"
POLICY = "version: STSv1\nmode: {mode}\n{mx}max_age: 604800\n"


@dataclass
class Finding:
    """One line of the report, with those below it."""

    state: str
    name: str
    seen: str
    remedies: list[str]


@dataclass
class Report:
    """What the playbook says once."""

    status: int
    findings: list[Finding]

    def bad(self) -> list[Finding]:
        return [each for each in self.findings if each.state != "OK"]

    def one(self, name: str, words: str) -> Finding:
        (found,) = [e for e in self.findings if e.name == name and words in e.seen]
        return found


def parsed(output: str) -> list[Finding]:
    """Return the findings in what a run has printed."""
    found: list[Finding] = []
    for line in output.splitlines():
        if not (match := LINE.match(line)):
            continue
        state, name, seen, remedy = match.groups()
        if remedy is None:
            found.append(Finding(state, name.strip(), seen, []))
        else:
            found[-1].remedies.append(remedy)
    return found


@pytest.fixture
def address(variables: dict[str, Any]) -> str:
    """An address of this machine for the host's DNS server and web server."""
    return str(variables["ansible_host"]).replace("10.99.", "127.99.")


@pytest.fixture
def names(address: str, variables: dict[str, Any]) -> Iterator[DnsStub]:
    """DNS as it has to be for the host itself."""
    stub = DnsStub(address)
    hostname, own, own6 = (
        variables[each] for each in ("mx_hostname", "ansible_host", "testhost_address6")
    )
    for each, kind in ((own, "A"), (own6, "AAAA")):
        stub.publish(f"{hostname}. {kind} {each}")
        stub.publish(f"{dns.reversename.from_address(each)} PTR {hostname}.")
    stub.publish(f'{hostname}. TXT "v=spf1 -all"')
    yield stub
    stub.stop()


@pytest.fixture
def ours(host: Host, names: DnsStub, platform: StubClient, domain: str) -> str:
    """The only domain that is known; its mail comes to both hosts."""
    host.run("mx-validator domains | while read -r _ name; do mx-validator forget $name; done")
    eventually(lambda: not host.check_output("mx-validator domains"))
    platform.answer(domain, "allow")
    for each in HOSTNAMES:
        names.publish(f"{domain}. MX 10 {each}.")
    return domain


@pytest.fixture
def look(site: Callable[..., Any], names: DnsStub, address: str) -> Callable[..., Report]:
    """Run the playbook as an operator does."""
    assert names

    def run(**extra: object) -> Report:
        done = site(
            playbook="playbooks/check.yml", check=False, **{"check_resolvers": [address]} | extra
        )
        report = Report(done.status, parsed(done.output))
        assert report.findings, done.output
        failed = any(each.state == "FAIL" for each in report.findings)
        assert (done.status != 0) == failed, done.output
        assert done.recap["changed"] == 0
        return report

    return run


def test_all_is_well(look: Callable[..., Report], ours: str, host: Host) -> None:
    eventually(lambda: host.run("oempro-mx status").rc, lambda code: code == 0)
    report = look()
    assert report.bad() == []
    names = {each.name for each in report.findings}
    assert {
        f"{each} IPv{version}" for each in ("SMTP", "imaps", "pop3s") for version in (4, 6)
    } <= (names)
    assert {"services", "certificate", "PTR", "SPF", "address"} <= names
    assert f"takes mail for {ours}, and no other" in report.one("SMTP IPv4", "").seen
    assert "mail for 1 of 1 domains" in report.one("MX", "").seen


def test_domains_whose_mail_goes_elsewhere(
    look: Callable[..., Report], names: DnsStub, platform: StubClient, ours: str, variables: Any
) -> None:
    here, other = variables["mx_hostname"], "mx.elsewhere.example"
    names.publish(f"alias.{here}. CNAME {here}.")
    names.publish(f"another.{here}. A {variables['ansible_host']}")
    for prefix, *records in (
        ("none",),
        ("elsewhere", f"MX 10 {other}."),
        ("partly", *(f"MX 10 {each}." for each in (*HOSTNAMES, other))),
        ("half", f"MX 10 {HOSTNAMES[0]}."),
        ("names-an-alias", f"MX 10 alias.{here}."),
        ("cname", f"CNAME end.{ours}."),
        ("failing",),
    ):
        platform.answer(f"{prefix}.{ours}", "allow")
        for record in records:
            names.publish(f"{prefix}.{ours}. {record}")
    names.failing.add(f"failing.{ours}")
    seen = {
        f"none.{ours} has no MX record": "FAIL",
        f"mail for elsewhere.{ours} goes to {other}": "FAIL",
        f"some mail for partly.{ours} goes to {other}": "WARN",
        f"half.{ours} does not name {HOSTNAMES[1]}": "WARN",
        f"the MX record of names-an-alias.{ours} names alias.{here}, which is an alias": "FAIL",
        f"cname.{ours} (an alias of end.{ours}) has no MX record": "FAIL",
        f"failing.{ours}: DNS: ": "COULD NOT LOOK",
    }
    report = look()
    for words, state in seen.items():
        assert report.one("MX", words).state == state
    assert len(report.bad()) == len(seen)
    assert "mail for 1 of 8 domains" in report.one("MX", "domains comes to").seen

    names.failing.clear()
    records = [
        remedy.removeprefix("publish: ")
        for finding in report.bad()
        for remedy in finding.remedies
        if remedy.startswith("publish: ")
    ]
    assert f"end.{ours}. MX 10 {HOSTNAMES[0]}." in records  # not at the alias
    for name in {record.split(" ")[0] for record in records}:
        names.withdraw(name.removesuffix("."), "MX")
    for record in [*records, *(f"failing.{ours}. MX 10 {each}." for each in HOSTNAMES)]:
        names.publish(record)
    mended = look()
    assert mended.bad() == []
    assert "mail for 8 of 8 domains" in mended.one("MX", "domains comes to").seen


@pytest.mark.usefixtures("ours")
def test_records_of_the_host(look: Callable[..., Report], names: DnsStub, variables: Any) -> None:
    hostname, own = variables["mx_hostname"], variables["ansible_host"]
    reverse = dns.reversename.from_address(own).to_text(omit_final_dot=True)
    tlsa = f"_25._tcp.{hostname}"
    names.publish(f"{reverse}. PTR stranger.example.")
    names.publish(f'{hostname}. TXT "v=spf1 mx -all"')
    names.publish(f"{tlsa}. TLSA 3 1 1 {'00' * 32}")
    report = look()
    assert {(e.state, e.name) for e in report.bad()} == {
        ("WARN", "PTR"),
        ("WARN", "SPF"),
        ("FAIL", "TLSA"),
    }
    assert report.one("PTR", own).seen == f"{own} is stranger.example, which is not {own}"
    for finding in report.bad():
        (remedy,) = finding.remedies
        names.publish(remedy.removeprefix("publish: "))
    assert look().bad() == []

    names.withdraw(hostname, "A", "AAAA")
    names.withdraw(tlsa)
    names.publish(f"{hostname}. CNAME real.{hostname}.")
    names.publish(f"real.{hostname}. A {own}")
    assert "is an alias (CNAME)" in look().one("address", hostname).seen
    names.withdraw(hostname, "CNAME")
    nowhere = look().one("address", "has no A or AAAA record")
    assert nowhere.state == "FAIL"
    for remedy in nowhere.remedies:
        names.publish(remedy.removeprefix("publish: "))
    assert [each for each in look().bad() if each.name == "address"] == []


def test_dns_that_does_not_answer(look: Callable[..., Report], names: DnsStub, ours: str) -> None:
    """Nothing is said to be missing, and all else is looked at."""
    names.failing.add(".")
    report = look()
    assert {each.state for each in report.bad()} == {"COULD NOT LOOK"}
    assert {each.name for each in report.bad()} == {"address", "PTR", "SPF", "TLSA", "MX"}
    assert report.one("SMTP IPv4", "takes mail for").state == "OK"
    assert report.one("imaps IPv4", "lets catchall in").state == "OK"
    assert report.one("MX", ours).remedies == [f"dig {ours} MX"]


@contextlib.contextmanager
def policies(address: str, authority: CA, texts: dict[str, str]) -> Iterator[None]:
    """Serve the policies of domains, with a certificate of a CA that this machine trusts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = texts[self.headers["Host"].removeprefix("mta-sts.")]
            self.send_response(200 if text and self.path == PATH else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer((address, 443), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain = authority.chain("web", ",".join(f"DNS:mta-sts.{domain}" for domain in texts))
    context.load_cert_chain(chain, authority.folder / "web.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(authority.folder / "root.pem"))
        yield
    server.shutdown()
    server.server_close()


def test_mta_sts(
    look: Callable[..., Report],
    names: DnsStub,
    platform: StubClient,
    ours: str,
    address: str,
    tmp_path: Path,
) -> None:
    right = "".join(f"mx: {each}\n" for each in HOSTNAMES)
    texts = {
        f"{prefix}.{ours}": text
        for prefix, text in {
            "enforced": POLICY.format(mode="enforce", mx=right),
            "elsewhere": POLICY.format(mode="testing", mx="mx: mx.elsewhere.example\n"),
            "wildcard": POLICY.format(mode="testing", mx="mx: *.example.com\n"),
            "none": POLICY.format(mode="none", mx=""),
            "missing": "",
            "nonsense": "no policy at all\n",
        }.items()
    }
    for domain in texts:
        platform.answer(domain, "allow")
        for hostname in HOSTNAMES:
            names.publish(f"{domain}. MX 10 {hostname}.")
        names.publish(f'_mta-sts.{domain}. TXT "v=STSv1; id=1"')
        names.publish(f"mta-sts.{domain}. A {address}")
    with policies(address, CA(tmp_path), texts):
        report = look()
    unreachable = look()
    useless = "has announced a policy that senders cannot use"
    verify = "wants a certificate that senders can verify"
    assert {(each.state, each.seen.partition(", which")[0]) for each in report.bad()} == {
        ("FAIL", f"the policy of enforced.{ours} (enforce) {verify}"),
        ("WARN", f"the policy of elsewhere.{ours} (testing) {verify}"),
        ("WARN", f"the policy of wildcard.{ours} (testing) {verify}"),
        (
            "WARN",
            f"the policy of elsewhere.{ours} (testing) does not name {', '.join(HOSTNAMES)}",
        ),
        ("WARN", f"missing.{ours} {useless}: https://mta-sts.missing.{ours}{PATH} answers 404"),
        (
            "WARN",
            f"nonsense.{ours} {useless}: it has no version STSv1 and mode enforce, testing or none",
        ),
    }
    assert {(each.state, each.name) for each in unreachable.bad()} == {
        ("COULD NOT LOOK", "MTA-STS")
    }
    assert len(unreachable.bad()) == len(texts)


def test_certificate_that_others_verify(
    look: Callable[..., Report],
    site: Callable[..., Any],
    names: DnsStub,
    ours: str,
    address: str,
    tmp_path: Path,
    variables: Any,
) -> None:
    authority = CA(tmp_path)
    provided = {
        "tls_mode": "provided",
        "tls_certificate_file": str(authority.chain("mx", f"DNS:{variables['mx_hostname']}")),
        "tls_private_key_file": str(tmp_path / "mx.key"),
    }
    tags = "--tags=tls,dovecot,postfix,status"
    site(tags, **provided)
    try:
        stranger = look()
        assert {(each.state, each.name) for each in stranger.bad()} == {
            ("FAIL", f"{each} IPv{version}")
            for each in ("SMTP", "imaps", "pop3s")
            for version in (4, 6)
        }
        assert all("that cannot be verified" in each.seen for each in stranger.bad())
        right = "".join(f"mx: {each}\n" for each in HOSTNAMES)
        names.publish(f'_mta-sts.{ours}. TXT "v=STSv1; id=1"')
        names.publish(f"mta-sts.{ours}. A {address}")
        with policies(address, authority, {ours: POLICY.format(mode="enforce", mx=right)}):
            assert look().bad() == []
    finally:
        site(tags)
    names.withdraw(f"_mta-sts.{ours}")
    assert look().bad() == []


def test_mail_that_is_not_taken(
    look: Callable[..., Report], host: Host, platform: StubClient, ours: str
) -> None:
    host.check_output("supervisorctl stop mx-validator")
    report = look()
    for name in ("SMTP IPv4", "SMTP IPv6"):
        finding = report.one(name, f"does not take mail for {ours}: 451")
        assert (finding.state, finding.remedies) == ("FAIL", [f"mx-validator check {ours}"])
        assert report.one(name, "cannot refuse a foreign domain now: 451").state == "WARN"
    (remedy,) = report.one("validator", "STOPPED").remedies
    host.check_output(remedy)
    eventually(lambda: host.run("mx-validator check self-test").rc, lambda code: code == 1)
    assert look().bad() == []

    platform.default("allow")
    eventually(lambda: host.run("mx-validator check foreign.invalid").rc, lambda code: code == 0)
    foreign = look().one("SMTP IPv4", "takes mail for a foreign domain: 250")
    assert (foreign.state, foreign.remedies) == ("FAIL", ["mx-validator check foreign.invalid"])
    platform.default("deny")
    eventually(lambda: host.run("mx-validator check foreign.invalid").rc, lambda code: code == 1)


@pytest.mark.usefixtures("ours")
def test_services_that_do_not_answer(look: Callable[..., Report], host: Host) -> None:
    """From outside it may be the network; on the host it is seen what it is."""
    host.check_output("systemctl stop postfix dovecot")
    report = look()
    for name in ("SMTP IPv4", "SMTP IPv6", "imaps IPv4", "pop3s IPv6"):
        assert report.one(name, "no answer from").state == "COULD NOT LOOK"
    for finding in report.findings:
        if finding.name == "services" and finding.state == "FAIL":
            (remedy,) = finding.remedies
            host.check_output(remedy)
    eventually(look, lambda seen: not seen.bad())


@pytest.mark.usefixtures("ours")
def test_password_that_is_refused(look: Callable[..., Report], host: Host) -> None:
    """Once, since further tries would slow the platform's logins."""
    size = host.file("/var/log/dovecot.log").size
    report = look(catchall_password="not-the-right-password")
    (finding,) = report.bad()
    assert (finding.state, finding.name) == ("FAIL", "imaps IPv4")
    assert "refuses the password of the inventory" in finding.seen
    assert finding.remedies[0].endswith(" --tags dovecot")
    said = host.check_output(f"tail --bytes=+{size + 1} /var/log/dovecot.log")
    assert len(re.findall(r"auth failed, 1 attempts", said)) == 1


@pytest.mark.usefixtures("ours")
def test_another_certificate_than_the_file(
    look: Callable[..., Report], host: Host, variables: Any
) -> None:
    """The file was changed, and the services have not loaded it."""
    mine = "/etc/oempro-mx/tls/mx.pem"
    host.check_output(f"cp -p {mine} /run/mx.pem")
    subject = f"-subj /CN=x -addext subjectAltName=DNS:{variables['mx_hostname']}"
    host.check_output(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 99 {subject}"
        f" -keyout /run/new.key -out /run/new.pem && cat /run/new.key /run/new.pem > {mine}"
    )
    report = look()
    host.check_output(f"cp -p /run/mx.pem {mine}")
    for name in ("SMTP IPv4", "imaps IPv4", "pop3s IPv6"):
        finding = report.one(name, "serves another certificate than the host's file has")
        (remedy,) = finding.remedies
        host.check_output(remedy)
    assert [each for each in look().bad() if " IPv" in each.name] == []


def test_host_that_is_away(look: Callable[..., Report], ours: str) -> None:
    """SSH is closed to the controller; mail comes in as ever."""
    report = look(ansible_port=1)
    status = report.one("status", "oempro-mx status gave no answer")
    assert status.state == "COULD NOT LOOK"
    assert status.remedies[0].startswith("ansible-playbook -i inventory site.yml --limit ")
    assert report.one("address", "").state == "OK"
    assert ours
