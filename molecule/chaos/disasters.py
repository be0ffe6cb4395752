"""What may happen to a mail server, one thing at a time."""

from __future__ import annotations

import os
import random
import sqlite3
import ssl
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from operators import HANDS
from platform_stub import MODES
from probes import eventually
from scene import Disaster, Scene
from sender import TIMEOUT_SECONDS
from shell import TestHostError, run
from strangers import hostile_senders

POSTFIX_DAEMONS = (
    *("master", "smtpd", "cleanup", "qmgr", "lmtp", "trivial-rewrite", "tlsmgr", "anvil"),
    *("pickup", "postlogd"),
)
DOVECOT_PROCESSES = ("lmtp", "imap", "imap-login", "auth", "anvil", "log", "config", "stats")
# Everything the stub knows but the two answers that count.
AWAY = sorted({*MODES} - {"allow", "deny"})
QUEUE = "var/spool/postfix"
MAILBOX = "var/vmail"
KNOWN_GOOD = "var/lib/mx-validator/known-good.sqlite"
DAMAGED_BYTES = 64
CLOCK = "/run/mx-clock"
CLOCK_JUMPS = ("+2d", "-30d", "+400d", "-1000d", "+0")
CLOCK_UNIT = "/run/systemd/system/supervisor.service.d"


def killed(name: str, command: str) -> Disaster:
    """Kill what runs, as soon as it does."""
    wait = f"timeout 20 sh -c 'until {command}; do sleep 0.1; done'"
    return Disaster(f"SIGKILL {name}", lambda scene: scene.shell(wait))


def platform_away(mode: str) -> Disaster:
    """The platform answers every domain with something that is no answer."""

    def strike(scene: Scene) -> None:
        scene.stub.default(mode)
        scene.hold()
        scene.stub.default("allow")

    return Disaster(f"platform: {mode}", strike)


def platform_gone(scene: Scene) -> None:
    scene.stub.listen(False)
    scene.hold()
    scene.stub.listen(True)


def dovecot_stopped(scene: Scene) -> None:
    """Mail waits; and the daemon that notes why is killed as well."""
    scene.shell(
        "systemctl stop dovecot && timeout 20 sh -c 'until pkill -9 -x bounce; do sleep 0.1; done';"
        "systemctl start dovecot"
    )


def power_off(scene: Scene) -> None:
    scene.host.power_off()
    scene.host.start()
    scene.host.wait_for_ssh()


def disk_full(path: str, what: str) -> Disaster:
    """A file system has next to no room for data, or for files, for a while."""
    option = {"space": "size", "inodes": "nr_inodes"}[what]

    def room(disk: Path) -> tuple[int, int]:
        """All of it, and what is used."""
        found = os.statvfs(disk)
        if what == "inodes":
            return found.f_files, found.f_files - found.f_ffree
        return found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize

    def resize(disk: Path, wanted: int) -> None:
        run("mount", "-o", f"remount,{option}={wanted}", str(disk))

    def shrink(disk: Path, left: int) -> bool:
        """Tell whether it went: not if more has been used since we looked."""
        with suppress(TestHostError):
            resize(disk, room(disk)[1] + left)
            return True
        return False

    def strike(scene: Scene) -> None:
        disk = scene.host.root / path
        before, _ = room(disk)
        left = scene.random.choice((0, 1, 10)) * (1 if what == "inodes" else 4096)
        try:
            eventually(lambda: shrink(disk, left))
            scene.hold()
        finally:
            resize(disk, before)

    return Disaster(f"/{path}: no {what}", strike)


def clock_jumps(scene: Scene) -> None:
    """The validator, and Supervisor, see the time jump while they run."""
    restart = "systemctl daemon-reload && systemctl restart supervisor"
    library = scene.shell("dpkg -L libfaketime | grep '/libfaketime.so.1$'").strip()
    scene.shell(
        f"""mkdir -p {CLOCK_UNIT} && echo +0 > {CLOCK} && cat > {CLOCK_UNIT}/clock.conf <<END
[Service]
Environment=LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={CLOCK}
Environment=FAKETIME_NO_CACHE=1 DONT_FAKE_MONOTONIC=1
END
{restart}"""
    )
    for offset in CLOCK_JUMPS:
        scene.accepted_again()
        scene.shell(f"echo {offset} > {CLOCK}")
        scene.hold()
    scene.shell(f"rm -r {CLOCK_UNIT} {CLOCK} && {restart}")


