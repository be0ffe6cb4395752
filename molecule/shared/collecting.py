"""The programs that fetch mail, run on a test host of their own as their users run them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

import shell
import testhost
from probes import Message, Mx, eventually

HOST = "collector"
USER = "admin"  # some refuse to write mail as root
PORTS = {"imap": 993, "pop3": 995}
RUN_SECONDS = 60
FETCHMAIL = """
poll {address} protocol {protocol} port {port} user "{username}" password "{password}"
    ssl no sslcertck fetchall no keep
    mda "sh -c '{store}'"
"""
# It waits for ever for a program that ends before it begins to wait.
GETMAIL = """
[retriever]
type = Simple{kind}SSLRetriever
server = {address}
username = {username}
password = {password}

[destination]
type = MDA_external
path = /bin/sh
arguments = ("-c", "{store}; sleep 0.2")

[options]
delete = true
delivered_to = false
received = false
"""
MBSYNC = """
IMAPStore there
Host {address}
User {username}
Pass {password}
SSLType IMAPS
CertificateFile {directory}/certificate.pem

MaildirStore here
Path {directory}/
Inbox {directory}/inbox

Channel all
Far :there:
Near :here:
Patterns INBOX
Sync PullNew Push
Expunge Both
SyncState *
"""


def host() -> testhost.Host:
    return testhost.Host(testhost.this_lab(), HOST)


@dataclass(frozen=True)
class Collector:
    """A program, and the protocol that it is to use."""

    program: str
    protocol: str

    def start(self, mx: Mx, password: str | None = None) -> Run:
        """Let it fetch and delete all messages that are there."""
        directory = f"/home/{USER}/{uuid.uuid4().hex}"
        values = {
            "address": mx.address,
            "username": mx.username,
            "password": password or mx.password,
            "protocol": self.protocol,
            "kind": self.protocol.upper(),
            "port": PORTS[self.protocol],
            "directory": directory,
            "store": f"cat > {directory}/new/$(cat /proc/sys/kernel/random/uuid)",
        }
        command = getattr(self, f"_{self.program}")(values)
        prepare = f"umask 077 && mkdir -p {directory}/new {directory}/cur {directory}/tmp"
        script = shlex.quote(f"{prepare} && cd {directory} && {command}")
        process = subprocess.Popen(
            host().ssh(f"timeout {RUN_SECONDS} runuser -u {USER} -- sh -c {script}"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Run(process, host().root / directory[1:])

    def _php(self, values: dict[str, object]) -> str:
        mailbox = "{{{address}:{port}/{protocol}/ssl/novalidate-cert}}INBOX".format(**values)
        arguments = (mailbox, values["username"], values["password"], f"{values['directory']}/new")
        return f"php /usr/local/lib/collect.php {shlex.join(map(str, arguments))}"

    def _fetchmail(self, values: dict[str, object]) -> str:
        return self._configured(
            FETCHMAIL, values, "fetchmail --fetchmailrc {} --nodetach --pidfile pid --idfile ids"
        )

    def _getmail(self, values: dict[str, object]) -> str:
        return self._configured(GETMAIL, values, "getmail --getmaildir . --rcfile {}")

    def _mbsync(self, values: dict[str, object]) -> str:
        certificate = (
            "openssl s_client -connect {address}:993 </dev/null 2>/dev/null | openssl x509 "
            "> {directory}/certificate.pem"
        ).format(**values)
        # It deletes there what was deleted here.
        sync = "mbsync --config {0} --all && mv inbox/new/* new && mbsync --config {0} --all"
        return f"{certificate} && {self._configured(MBSYNC, values, sync)}"

    @staticmethod
    def _configured(template: str, values: dict[str, object], command: str) -> str:
        path = f"{values['directory']}/configuration"
        text = shlex.quote(template.format(**values))
        return f"printf %s {text} > {path} && {command.format(path)}"


@dataclass(frozen=True)
class Run:
    """One run of a collector."""

    process: subprocess.Popen[str]
    directory: Path

    def end(self) -> str:
        """Wait until it has ended; return what it said."""
        return self.process.communicate()[0]

    def kill(self) -> None:
        """Kill it as soon as it has fetched something."""
        eventually(lambda: next(self.directory.rglob("new/*"), None))
        # The host is a container: its processes are this machine's, too.
        for pid in shell.processes(lambda words: self.directory.name in " ".join(words)):
            if pid != self.process.pid:
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGKILL)
        said = self.end()
        assert self.process.returncode != 0, said

    def messages(self) -> list[Message]:
        """Return what it has fetched, when it has ended well."""
        said = self.end()
        assert self.process.returncode == 0, said
        return self.stored()

    def stored(self) -> list[Message]:
        """Return what it has fetched so far."""
        return [Message(as_sent(path.read_bytes())) for path in self.directory.rglob("new/*")]


def as_sent(data: bytes) -> bytes:
    """Return a message as SMTP has it.

    Most programs store line feeds, mbsync and getmail add a header, and getmail folds long ones.
    """
    lines = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    lines = re.sub(rb"\r\nX-(TUID|getmail-[a-z-]+): [^\r]*", b"", lines, count=1)
    return re.sub(rb"\r\nX-Original-To: *\r\n ", b"\r\nX-Original-To: ", lines, count=1)
