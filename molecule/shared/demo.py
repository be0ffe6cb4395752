#!/usr/bin/env python3
"""Watch a bare Debian host become an MX and take its first mail: `demo.py up`, `demo.py down`.

The host is a test host on this machine, the platform its stand-in. Everything else is real: the
playbook over SSH, the bounces over SMTP, the platform's fetching over IMAPS and POP3S.
"""

from __future__ import annotations

import argparse
import contextlib
import imaplib
import json
import os
import poplib
import re
import secrets
import shlex
import shutil
import signal
import smtplib
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platform_stub import StubClient
from probes import TIMEOUT_SECONDS, Message, Mx, Reply, Smtp, unverified

PROJECT = Path(__file__).resolve().parents[2]
TESTHOST = [sys.executable, str(Path(__file__).resolve().with_name("testhost.py"))]

HOST = "mx-demo"
RELEASE = "trixie"
HOSTNAME = "mx-demo.example.com"
STUB_PORT = 8090  # Molecule's stub is on 8080
CONTROL_PORT = STUB_PORT + 1
MAILBOX = "catchall"
STAGES = 6
STOP_SECONDS = 10  # for an interrupted command to end by itself
MARGIN = " " * 6
LINES_SHOWN = 8  # of a message

OUR_DOMAIN = "bounces.example.com"
FOREIGN_ADDRESS = "someone@example.net"


class DemoError(Exception):
    """What differs from what was promised, for the person at the terminal."""


@dataclass(frozen=True)
class Sample:
    """A message that a platform's MX gets all day."""

    name: str
    sender: str
    recipient: str
    text: str

    @property
    def data(self) -> bytes:
        """The message as it goes over the wire."""
        return self.text.lstrip().replace("\n", "\r\n").encode()


BOUNCE = Sample(
    name="bounce (DSN, RFC 3464)",
    sender="",
    recipient=f"Bounce+42=joe=isp.example@{OUR_DOMAIN}",
    text=f"""
From: MAILER-DAEMON@isp.example
To: Bounce+42=joe=isp.example@{OUR_DOMAIN}
Subject: Undelivered Mail Returned to Sender
Date: Mon, 02 Nov 2026 09:30:00 +0000
Message-ID: <dsn-1@isp.example>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="=_dsn"

--=_dsn
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

The mailbox of Jürgen does not exist.
.A line that begins with a dot, and one with blanks at its end: \x20

--=_dsn
Content-Type: message/delivery-status

Reporting-MTA: dns; mail.isp.example
Arrival-Date: Mon, 02 Nov 2026 09:29:58 +0000

Final-Recipient: rfc822; joe@isp.example
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 <joe@isp.example>: Recipient address rejected

--=_dsn
Content-Type: text/rfc822-headers

From: News <news@example.com>
To: joe@isp.example
Subject: November news
Message-ID: <campaign-42@example.com>

--=_dsn--
""",
)
COMPLAINT = Sample(
    name="complaint (ARF, RFC 5965)",
    sender="feedback@isp.example",
    recipient=f"fbl@{OUR_DOMAIN}",
    text=f"""
From: feedback@isp.example
To: fbl@{OUR_DOMAIN}
Subject: FW: November news
Date: Mon, 02 Nov 2026 09:31:00 +0000
Message-ID: <arf-1@isp.example>
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="=_arf"

--=_arf
Content-Type: text/plain; charset=us-ascii

This is an abuse report for a message received from 192.0.2.10.

--=_arf
Content-Type: message/feedback-report

Feedback-Type: abuse
User-Agent: ExampleLoop/1.0
Version: 1
Original-Mail-From: <Bounce+42=joe=isp.example@{OUR_DOMAIN}>
Original-Rcpt-To: <joe@isp.example>
Source-IP: 192.0.2.10

--=_arf
Content-Type: message/rfc822

From: News <news@example.com>
To: joe@isp.example
Subject: November news
Message-ID: <campaign-42@example.com>

This month we have much to tell.

--=_arf--
""",
)


# --- telling ------------------------------------------------------------------------------------


def say(text: str = "", end: str = "\n") -> None:
    print(text, end=end, flush=True)


def tell(text: str, end: str = "\n") -> None:
    """Say something below the heading of a stage."""
    say(textwrap.indent(text, MARGIN), end)


