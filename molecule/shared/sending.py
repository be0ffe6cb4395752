"""The mail servers that send, as the programs of their hosts and their clients see them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

import testhost
from collecting import HOST
from probes import Mx, Reply, Smtp


def msmtp(mx: Mx, sender: str, recipient: str, data: bytes) -> Reply:
    """Send a message from the host with the collectors, with a client that is no mail server."""
    options = f"--host={mx.address} --tls=on --tls-certcheck=off --from='{sender}'"
    return handed_over(HOST, f"msmtp {options} -- '{recipient}'", data)


def handed_over(host: str, command: str, data: bytes) -> Reply:
    """Hand a message to a program of a test host; what it says is taken for a refusal."""
    done = subprocess.run(
        testhost.Host(testhost.this_lab(), host).ssh(command),
        input=data.replace(b"\r\n", b"\n"),
        capture_output=True,
        check=False,
    )
    said = (done.stdout + done.stderr).decode(errors="replace")
    return Reply(554 if done.returncode or said else 250, said)


@dataclass(frozen=True)
class Sender:
    """A test host with a mail server that sends."""

    name: str

    def sendmail(self, sender: str, recipient: str, data: bytes) -> Reply:
        """Hand a message to sendmail(1), as cron, PHP and vacation programs do."""
        command = f"sendmail -i -f '{sender or '<>'}' -- '{recipient}'"
        return handed_over(self.name, command, data)

    def submit(self, sender: str, recipient: str, data: bytes) -> Reply:
        """Hand a message to port 25 of the mail server, as its clients do."""
        address = testhost.Host(testhost.this_lab(), self.name).address
        with Smtp(address, 25, timeout=60) as session:
            session.ehlo("client.isp.example")
            outside = not (sender + recipient).isascii()
            for command in (
                f"MAIL FROM:<{sender}> BODY=8BITMIME{' SMTPUTF8' * outside}",
                f"RCPT TO:<{recipient}>",
            ):
                session.send(f"{command}\r\n".encode())
                code, text = session.getreply()
                if code // 100 != 2:
                    return Reply(code, text.decode(errors="replace"))
            return session.message(data)
