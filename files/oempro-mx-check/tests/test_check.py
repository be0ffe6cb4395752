"""What needs no host: rules, limits, and a controller that lacks something."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from dns import rdata

from oempro_mx.model import CouldNotLookError, Finding, State
from oempro_mx_check import __version__, domains, host_records, smtp, sts
from oempro_mx_check.names import Names, Records
from oempro_mx_check.settings import Host, Mxs

PROJECT = Path(__file__).resolve().parents[3]
HOST = Host(
    name="mx1",
    hostname="mx1.example.com",
    address="192.0.2.1",
    own_addresses=["192.0.2.1"],
    username="catchall",
    password="secret",
    protocols=["imaps", "pop3s"],
    certificate_mode="selfsigned",
    certificate="",
    status="",
    status_error="",
    known_good=["b.example"],
    listed=["a.example"],
    domains_errors=[],
    playbook="ansible-playbook",
)
MXS = Mxs(
    ["mx1.example.com", "mx2.example.com"], frozenset({"192.0.2.1", "192.0.2.2"}), verifiable=True
)


class FakeNames(Names):
    """DNS that has been told what to say, or to say nothing."""

    def __init__(self, records: dict[tuple[str, str], Records]) -> None:
        self.records = records
        self.asked = 0

    def look_up(self, name: str, kind: str) -> Records:
        self.asked += 1
        if (name, "none") in self.records:
            raise CouldNotLookError("SERVFAIL", f"dig {name} {kind}")
        return self.records.get((name, kind), Records(name, ()))


def test_version_is_the_projects() -> None:
    assert (PROJECT / "VERSION").read_text() == f"{__version__}\n"


def test_password_is_not_shown() -> None:
    assert "secret" not in repr(HOST)


@pytest.mark.parametrize(
    ("mode", "patterns", "verifiable", "states"),
    [
        ("enforce", ["mx1.example.com", "mx2.example.com"], True, []),
        ("enforce", ["*.example.com"], True, []),
        ("enforce", ["*.com"], True, ["FAIL"]),  # a star is one label
        ("enforce", ["example.com"], True, ["FAIL"]),
        ("enforce", [], False, ["FAIL", "FAIL"]),
        ("testing", ["mx1.example.com"], False, ["WARN", "WARN"]),
        ("none", [], False, []),
    ],
)
def test_policy(*, mode: str, patterns: list[str], verifiable: bool, states: list[str]) -> None:
    mxs = dataclasses.replace(MXS, verifiable=verifiable)
    found = sts.judge("d.example", sts.Policy(mode, patterns), mxs)
    assert [each.state.value for each in found] == states


def test_policy_is_read() -> None:
    text = (
        "version: STSv1\r\nmode: enforce\r\nmx: MX1.example.com\r\nmx: *.example.net\r\nmax_age: 9"
    )
    assert sts.parse(text) == sts.Policy("enforce", ["mx1.example.com", "*.example.net"])
    for wrong in ("", "mode: enforce", "version: STSv2\nmode: none", "version: STSv1\nmode: maybe"):
        with pytest.raises(ValueError, match="it has no version"):
            sts.parse(wrong)


def certificate() -> bytes:
    """Return a certificate (DER)."""
    key = "EC -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null"
    command = f"openssl req -x509 -subj /CN=x -outform DER -newkey {key}"
    return subprocess.check_output(command.split(), stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("usage", "selector", "matching", "state"),
    [(3, 1, 1, "OK"), (1, 1, 1, "OK"), (2, 0, 1, "COULD NOT LOOK"), (3, 0, 1, "FAIL")],
)
def test_tlsa(usage: int, selector: int, matching: int, state: str) -> None:
    made = certificate()
    digest = host_records.tlsa_of_key(made).removeprefix("3 1 1 ")
    value = rdata.from_text("IN", "TLSA", f"{usage} {selector} {matching} {digest}")
    name = f"_25._tcp.{HOST.hostname}"
    names = FakeNames({(name, "TLSA"): Records(name, (value,))})
    (finding,) = host_records.look_at_tlsa(HOST, made, names)
    assert finding.state.value == state


def test_many_domains_of_which_nothing_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [f"{number}.example" for number in range(100)]
    names = FakeNames({(name, "none"): Records("", ()) for name in listed})
    findings, well = domains.look([*listed, "bad.example"], MXS, names)
    assert well == 0
    assert [each.state for each in findings].count(State.FAIL) == 1
    assert len(findings) == 1 + domains.SHOWN + 1
    assert findings[-1].seen == "and so are 80 further domains"
    monkeypatch.setattr(domains, "SWEEP_SECONDS", -1.0)
    names.asked = 0
    late, _ = domains.look(listed, MXS, names)
    assert names.asked == 0
    assert "was not looked up" in late[0].seen


def test_port_25_that_nobody_reaches_says_nothing_of_the_host() -> None:
    finding = Finding("SMTP IPv4", State.COULD_NOT_LOOK, "no answer", "nc")
    away = smtp.Conversation("192.0.2.1", connected=False, findings=(finding,))
    assert away.judged(frozenset())[0].state is State.COULD_NOT_LOOK
    assert away.judged(frozenset({"IPv6"}))[0].state is State.COULD_NOT_LOOK
    assert away.judged(frozenset({"IPv4"}))[0].state is State.FAIL


def test_controller_without_dnspython() -> None:
    """A message that says what to install, and where."""
    code = "import sys, runpy; sys.modules['dns'] = None; runpy.run_module('oempro_mx_check')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": "src:../oempro-mx/src"},
        cwd=PROJECT / "files/oempro-mx-check",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"{sys.executable} -m pip install dnspython" in done.stdout
    assert done.stderr == ""
