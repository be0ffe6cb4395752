"""A 250 is given when the message is on the disk, not before: the system calls of one delivery.

A host that is killed keeps its page cache, so that no disaster would show this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from testinfra.host import Host

from faults import APT, MESSAGE
from platform_stub import StubClient
from probes import Mx, eventually

TRACE = "/run/mx-trace"
CALLS = "fsync,fdatasync,write,pwrite64,writev,sendto,sendmsg,rename,unlink"


@dataclass(frozen=True)
class Call:
    """A process's system call, from the line of the trace where it began to that of its end."""

    pid: str
    began: int
    ended: int
    text: str


def calls(trace: str) -> list[Call]:
    """Put together what strace splits when another process comes between; undo its columns."""
    found = []
    open_calls: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(trace.splitlines()):
        pid, _, text = line.partition(" ")
        text = re.sub(r" *\) += ", ") = ", text.strip())
        if text.endswith("<unfinished ...>"):
            open_calls[pid] = number, text.removesuffix("<unfinished ...>")
        elif resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", text):
            began, start = open_calls.pop(pid)
            found.append(Call(pid, began, number, start.rstrip() + resumed[1].lstrip()))
        else:
            found.append(Call(pid, number, number, text))
    return found


@pytest.fixture
def traced(host: Host) -> Iterator[None]:
    """Trace both masters, with them whatever they start from now on, and the queue manager."""
    host.check_output(f"{APT} install strace")
    running = host.check_output("pgrep -x 'master|dovecot|qmgr'").split()
    host.check_output(
        f"systemd-run --unit=mx-trace strace -f -y -s 80 -o {TRACE} -e trace={CALLS} "
        f"-p {','.join(running)}"
    )
    traced = "grep -L TracerPid:.0 " + " ".join(f"/proc/{pid}/status" for pid in running)
    eventually(lambda: len(host.run(traced).stdout.split()), lambda seen: seen == len(running))
    for name in ("smtpd", "cleanup", "lmtp"):
        host.run(f"pkill -9 -x {name}")  # those that run are not traced
    yield
    host.run(f"systemctl stop mx-trace; rm -f {TRACE}")


@pytest.mark.usefixtures("traced")
def test_on_disk_before_the_250(host: Host, mailbox: Mx, platform: StubClient, domain: str) -> None:
    platform.answer(domain, "allow")
    accepted = mailbox.send(f"a@{domain}", MESSAGE)
    assert accepted.code == 250
    mailbox.fetch_when(1)
    queue_id = accepted.text.rsplit(" ", 1)[1]
    removed = rf'unlink\("active/{queue_id}"\) = 0'
    seen = eventually(
        lambda: calls(host.file(TRACE).content_string),
        lambda found: any(re.match(removed, call.text) for call in found),
    )

    def one(
        pattern: str,
        before: Call | None = None,
        after: Call | None = None,
        by: str | None = None,
    ) -> Call:
        """The last such call, of this process, that ended before, and began after, another."""
        found = [
            call
            for call in seen
            if re.match(pattern, call.text)
            and by in (None, call.pid)
            and (before is None or call.ended < before.began)
            and (after is None or call.began > after.ended)
        ]
        mail = [str(call) for call in seen if re.search(rf"{queue_id}|dbox-Mails|250 2", call.text)]
        assert found, f"no {pattern} between {after} and {before} in:\n" + "\n".join(mail)
        return found[-1]

    # Postfix: the sender has its 250 when the queue file is synced.
    reply = one(rf"\w+\(\d+<socket:.*250 2\.0\.0 Ok: queued as {queue_id}")
    queue_file = rf"\(\d+<[^>]*/incoming/{queue_id}>"
    written = one(f"write{queue_file}", before=reply)
    one(rf"fsync{queue_file}\) = 0", before=reply, after=written)

    # Dovecot: Postfix has its 250 when the message, its name and its index entry are. The sessions
    # that look for the message write to the same index.
    reply = one(r"\w+\(\d+<socket:.*250 2\.0\.0 <catchall@")
    lmtp = reply.pid
    index = r"\(\d+<[^>]*/dbox-Mails/dovecot\.index\.log>"
    named = one(r'rename\(".*/dbox-Mails/\.temp\..*/dbox-Mails/u\.\d+"\) = 0', reply, by=lmtp)
    temporary = re.escape(named.text.split('"')[1])
    written = one(rf"p?write(64)?\(\d+<{temporary}>", before=named, by=lmtp)
    one(rf"fdatasync\(\d+<{temporary}>\) = 0", before=named, after=written, by=lmtp)
    one(r"fdatasync\(\d+<[^>]*/dbox-Mails>\) = 0", before=reply, after=named, by=lmtp)
    indexed = one(rf"p?write(64)?{index}", before=reply, by=lmtp)
    one(rf"fdatasync{index}\) = 0", before=reply, after=indexed, by=lmtp)
    # And only then Postfix lets go of its copy.
    one(removed, after=reply)
