"""What each answer of the platform means, seen from SMTP."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from platform_stub import StubClient
from probes import Mx, eventually

LOG = "/var/log/mx-validator/mx-validator.log"
DEFERRED = (
    *("unauthorized", "forbidden", "not_found", "too_many", "error_html", "error_empty"),
    *("error_json", "bad_gateway", "unavailable", "gateway_timeout", "redirect", "ok_html"),
    *("ok_false", "ok_list", "hang", "drip_header", "drip_body", "huge", "reset"),
)


@pytest.mark.parametrize("mode", DEFERRED)
def test_deferred(mx: Mx, platform: StubClient, domain: str, mode: str) -> None:
    platform.answer(domain, mode)
    assert mx.rcpt(f"a@{domain}").code == 451
    # Nothing of it is remembered: the next question gets the platform's word.
    platform.answer(domain, "allow")
    eventually(lambda: mx.rcpt(f"a@{domain}").code, lambda code: code == 250)


def test_deferred_when_the_connection_is_refused(mx: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    platform.listen(False)
    assert mx.rcpt(f"a@{domain}").code == 451
    platform.listen(True)
    assert mx.rcpt(f"a@{domain}").code == 250


def test_redirect_is_not_followed(mx: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "redirect")
    mx.rcpt(f"a@{domain}")
    assert {request["path"] for request in platform.requests()} == {
        "/api/v1/inbound-relay-domain-check"
    }


@pytest.mark.parametrize("mode", ["unauthorized", "forbidden"])
def test_refused_key_is_an_error_in_the_log(
    host: Host, mx: Mx, platform: StubClient, domain: str, mode: str
) -> None:
    platform.answer(domain, "allow")
    mx.rcpt(f"a@{domain}")  # the key is accepted: the log tells of a change
    platform.answer(f"x.{domain}", mode)
    before = host.file(LOG).size
    mx.rcpt(f"a@x.{domain}")
    new = eventually(
        lambda: host.check_output(f"tail -c +{before + 1} {LOG}"), lambda text: "ERROR" in text
    )
    assert "API key" in new
    assert "refused" in new


def test_answers_are_remembered_for_their_time(mx: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    for number in range(5):
        assert mx.rcpt(f"{number}@{domain}").code == 250
    assert platform.count() == 1
    # The inventory says two seconds; then the platform's new word counts.
    platform.answer(domain, "deny")
    eventually(lambda: mx.rcpt(f"a@{domain}").code, lambda code: code == 554)
    platform.answer(domain, "allow")
    eventually(lambda: mx.rcpt(f"a@{domain}").code, lambda code: code == 250)


def test_log_tells_verdict_domain_reason_and_time_but_no_address(
    host: Host, mx: Mx, platform: StubClient, domain: str
) -> None:
    platform.answer(domain, "allow")
    mx.rcpt(f"secret-local-part@{domain}")
    text = eventually(lambda: host.check_output("cat %s", LOG), lambda seen: domain in seen)
    (line,) = [each for each in text.splitlines() if f"domain={domain}" in each]
    assert "verdict=ALLOW" in line
    assert "ms=" in line
    assert "reason=" in line
    assert "secret-local-part" not in text


@pytest.mark.parametrize(
    ("mode", "word", "status"), [("allow", "ALLOW", 0), ("deny", "DENY", 1), ("hang", "DEFER", 75)]
)
def test_check_command(
    host: Host, platform: StubClient, domain: str, mode: str, word: str, status: int
) -> None:
    platform.answer(domain, mode)
    done = host.run("mx-validator check %s", domain)
    assert done.rc == status, done
    assert done.stdout.startswith(f"{domain}: {word} ")