def network_cut(scene: Scene) -> None:
    """No packet of SMTP gets through, from the middle of somebody's message until he gives up."""
    table = f"{scene.host.lab.table}_cut_{scene.host.index}"
    address = scene.host.address
    scene.senders.dawdle(True)
    eventually(lambda: scene.senders.in_data)
    run(
        *("nft", "-f", "-"),
        stdin=f"""
        table inet {table} {{
          chain to {{
            type filter hook output priority 0
            ip daddr {address} tcp dport 25 drop
          }}
          chain from {{
            type filter hook input priority 0
            ip saddr {address} tcp sport 25 drop
          }}
        }}""",
    )
    try:
        scene.senders.dawdle(False)
        time.sleep(TIMEOUT_SECONDS + 1)
    finally:
        run("nft", "delete", "table", "inet", table)


def certificate_renewed(scene: Scene) -> None:
    """The certificate is made anew, and served."""
    address = (scene.mx.address, 993)
    before = ssl.get_server_certificate(address)
    scene.shell("rm /etc/oempro-mx/tls/selfsigned/chain.pem")
    scene.site("--tags=tls,dovecot,postfix")
    eventually(lambda: ssl.get_server_certificate(address), lambda seen: seen != before)


def known_good_damaged(scene: Scene) -> None:
    """Rows and bytes of the known-good file are spoilt; the daemon starts with what is left."""
    path = scene.host.root / KNOWN_GOOD

    def overwrite(part: Path) -> None:
        size = part.stat().st_size
        with part.open("r+b") as file:
            for _ in range(DAMAGED_BYTES if size else 0):
                file.seek(scene.random.randrange(size))
                file.write(scene.random.randbytes(1))

    def spoil_rows() -> None:
        with closing(sqlite3.connect(path, timeout=TIMEOUT_SECONDS)) as connection, connection:
            rows = eventually(lambda: connection.execute("SELECT id FROM known_good").fetchall())
            for value in ("yesterday", float("-inf"), b"\xff"):
                spoil = "UPDATE known_good SET confirmed = ? WHERE id = ?"
                connection.execute(spoil, (value, *scene.random.choice(rows)))

    def overwrite_bytes() -> None:
        for part in sorted(path.parent.iterdir()):
            overwrite(part)

    for spoil in (spoil_rows, overwrite_bytes):
        # Nobody but the file can say now which domains are the platform's.
        scene.stub.listen(False)
        spoil()
        scene.shell("supervisorctl restart mx-validator")
        scene.hold()
        scene.stub.listen(True)
        scene.accepted_again()


DISASTERS = (
    killed("validator", "pkill -9 -u mx-validator"),
    killed("supervisord", "pkill -9 -x supervisord"),
    *(
        killed(
            f"postfix {name}",
            f"pkill -9 -P 1 -x {name}" if name == "master" else f"pkill -9 -u postfix -x {name}",
        )
        for name in POSTFIX_DAEMONS
    ),
    killed("dovecot", "pkill -9 -P 1 -x dovecot"),
    *(
        killed(f"dovecot/{name}", f'pkill -9 -f "^dovecot/{name}( |$)"')
        for name in DOVECOT_PROCESSES
    ),
    Disaster("dovecot stopped, SIGKILL postfix bounce", dovecot_stopped),
    *(platform_away(mode) for mode in AWAY),
    Disaster("platform: not listening", platform_gone),
    Disaster("power off", power_off),
    *(disk_full(path, what) for path in (QUEUE, MAILBOX) for what in ("space", "inodes")),
    Disaster("clock of the validator jumps", clock_jumps),
    Disaster("network cut in DATA", network_cut),
    Disaster("reprovision", lambda scene: scene.site()),
    Disaster("certificate renewed", certificate_renewed),
    Disaster("known-good file damaged", known_good_damaged),
    Disaster("hostile senders", hostile_senders),
    *HANDS,
)


def plan(seed: int) -> Iterator[Disaster]:
    """Every disaster once in the order that the seed gives, then again in another, without end."""
    order = random.Random(seed)
    while True:
        yield from order.sample(DISASTERS, len(DISASTERS))
