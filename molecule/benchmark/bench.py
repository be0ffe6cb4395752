#!/usr/bin/env python3
"""Measures the MX next to its limits, on test hosts of this machine, in one run.

    bench.py [--rounds 5] [--messages 800] [--json FILE]

What is compared is measured by turns, so that a busy minute of the machine hits all alike; figures
are medians, with the smallest and the largest. Ends with 1 if a goal is missed. docs/benchmarks.md
says what each figure means.
"""

from __future__ import annotations

import argparse
import contextlib
import imaplib
import json
import os
import poplib
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "molecule" / "shared")]

import shell  # noqa: E402
import testhost  # noqa: E402
from exporters import scrape  # noqa: E402
from load import MESSAGE, RefusedError, send_all  # noqa: E402 - the line above says where its probes are
from platform_stub import StubClient  # noqa: E402
from probes import Mx, eventually, unverified  # noqa: E402

RELEASE = "trixie"
STUB_PORT = 8094  # Molecule and the demo have the lower ones
LIMIT_PORT = 2525  # of the smtpd that looks domains up in a file
DOMAINS = [f"d{number}.bench.example" for number in range(200)]
BATCH = 100
CYCLES = 9
FILL_SECONDS = 600
SMALL, MIDDLE, LARGE = 1_000, 100_000, 1_000_000  # messages in the mailbox
IDLE_MB, BATCH_RATIO, FIRST_RATIO, SECOND_SECONDS = 120, 2.5, 2.0, 20
WARM_RATIO, DELIVERED_RATIO = 0.95, 0.6
HELD = 10_000  # messages in the queue
SCRAPES_PER_MINUTE = 4
WATCHED_SHARE, WATCHED_RATIO = 0.02, 0.95
MEMORIES_MB = (512, 384, 256, 192, 160, 128, 96)