@contextlib.contextmanager
def stage(number: int, text: str) -> Iterator[None]:
    """Say what is done, how far it is, and how long it took."""
    say(f"\n[{number}/{STAGES}] {text}")
    began = time.monotonic()
    yield
    tell(f"done in {time.monotonic() - began:.0f} s")


def show(margin: str, text: str) -> None:
    """Print a text that may be long: its beginning and its last line."""
    lines = text.splitlines()
    if len(lines) > LINES_SHOWN:
        left_out = f"(... {len(lines) - LINES_SHOWN + 1} more lines ...)"
        lines = [*lines[: LINES_SHOWN - 2], left_out, lines[-1]]
    for line in lines:
        tell(f"{margin} {line}")


def require(right: bool, complaint: str) -> None:
    if not right:
        raise DemoError(complaint)


# --- commands -----------------------------------------------------------------------------------


def follow(
    command: list[str], hear: Callable[[str], None] | None = None, **environment: str
) -> str:
    """Run a command and return what it prints; hand each line to `hear`, or show it.

    Raises:
        DemoError: it failed; the message has all that it printed, unless it was shown.
    """
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for us; we pass it on and wait
    )
    assert process.stdout
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            (hear or tell)(line.rstrip("\n"))
        status = process.wait()
    except BaseException:
        stop(process)
        raise
    output = "".join(lines)
    if status != 0:
        unseen = output + "\n" if hear else ""
        raise DemoError(f"{unseen}{shlex.join(command)} ended with status {status}")
    return output


def stop(process: subprocess.Popen[str]) -> None:
    """End a command with all its children."""
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=STOP_SECONDS)
            return


def listing() -> dict[str, Any]:
    """Return the network and the hosts of this checkout."""
    found: dict[str, Any] = json.loads(follow([*TESTHOST, "list"], lambda _: None))
    return found


# --- stages -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo:
    """What the stages have to know of each other."""

    folder: Path  # of the lab
    gateway: str
    mx: Mx
    api_key: str

    @property
    def own(self) -> Path:
        return self.folder / "demo"

    @property
    def inventory(self) -> Path:
        return self.own / "inventory.json"

    @property
    def password_file(self) -> Path:
        return self.own / "mailbox-password"

    @property
    def ssh_options(self) -> str:
        return f"-o UserKnownHostsFile={self.folder}/known_hosts"

    @property
    def control_url(self) -> str:
        return f"http://{self.gateway}:{CONTROL_PORT}"


def prepare() -> Demo:
    """Choose the secrets of a host that is up, in a new folder."""
    lab = listing()
    (address,) = [host["address"] for host in lab["hosts"] if host["name"] == HOST]
    mx = Mx(address, HOSTNAME, MAILBOX, secrets.token_urlsafe(24))
    demo = Demo(Path(lab["folder"]), lab["gateway"], mx, secrets.token_urlsafe(24))
    shutil.rmtree(demo.own, ignore_errors=True)
    demo.own.mkdir(mode=0o700)
    return demo


def write_secret(path: Path, content: str) -> None:
    """Write a file that nobody else can read."""
    path.touch(mode=0o600)
    path.write_text(content)


def write_inventory(demo: Demo) -> None:
    """Write what an operator would put into inventory/."""
    variables = {
        "ansible_host": demo.mx.address,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": f"{demo.folder}/ssh_key",
        "ansible_ssh_common_args": demo.ssh_options,
        "mx_hostname": HOSTNAME,
        "oempro_url": f"http://{demo.gateway}:{STUB_PORT}/",
        "oempro_admin_api_key": demo.api_key,
        "catchall_username": demo.mx.username,
        "catchall_password": demo.mx.password,
    }
    write_secret(demo.inventory, json.dumps({"mx": {"hosts": {HOST: variables}}}, indent=2) + "\n")
    write_secret(demo.password_file, demo.mx.password + "\n")
    tell(str(demo.inventory))