class Bench:
    """The figures, and what they are measured on."""

    def __init__(self, messages: int, rounds: int) -> None:
        self.messages = messages
        self.rounds = rounds
        self.figures: dict[str, Any] = {}
        self.goals: list[tuple[str, float, str, float]] = []
        lab = testhost.this_lab()
        self.host = testhost.Host(lab, "mx-bench")
        self.twin = testhost.Host(lab, "mx-twin")
        self.lab = lab
        self.variables: dict[str, Any] = {}
        self._number = 0

    # -- telling --------------------------------------------------------------

    def tell(self, name: str, figure: object, unit: str = "") -> None:
        """Print a figure and keep it."""
        self.figures[name] = figure
        shown = spread(figure) if isinstance(figure, list) else figure
        print(f"  {name:<58}{shown!s:>24} {unit}", flush=True)

    def goal(self, name: str, figure: float, relation: str, wanted: float) -> None:
        """Note whether a goal is reached."""
        self.goals.append((name, round(figure, 3), relation, wanted))

    # -- provisioning ---------------------------------------------------------

    def shell(self, command: str, host: testhost.Host | None = None) -> str:
        return shell.run(*(host or self.host).ssh(command))

    def create(self) -> None:
        """Make two bare hosts and the platform."""
        for host in (self.host, self.twin):
            host.create(RELEASE)
        testhost.start_stub(self.lab, STUB_PORT, "benchmark-key")
        self.stub = StubClient(f"http://{self.lab.gateway}:{STUB_PORT + 1}")
        self.stub.default("allow")
        self.stub.answer("relay-probe.invalid", "deny")  # the playbook requires that
        self.mx = Mx(self.host.address, "mx-bench.example.com", "catchall", "benchmark-password")
        variables = {
            "ansible_host": self.host.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.lab.ssh_key),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.lab.known_hosts}",
            "mx_hostname": self.mx.hostname,
            "oempro_url": f"http://{self.lab.gateway}:{STUB_PORT}/",
            "oempro_admin_api_key": "benchmark-key",
            "catchall_password": self.mx.password,
            "firewall_mailbox_sources": [f"{testhost.TESTER}/32"],
            # One address sends everything here, and in C each domain is new.
            "postfix_client_connections_per_minute": 0,
            "validator_api_rate_per_second": 10000,
            "validator_api_burst": 10000,
        }
        self.inventory = self.lab.path / "bench.json"
        self.configure(variables)

    def configure(self, variables: dict[str, Any]) -> None:
        """Set variables in the inventory."""
        self.variables |= variables
        self.inventory.write_text(json.dumps({"mx": {"hosts": {"mx-bench": self.variables}}}))

    def site(self) -> tuple[float, dict[str, float], int]:
        """Run the playbook; return seconds, seconds by role, and how many tasks there were."""
        began = time.monotonic()
        process = subprocess.Popen(
            ["ansible-playbook", f"--inventory={self.inventory}", "site.yml"],
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout
        roles: dict[str, float] = defaultdict(float)
        role, since, tasks, output = "facts", began, 0, []
        for line in process.stdout:
            output.append(line)
            if re.match(r"(TASK|RUNNING HANDLER) \[|PLAY RECAP", line):
                roles[role] += time.monotonic() - since
                since = time.monotonic()
                tasks += line.startswith(("TASK", "RUNNING"))
                named = re.search(r"\[(\w+) : ", line)
                role = named[1] if named else role
        if process.wait() != 0:
            raise SystemExit("".join(output[-40:]))
        self.changed = int(re.findall(r"changed=(\d+)", output[-2] + output[-1])[0])
        return time.monotonic() - began, {k: round(v, 1) for k, v in roles.items()}, tasks

    def provisioning(self) -> None:
        print("\nProvisioning a bare Debian 13 host")
        bare = memory(self.host)
        manual = set(self.shell("apt-mark showmanual").split())
        first, roles, tasks = self.site()
        packages = sorted(set(self.shell("apt-mark showmanual").split()) - manual)
        began = time.monotonic()
        self.shell(
            "apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive apt-get install "
            f"--quiet=2 --yes --no-install-recommends {' '.join(packages)} >/dev/null 2>&1",
            self.twin,
        )
        by_hand = time.monotonic() - began
        seconds, again, tasks_again = self.site()
        self.tell("apt-get install of the same packages, on a twin", round(by_hand, 1), "s")
        self.tell("first run of site.yml", round(first, 1), "s")
        self.tell("first run: tasks", tasks)
        self.tell("first run: seconds by role", roles)
        self.tell("second run of site.yml", round(seconds, 1), "s")
        self.tell("second run: tasks", tasks_again)
        self.tell("second run: changed", self.changed)
        self.tell("second run: seconds by role", again)
        self.figures["packages"] = packages
        eventually(lambda: not self.shell("pgrep -f '[a]nsible' || true"))
        stack = memory(self.host) - bare
        self.tell("memory of the idle stack beyond the bare system (PSS)", round(stack), "MB")
        self.goal("first run / apt-get install", first / by_hand, "<=", FIRST_RATIO)
        self.goal("second run, seconds", seconds, "<=", SECOND_SECONDS)
        self.goal("idle stack, MB", stack, "<=", IDLE_MB)

    # -- mail -----------------------------------------------------------------

    def recipients(self, new_domains: bool, count: int) -> Iterator[str]:
        """As many VERP recipients that were never seen before."""
        for _ in range(count):
            self._number += 1
            domain = DOMAINS[self._number % len(DOMAINS)]
            if new_domains:
                domain = f"n{self._number}.{domain}"
            yield f"bounce+{self._number}=joe=isp.example@{domain}"

    def add_limit(self) -> None:
        """Let a second port look domains up in a file, and do all else like the first."""
        (self.host.root / "etc/postfix/limit").write_text("".join(f"{d} OK\n" for d in DOMAINS))
        rules = self.shell("postconf -xh smtpd_relay_restrictions")
        limit = re.sub(
            r"check_policy_service \{.*?\} *\}",
            "check_recipient_access texthash:/etc/postfix/limit",
            rules.replace("\n", " "),
        )
        first = re.findall(r"(?m)^smtp/inet/(\w+) = (.*)$", self.shell("postconf -P 'smtp/inet/*'"))
        options = " ".join(f"-o {name}={value}" for name, value in first)
        self.shell(
            f"postconf -e 'limit_restrictions = {limit.strip()}' &&"
            f"postconf -M '{LIMIT_PORT}/inet={LIMIT_PORT} inet n - y - 300 smtpd {options} "
            "-o smtpd_relay_restrictions=$limit_restrictions' &&"
            f"nft insert rule inet oempro_mx incoming tcp dport {LIMIT_PORT} accept &&"
            "systemctl reload postfix"
        )

    def queued(self) -> int:
        """How many messages are in the queue."""
        spool = self.host.root / "var/spool/postfix"
        return sum(
            len(files)
            for folder in ("incoming", "active", "deferred")
            for _, _, files in os.walk(spool / folder)
        )

    def stored(self) -> int:
        """How many messages are in the mailbox."""
        folder = self.host.root / "var/vmail/catchall/mail/mailboxes/INBOX/dbox-Mails"
        if not folder.exists():  # before the first message
            return 0
        return sum(entry.name.startswith("u.") for entry in os.scandir(folder))

    def run(self, port: int, new_domains: bool, tls: bool) -> dict[str, float]:
        """Send messages and wait until they are in the mailbox."""
        before, cpu = self.stored(), cpu_seconds(self.host)
        began = time.perf_counter()
        recipients = self.recipients(new_domains, self.messages)
        accepted = send_all((self.host.address, port), recipients, tls)
        meanwhile = self.stored() - before
        eventually(self.queued, lambda left: left == 0, 300)
        delivered = time.perf_counter() - began
        assert self.stored() - before == self.messages, "messages are missing"
        spent = {k: v - cpu[k] for k, v in cpu_seconds(self.host).items()}
        return {
            "accepted": self.messages / accepted,
            "delivered": self.messages / delivered,
            "meanwhile": meanwhile / self.messages,
            **{f"cpu {k}": v / self.messages * 1000 for k, v in spent.items()},
        }

    def throughput(self) -> None:
        print(f"\nMail: {self.messages} messages of {len(MESSAGE)} bytes over 20 connections")
        self.add_limit()
        variants = {"A file": (LIMIT_PORT, False), "B warm": (25, False), "C new": (25, True)}
        self.stub.default("allow", delay_ms=50)
        send_all((self.host.address, 25), iter([f"warm@{d}" for d in DOMAINS]), False)
        eventually(self.queued, lambda left: left == 0, 300)
        rounds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for number in range(self.rounds):
            for tls in (False, True):
                order = list(variants.items())
                for name, (port, new) in order[number % 3 :] + order[: number % 3]:
                    found = self.run(port, new, tls)
                    self.mx.empty()
                    for key, value in found.items():
                        rounds[f"{name}{', STARTTLS' if tls else ''}"][key].append(value)
        units = defaultdict(lambda: "ms of CPU", accepted="/s", delivered="/s", meanwhile="")
        for key in rounds["A file"]:
            for name in sorted(rounds):
                self.tell(f"{name}: {key}", rounds[name][key], units[key])
        for suffix in ("", ", STARTTLS"):
            limit, warm = rounds[f"A file{suffix}"], rounds[f"B warm{suffix}"]
            ratios = [b / a for a, b in zip(limit["accepted"], warm["accepted"], strict=True)]
            self.tell(f"B / A accepted{suffix}", ratios)
            self.goal(f"B / A accepted{suffix}", statistics.median(ratios), ">=", WARM_RATIO)
            parts = [d / a for a, d in zip(warm["accepted"], warm["delivered"], strict=True)]
            self.tell(f"B delivered / accepted{suffix}", parts)
            self.goal(
                f"B delivered / accepted{suffix}", statistics.median(parts), ">=", DELIVERED_RATIO
            )

    # -- mailbox --------------------------------------------------------------

    def fill(self, wanted: int) -> None:
        """Bring the mailbox to so many messages: further names of those that are there."""
        if not self.stored():
            send_all((self.host.address, 25), self.recipients(False, SMALL), False)
            eventually(self.queued, lambda left: left == 0, 300)
        with self.mx.imap(timeout=FILL_SECONDS) as session:
            while (missing := wanted - self.stored()) > 0:
                session.copy(f"1:{min(missing, self.stored())}", "INBOX")
                session.noop()

    def imap_cycle(self) -> tuple[float, float]:
        """Connect, fetch and delete a batch; return the seconds, and the server's memory in MB."""
        began = time.perf_counter()
        with self.mx.imap() as session:
            batch = f"1:{BATCH}"
            parts = session.fetch(batch, "(BODY.PEEK[])")[1]
            assert sum(isinstance(part, tuple) for part in parts) == BATCH
            session.store(batch, "+FLAGS.SILENT", r"(\Deleted)")
            session.expunge()
            took = time.perf_counter() - began
            return took, peak_memory("dovecot/imap")

    def pop3_cycle(self) -> tuple[float, float]:
        """The same over POP3."""
        began = time.perf_counter()
        session = poplib.POP3_SSL(self.mx.address, context=unverified(), timeout=FILL_SECONDS)
        session.user(self.mx.username)
        session.pass_(self.mx.password)
        for number in range(1, BATCH + 1):
            session.retr(number)
            session.dele(number)
        used = peak_memory("dovecot/pop3")
        session.quit()
        return time.perf_counter() - began, used

    def mailbox(self) -> None:
        print(f"\nMailbox: connect, fetch {BATCH}, delete, expunge")
        seconds = {}
        for size in (SMALL, MIDDLE, LARGE):
            cycles = [("IMAP", self.imap_cycle)]
            if size < LARGE:
                cycles.append(("POP3", self.pop3_cycle))
            for protocol, cycle in cycles:
                self.fill(size)
                found = [cycle() for _ in range(CYCLES)]
                name = f"{protocol} at {size:,}"
                seconds[name] = [took * 1000 for took, _ in found]
                self.tell(f"{name}: a cycle", seconds[name], "ms")
                self.tell(f"{name}: server process", round(max(used for _, used in found)), "MB")
        self.fill(LARGE)
        delivered = [self.run(25, False, False)["delivered"] for _ in range(self.rounds)]
        self.tell(f"delivered into a mailbox of {LARGE:,}", delivered, "/s")
        small, large = (statistics.median(seconds[f"IMAP at {n:,}"]) for n in (SMALL, LARGE))
        self.goal(f"IMAP cycle at {LARGE:,} / at {SMALL:,}", large / small, "<=", BATCH_RATIO)

    # -- metrics --------------------------------------------------------------

    def hold(self, count: int) -> None:
        """Fill the queue with messages that nothing delivers."""
        self.shell(
            "postconf -e 'smtpd_data_restrictions = check_client_access static:HOLD' &&"
            "systemctl restart postfix"
        )
        send_all((self.host.address, 25), self.recipients(False, count), False)
        held = self.host.root / "var/spool/postfix/hold"
        assert sum(len(files) for _, _, files in os.walk(held)) == count

    def collect(self, scrapes: int) -> None:
        """Do what the timer does once a minute, and read the exporters."""
        self.shell("systemctl start oempro-mx-metrics")
        for _ in range(scrapes):
            scrape(self.host.address)

    def used_by_collecting(self) -> float:
        """Return the processor time that a minute's collecting takes, in seconds."""
        stat = self.host.cgroup / "cpu.stat"
        began = used_seconds(stat, "usage")
        self.shell("true")  # the connection itself
        between = used_seconds(stat, "usage")
        self.collect(SCRAPES_PER_MINUTE)
        ended = used_seconds(stat, "usage")
        return (ended - between) - (between - began)

    def watched_delivery(self) -> float:
        """Return deliveries a second while the metrics are collected, ten times as often."""
        collecting = threading.Thread(target=self.collect, args=[1])
        collecting.start()
        delivered = self.run(25, False, False)["delivered"]
        collecting.join()
        return delivered

    def watching(self) -> None:
        print(f"\nMetrics: {LARGE:,} messages in the mailbox, {HELD:,} held in the queue")
        self.hold(HELD)
        sources = [f"{testhost.TESTER}/32"]
        self.configure({"monitoring_enabled": True, "firewall_metrics_sources": sources})
        self.site()  # without what was changed above
        self.fill(LARGE)
        self.collect(1)
        shares = [self.used_by_collecting() / 60 for _ in range(self.rounds)]
        alone, watched = [], []
        for _ in range(self.rounds):
            alone.append(self.run(25, False, False)["delivered"])
            watched.append(self.watched_delivery())
        self.tell("of one processor, four scrapes a minute", [100 * each for each in shares], "%")
        self.tell("delivered, not watched", alone, "/s")
        self.tell("delivered, watched", watched, "/s")
        ratio = statistics.median(w / a for w, a in zip(watched, alone, strict=True))
        self.goal("metrics, share of a processor", statistics.median(shares), "<=", WATCHED_SHARE)
        self.goal("delivered, watched / not watched", ratio, ">=", WATCHED_RATIO)

    # -- the smallest host ----------------------------------------------------

    def takes_mail(self) -> bool:
        """Tell whether a sender gets a 250 for a recipient."""
        with contextlib.suppress(OSError):
            return self.mx.rcpt(f"warm@{DOMAINS[0]}").code == 250
        return False

    def smallest(self) -> None:
        """Take memory away until mail no longer gets through."""
        print(f"\nSmallest host: boots, takes {self.messages} messages, gives out {BATCH}")
        self.host.power_off()
        shutil.rmtree(self.host.root / "var/vmail/catchall/mail", ignore_errors=True)
        fits = None
        for megabytes in MEMORIES_MB:
            self.host.start()
            events = limit_memory(self.host, megabytes)
            try:
                eventually(self.takes_mail)
                self.fill(SMALL)
                self.run(25, False, True)
                self.imap_cycle()
                killed = int(re.findall(r"oom_kill (\d+)", events.read_text())[0])
            except (AssertionError, OSError, imaplib.IMAP4.error, RefusedError) as error:
                print(f"  with {megabytes} MB: {str(error)[:200]}")
                break
            finally:
                self.host.power_off()
                if events.parent.exists():  # in version 1, its count goes on from boot to boot
                    events.parent.rmdir()
            if killed:
                print(f"  with {megabytes} MB: the kernel killed {killed} processes")
                break
            fits = megabytes
        self.tell("memory of the smallest host", fits or f"more than {MEMORIES_MB[0]}", "MB")

    # -- the end --------------------------------------------------------------

    def verdict(self) -> bool:
        """Print the goals; tell whether all are reached."""
        print("\nGoals")
        reached = True
        for name, figure, relation, wanted in self.goals:
            holds = figure >= wanted if relation == ">=" else figure <= wanted
            reached = reached and holds
            print(f"  {name:<58}{figure:>12} {relation} {wanted:<8} {'yes' if holds else 'NO'}")
        self.figures["goals"] = self.goals
        return reached


def spread(figures: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(figures):.2f} ({min(figures):.2f}..{max(figures):.2f})"


def peak_memory(name: str) -> float:
    """The most that a process of this name has had in memory, in MB."""
    (pid,) = shell.processes(lambda words: words[0].split(" ")[0] == name)
    status = Path(f"/proc/{pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    assert peak
    return int(peak[1]) / 1024


def memory(host: testhost.Host) -> float:
    """What the host's processes have in memory, shared pages divided (PSS), in MB."""
    total = 0
    for found in host.cgroup.rglob("cgroup.procs"):
        for pid in found.read_text().split():
            with contextlib.suppress(OSError):  # it has just ended
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(re.findall(r"(?m)^Pss:\s+(\d+)", rollup)[0])
    return total / 1024


def limit_memory(host: testhost.Host, megabytes: int) -> Path:
    """Let a host that has just been started have so much; return where the kernel counts kills."""
    keeper = (host.path / "keeper.pid").read_text()
    old = Path("/sys/fs/cgroup/memory")  # version 1 of control groups
    if old.exists():
        group = old / host.machine
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(f"{megabytes}M")
        (group / "cgroup.procs").write_text(keeper)
        return group / "memory.oom_control"
    eventually((host.cgroup / "memory.max").exists)
    (host.cgroup / "memory.max").write_text(f"{megabytes}M")
    return host.cgroup / "memory.events"


def cpu_seconds(host: testhost.Host) -> dict[str, float]:
    """What each service has used of the processors so far, in seconds."""
    used = {}
    for name in ("postfix", "dovecot", "supervisor"):
        (stat,) = host.cgroup.rglob(f"{name}.service/cpu.stat")
        for part in ("user", "system"):
            used[f"{name} {part}"] = used_seconds(stat, part)
    return used


def used_seconds(stat: Path, part: str) -> float:
    """Read what a control group has used of the processors so far, in seconds."""
    found = re.search(rf"{part}_usec (\d+)", stat.read_text())
    assert found
    return int(found[1]) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--messages", type=int, default=800, help="in a round (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--keep", action="store_true", help="leave the hosts up")
    options = parser.parse_args()
    bench = Bench(options.messages, options.rounds)
    try:
        bench.create()
        for part in (
            bench.provisioning,
            bench.throughput,
            bench.mailbox,
            bench.watching,
            bench.smallest,
        ):
            part()
        reached = bench.verdict()
        if options.json:
            options.json.write_text(json.dumps(bench.figures, indent=2) + "\n")
        return 0 if reached else 1
    finally:
        if not options.keep:
            for host in (bench.host, bench.twin):
                testhost.destroy(host)


if __name__ == "__main__":
    sys.exit(main())