class Progress:
    """Makes one line for each role of what ansible-playbook prints."""

    def __init__(self) -> None:
        playbook = (PROJECT / "playbooks" / "provision.yml").read_text()
        self._roles = re.findall(r"(?m)^ *- role: (\w+)", playbook)
        self._role = ""
        self._tasks = self._changed = 0
        self._began = 0.0

    def hear(self, line: str) -> None:
        heading = re.match(r"(?:TASK|RUNNING HANDLER) \[(\w+) : ", line)
        # The tasks of a role that another one imports count as that one's.
        if heading and heading[1] in self._roles and heading[1] != self._role:
            self.finish()
            self._role = heading[1]
            self._began = time.monotonic()
            self._tasks = self._changed = 0
            number = self._roles.index(self._role) + 1
            tell(f"role {number} of {len(self._roles)}: {self._role:<11}", end="")
        self._tasks += 1 if heading else 0
        self._changed += 1 if self._role and line.startswith("changed: ") else 0

    def finish(self) -> None:
        if self._role:
            seconds = time.monotonic() - self._began
            say(f"{self._tasks:3} tasks, {self._changed:2} changes, {seconds:3.0f} s")
        self._role = ""


def provision(demo: Demo) -> None:
    """Run the playbook."""
    command = Path(sys.executable).with_name("ansible-playbook")
    require(command.exists(), f"{command} is not there: run `make demo`, which installs it")
    progress = Progress()
    tell(f"ansible-playbook -i {demo.inventory} site.yml")
    try:
        follow(
            [str(command), "-i", str(demo.inventory), "site.yml"],
            progress.hear,
            ANSIBLE_CONFIG=str(PROJECT / "ansible.cfg"),
            ANSIBLE_HOME=str(demo.own / "ansible"),
            # A connection to the host of an earlier demo must not be used again.
            ANSIBLE_SSH_CONTROL_PATH_DIR=str(demo.own / "cp"),
            ANSIBLE_NOCOLOR="1",
            ANSIBLE_FORCE_COLOR="0",
            LC_ALL="C.UTF-8",
            PYTHONUNBUFFERED="1",
        )
    except BaseException:
        say()  # a role's line is unfinished
        raise
    progress.finish()


class Transcript(Smtp):
    """An SMTP session that shows what both sides say."""

    def send(self, s: Any) -> None:
        show(">", s if isinstance(s, str) else s.decode())
        super().send(s)

    def getreply(self) -> tuple[int, bytes]:
        code, text = super().getreply()
        lines = text.decode(errors="replace").split("\n")
        for line in lines[:-1]:
            tell(f"< {code}-{line}")
        tell(f"< {code} {lines[-1]}")
        return code, text


@contextlib.contextmanager
def smtp(demo: Demo) -> Iterator[Transcript]:
    """Connect to port 25 as another mail server would."""
    say()
    with Transcript(demo.mx.address, 25, timeout=TIMEOUT_SECONDS) as session:
        session.ehlo("mail.isp.example")
        yield session


def send(demo: Demo, sample: Sample, tls: bool) -> None:
    """Have a sample accepted."""
    tell(f"\n-- a {sample.name}")
    with smtp(demo) as session:
        if tls:
            session.starttls(context=unverified())
            session.ehlo("mail.isp.example")
        session.command(f"MAIL FROM:<{sample.sender}>")
        accepted(session.command(f"RCPT TO:<{sample.recipient}>"))
        accepted(session.message(sample.data))


def accepted(reply: Reply) -> None:
    require(reply.code == 250, f"it should have been accepted, and was answered {reply}")


def talk(demo: Demo, stub: StubClient) -> None:
    """Show what senders see, and what the platform is asked meanwhile."""
    stub.reset()
    stub.answer(OUR_DOMAIN, "allow")
    tell(f"The platform says that {OUR_DOMAIN} is its own, and no other domain.")
    send(demo, BOUNCE, tls=True)
    send(demo, COMPLAINT, tls=False)
    tell("\n-- mail for somebody else's domain")
    with smtp(demo) as session:
        session.command("MAIL FROM:<>")
        reply = session.command(f"RCPT TO:<{FOREIGN_ADDRESS}>")
    wanted = f"554 5.7.1 <{FOREIGN_ADDRESS}>: Relay access denied"
    require(str(reply) == wanted, f"the reply should have been {wanted!r}, and was {str(reply)!r}")

    tell("\nThe platform was asked for the domain alone, and once for each:")
    asked = stub.requests()
    for request in asked:
        tell(f"GET {request['path']}?{request['query']}")
    foreign = FOREIGN_ADDRESS.split("@")[1]
    queries = [f"domain={OUR_DOMAIN}", f"domain={foreign}"]
    require(
        [request["query"] for request in asked] == queries,
        f"the platform should have been asked {' and '.join(queries)}, one question each",
    )


def fetch(demo: Demo) -> None:
    """Fetch both messages as the platform does, and compare."""
    compare("IMAPS, port 993", demo.mx.fetch_when(2))
    compare("POP3S, port 995", demo.mx.fetch_pop3())


def compare(way: str, found: list[Message]) -> None:
    tell(f"\n-- {len(found)} messages over {way}\n")
    require(len(found) == 2, f"2 messages were sent, and {len(found)} fetched")
    by_recipient = {message.original_to: message for message in found}
    for sample in (BOUNCE, COMPLAINT):
        message = by_recipient.get(sample.recipient)
        if message is None:
            raise DemoError(f"no message has X-Original-To: {sample.recipient}")
        require(
            message.return_path == f"<{sample.sender}>",
            f"Return-Path should be <{sample.sender}>, and is {message.return_path}",
        )
        require(
            message.sent == sample.data,
            f"sent was {sample.data!r}, and fetched is {message.sent!r}",
        )
        own = message.raw.removesuffix(message.sent).decode()
        tell(own.rstrip().replace("\r\n", "\n").expandtabs(4))
        show("|", message.sent.decode())
        tell(f"| ({len(message.sent)} bytes, exactly those that were sent)\n")


def how_to_go_on(demo: Demo) -> None:
    ssh = f"ssh -i {demo.folder}/ssh_key {demo.ssh_options} root@{demo.mx.address}"
    login = f'--user "{demo.mx.username}:$(cat {demo.password_file})"'
    say(f"""
The MX is up and stays up. Try it from this machine:

  log in            {ssh}
  send to it        SMTP on {demo.mx.address}, port 25
  allow a domain    curl -X PUT -d '{{"mode": "allow"}}' {demo.control_url}/answers/example.org
  what was asked    curl {demo.control_url}/requests
  read a message    curl --insecure {login} 'imaps://{demo.mx.address}/INBOX;MAILINDEX=1'
  mailbox           {demo.mx.address}, IMAPS on port 993, POP3S on port 995,
                    user {demo.mx.username}, password in {demo.password_file}

On the host:

  mx-validator check {OUR_DOMAIN}
  tail /var/log/postfix.log /var/log/dovecot.log /var/log/mx-validator/mx-validator.log
  postqueue -p

Remove everything: make demo-down""")


# --- commands of the command line ---------------------------------------------------------------


def up() -> None:
    """Show it all, from the bare host on."""
    began = time.monotonic()
    with stage(1, f"Boot a bare Debian 13 host, {HOST}"):
        follow([*TESTHOST, "create", HOST, RELEASE])
        demo = prepare()
        tell(f"{HOST} is {demo.mx.address}; it has sshd and Python, no mail server")
    with stage(2, "Start a stand-in for the platform's API"):
        follow([*TESTHOST, "stub", str(STUB_PORT), demo.api_key])
        stub = StubClient(demo.control_url)
        tell(f"http://{demo.gateway}:{STUB_PORT}/ says no to every domain")
    with stage(3, "Write an inventory"):
        write_inventory(demo)
    with stage(4, "Make it an MX (one to three minutes)"):
        provision(demo)
    with stage(5, "Send it mail"):
        talk(demo, stub)
    with stage(6, "Fetch the mail as the platform does"):
        fetch(demo)
    say(f"\nEverything was as it should be, after {time.monotonic() - began:.0f} s.")
    how_to_go_on(demo)


def down() -> None:
    """Remove every trace."""
    follow([*TESTHOST, "down"])
    say("Removed: hosts, network, firewall rules, processes and files.")


def main() -> int:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="build the host anew and show what it does")
    commands.add_parser("down", help="remove every trace of this checkout's hosts")
    arguments = parser.parse_args()
    try:
        up() if arguments.command == "up" else down()
    except KeyboardInterrupt:
        say("\ndemo: interrupted. `make demo` starts anew, `make demo-down` removes what there is.")
        return 128 + signal.SIGINT
    except (
        DemoError,
        AssertionError,  # a probe saw something else than expected, or not in time
        OSError,
        smtplib.SMTPException,
        imaplib.IMAP4.error,
        poplib.error_proto,
    ) as error:
        say(f"\n{error}\n\ndemo: FAILED, see above. `make demo-down` removes what there is.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
