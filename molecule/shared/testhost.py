#!/usr/bin/env python3
"""Bare Debian test hosts on one machine: real systemd, real network address, reached over SSH.

Each host is an overlay over a cached root file system, booted by systemd-nspawn in a network
namespace of its own. All traffic between hosts and to the outside passes the machine's routing,
where an nftables table of the lab counts what each host tries to send to SMTP ports.

A lab is a number N from 1 to 254, the network 10.99.N.0/24 (and fd99:0:0:N::/64), and everything
that bears that number. A checkout has one for each name in MX_LAB, and shares none with another.
Needs root and the Debian packages mmdebstrap, systemd-container, iproute2 and nftables.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images import CHECKOUT, PROVISIONED, RELEASES, bare, layer, remove_old_layers
from shell import TestHostError, kill, locked, processes, run, wait_until

STUB = Path(__file__).resolve().with_name("platform_stub.py")
LABS = Path("/var/lib/oempro-mx-testhosts")
KEPT = "kept"  # the lab of hosts that somebody works with; a scenario has one of its own name
ADMIN = "admin"  # the user who may sudo, for runs that do not log in as root
PLATFORM = "platform.example.com"  # the same name in all labs, so that a copy can go to any

BOOT_SECONDS = 90
STUB_SECONDS = 15
NSPAWN_REBOOT_STATUS = 133  # systemd-nspawn's exit status when the host asked for a reboot
FIRST_ADDRESS = 11  # 10.99.N.11 is the first host, 10.99.N.1 this machine
# What connects to the hosts from this machine comes from these, in all labs.
TESTER, TESTER6 = "10.99.0.1", "fd99::1"
SMTP_PORTS = "25, 465, 587"
DISK = "mode=755,size=16G,nr_inodes=200k"  # a test makes it smaller while the host runs

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


# --- the lab: what belongs to this checkout -----------------------------------------------------


@dataclass(frozen=True)
class Lab:
    """A numbered network and folder of one checkout."""

    number: int
    name: str

    @property
    def path(self) -> Path:
        return LABS / str(self.number)

    def address(self, index: int) -> str:
        return f"10.99.{self.number}.{index}"

    def address6(self, index: int) -> str:
        return f"fd99:0:0:{self.number:x}::{index:x}"

    @property
    def gateway(self) -> str:
        """This machine's address as the hosts see it."""
        return self.address(1)

    @property
    def gateway6(self) -> str:
        return self.address6(1)

    @property
    def table(self) -> str:
        """Name of the nftables table."""
        return f"oempro_mx_testhosts_{self.number}"

    @property
    def interface(self) -> str:
        """Name of the interface that has the gateway's address."""
        return f"mx{self.number}"

    @property
    def ssh_key(self) -> Path:
        return self.path / "ssh_key"

    @property
    def known_hosts(self) -> Path:
        return self.path / "known_hosts"

    def hosts(self) -> list[Host]:
        """Every host of which there is a trace."""
        return [Host(self, found.parent.name) for found in sorted(self.path.glob("*/index"))]


def labs() -> dict[int, tuple[Path, str]]:
    """Return all numbers that are taken, each with its checkout and its name there."""
    found = {}
    for checkout in LABS.glob("*/checkout"):
        name = checkout.with_name("name")  # an older version of this file wrote none
        found[int(checkout.parent.name)] = (
            Path(checkout.read_text()),
            name.read_text() if name.exists() else KEPT,
        )
    return found


def this_lab() -> Lab:
    """Return this checkout's lab of the name in MX_LAB; take a free number if there is none.

    Raises:
        TestHostError: all numbers are taken.
    """
    name = os.environ.get("MX_LAB", KEPT)
    with locked(LABS / "lock"):
        owners = labs()
        for number, owner in owners.items():
            if owner == (CHECKOUT, name):
                return Lab(number, name)
        for number in range(1, 255):
            if number not in owners or not owners[number][0].exists():
                lab = Lab(number, name)
                tear_down(lab)  # what a deleted checkout left behind
                lab.path.mkdir(parents=True)
                (lab.path / "name").write_text(name)
                (lab.path / "checkout").write_text(str(CHECKOUT))
                return lab
    raise TestHostError(f"all 254 networks are taken; delete what is not needed below {LABS}")


def set_up(lab: Lab) -> None:
    """Make what the hosts of the lab share; harmless if it is there."""
    with locked(lab.path / "lock"):
        make_key(lab)
        make_gateway(lab)
        make_rules(lab)
        open_forwarding(lab)


def make_key(lab: Lab) -> None:
    """Make the key with which the hosts are reached."""
    if not lab.ssh_key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(lab.ssh_key))


def make_gateway(lab: Lab) -> None:
    """Give this machine its address in the lab, and let it forward.

    The address has an interface of its own (a bridge without ports: every kernel has it), so that
    it stays when hosts come and go.
    """
    if not Path(f"/sys/class/net/{lab.interface}").exists():
        run("ip", "link", "add", lab.interface, "type", "bridge")
        for address in (lab.gateway, TESTER):
            run("ip", "addr", "add", f"{address}/32", "dev", lab.interface)
        run("ip", "addr", "add", f"{TESTER6}/128", "dev", lab.interface, "nodad")
        run("ip", "link", "set", lab.interface, "up")
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    if forward.read_text().strip() != "1":
        (LABS / "ip_forward_was_off").touch()
        forward.write_text("1")


def make_rules(lab: Lab) -> None:
    """Let the hosts reach the outside; make the chain that counts what they try to send."""
    network = f"10.99.{lab.number}.0/24"
    if lab.table not in run("nft", "list", "tables").split():
        run(
            *("nft", "-f", "-"),
            stdin=f"""
            table inet {lab.table} {{
              chain count {{
                type filter hook prerouting priority -300;
              }}
              chain leave {{
                type nat hook postrouting priority 100;
                ip saddr {network} ip daddr != {network} masquerade
              }}
            }}""",
        )


def forward_rules(lab: Lab) -> list[str]:
    """Handles of our rules in a FORWARD chain that drops by default, as Docker leaves behind."""
    listing = run("nft", "-a", "list", "chain", "ip", "filter", "FORWARD", check=False)
    return re.findall(rf'comment "{lab.table}" # handle (\d+)', listing)


def open_forwarding(lab: Lab) -> None:
    """Let the hosts' packets through where another program drops forwarded ones."""
    listing = run("nft", "list", "chain", "ip", "filter", "FORWARD", check=False)
    if "policy drop" in listing and not forward_rules(lab):
        for side in ("saddr", "daddr"):
            rule = f'ip {side} 10.99.{lab.number}.0/24 accept comment "{lab.table}"'
            run("nft", "insert", "rule", "ip", "filter", "FORWARD", *rule.split())


def tear_down(lab: Lab) -> None:
    """Remove every trace of the lab: hosts, network, firewall rules, files."""
    for host in lab.hosts():
        host.destroy()
    kill(stub_processes(lab))
    run("ip", "link", "del", lab.interface, check=False)
    run("nft", "delete", "table", "inet", lab.table, check=False)
    for handle in forward_rules(lab):
        run("nft", "delete", "rule", "ip", "filter", "FORWARD", "handle", handle)
    shutil.rmtree(lab.path, ignore_errors=True)
    was_off = LABS / "ip_forward_was_off"
    if was_off.exists() and not list(LABS.glob("*/checkout")):
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        was_off.unlink()


# --- the platform's stand-in -------------------------------------------------------------------


def stub_processes(lab: Lab, port: int | None = None) -> list[int]:
    """Return the stubs that run in the lab, or the one on a port."""
    wanted = [str(STUB), f"--address={lab.gateway}", *([f"--port={port}"] if port else [])]
    return processes(lambda words: set(wanted) <= set(words))


def start_stub(lab: Lab, port: int, api_key: str) -> None:
    """Start the platform's stand-in on the gateway, in place of one that runs there.

    Its control port is the one above its port.
    """
    set_up(lab)
    kill(stub_processes(lab, port))
    log = (lab.path / f"stub-{port}.log").open("w")
    subprocess.Popen(
        [
            *(sys.executable, str(STUB), f"--address={lab.gateway}", f"--port={port}"),
            *(f"--control-port={port + 1}", f"--api-key={api_key}"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        cwd="/",
    )
    deadline = time.monotonic() + STUB_SECONDS
    while time.monotonic() < deadline:
        if "ready" in Path(log.name).read_text():
            return
        time.sleep(0.05)
    raise TestHostError("the platform stub did not start:\n" + Path(log.name).read_text())


def nameservers() -> str:
    """Return a resolv.conf that works from another network namespace."""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        found = re.findall(r"^nameserver\s+(\S+)", path.read_text(), re.M) if path.exists() else []
        usable = [each for each in found if not each.startswith(("127.", "::1"))]
        if usable:
            return "".join(f"nameserver {each}\n" for each in usable)
    raise TestHostError("no name server besides loopback in /etc/resolv.conf; add one")


# --- the network of one host --------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network namespace with the addresses of one number, and the cable into it."""

    lab: Lab
    namespace: str
    index: int

    @property
    def address(self) -> str:
        return self.lab.address(self.index)

    @property
    def address6(self) -> str:
        return self.lab.address6(self.index)

    @property
    def link(self) -> str:
        """Name of this machine's end of the cable (at most 15 characters)."""
        return f"mx{self.lab.number}h{self.index}"

    def make(self) -> None:
        """Make it anew."""
        self.remove()
        inside = ("ip", "-n", self.namespace)
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "eth0", "netns", self.namespace)
        for family, gateway, own in (
            ("-4", f"{self.lab.gateway}/32", self.address),
            ("-6", f"{self.lab.gateway6}/128", self.address6),
        ):
            nodad = ["nodad"] if family == "-6" else []
            run("ip", family, "addr", "add", gateway, "dev", self.link, *nodad)
            run(*inside, family, "addr", "add", own, "dev", "eth0", *nodad)
        run("ip", "link", "set", self.link, "up")
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "link", "set", "eth0", "up")
        for family, gateway, own, tester in (
            ("-4", self.lab.gateway, self.address, TESTER),
            ("-6", self.lab.gateway6, self.address6, TESTER6),
        ):
            run("ip", family, "route", "replace", own, "dev", self.link, "src", tester)
            run(*inside, family, "route", "add", gateway, "dev", "eth0")
            run(*inside, family, "route", "add", "default", "via", gateway, "dev", "eth0")

    def remove(self) -> None:
        """Remove every trace of it."""
        run("ip", "link", "del", self.link, check=False)
        run("ip", "netns", "del", self.namespace, check=False)


# --- one host -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """One test host of a lab; its folder holds everything that is known of it."""

    lab: Lab
    name: str

    @property
    def path(self) -> Path:
        return self.lab.path / self.name

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def index(self) -> int:
        return int((self.path / "index").read_text())

    @property
    def network(self) -> Network:
        return Network(self.lab, self.machine, self.index)

    @property
    def address(self) -> str:
        return self.network.address

    @property
    def address6(self) -> str:
        return self.network.address6

    @property
    def machine(self) -> str:
        """Name of the namespace and of the machine in systemd-nspawn's eyes."""
        return f"mx{self.lab.number}-{self.name}"

    @property
    def cgroup(self) -> Path:
        """Folder of the host's control group, in the version 2 hierarchy."""
        mounts = re.search(r"^\S+ (\S+) cgroup2 ", Path("/proc/mounts").read_text(), re.M)
        if not mounts:
            raise TestHostError("no cgroup2 file system is mounted; boot with systemd's default")
        return Path(mounts[1]) / self.machine

    # -- life ---------------------------------------------------------------

    def create(self, release: str) -> None:
        """Make the bare host anew, whatever there was under its name, and wait until it answers."""
        self.make(release, [bare(release)])

    def copy(self, release: str) -> None:
        """Make the host anew as a copy of a provisioned one; provision it if there is none yet."""
        base, provisioned = bare(release), layer(release)
        with locked(PROVISIONED / f"lock-{release}"):
            if not provisioned.exists():
                self.create(release)
                self.provision()
                self.save(provisioned)
            provisioned.touch()
            remove_old_layers(release)
        self.make(release, [provisioned, base])

    def make(self, release: str, layers: list[Path]) -> None:
        """Make the host anew over these layers, the highest first, and boot it."""
        set_up(self.lab)
        self.destroy()
        with locked(self.lab.path / "lock"):
            taken = {host.index for host in self.lab.hosts()}
            index = next(i for i in range(FIRST_ADDRESS, 255) if i not in taken)
            (self.path / "root").mkdir(parents=True)
            (self.path / "index").write_text(str(index))
        (self.path / "release").write_text(release)
        self.mount(layers)
        self.furnish()
        self.count_smtp()
        self.start()
        self.wait_for_ssh()

    def mount(self, layers: list[Path]) -> None:
        for folder in ("upper", "work"):
            (self.path / folder).mkdir()
        lower = ":".join(str(each) for each in layers)
        options = f"lowerdir={lower},upperdir={self.path}/upper,workdir={self.path}/work"
        run("mount", "-t", "overlay", "-o", options, self.machine, str(self.root))

    def provision(self) -> None:
        """Run the playbook against the host, as the test hosts' inventory says.

        Raises:
            TestHostError: it failed; the message has the end of what it printed.
        """
        inventory = CHECKOUT / "molecule" / "inventory"
        done = subprocess.run(
            ["ansible-playbook", f"--inventory={inventory}", f"--limit={self.name}", "site.yml"],
            cwd=CHECKOUT,
            env={**os.environ, "ANSIBLE_CONFIG": "ansible.cfg"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise TestHostError(f"provisioning {self.name} failed:\n{done.stdout[-3000:]}")

    def save(self, kept: Path) -> None:
        """Shut the host down in order, and keep what it has written as a layer for copies."""
        run(*self.ssh("systemctl poweroff"), check=False)  # which ends the connection, too
        wait_until(lambda: not self.processes(), f"{self.name} does not shut down")
        self.power_off()
        run("umount", "--recursive", str(self.root))
        (self.path / "upper").rename(kept)

    def furnish(self) -> None:
        """Give the host its name, keys, name servers and the user who may sudo."""
        run("chroot", str(self.root), "ssh-keygen", "-q", "-A")
        if not (self.root / "home" / ADMIN).exists():  # a copy has the user
            run("chroot", str(self.root), "useradd", "-m", "-s", "/bin/bash", ADMIN)
        key = self.lab.ssh_key.with_suffix(".pub").read_text()
        for home, owner in (("root", "root"), (f"home/{ADMIN}", ADMIN)):
            ssh = self.root / home / ".ssh"
            ssh.mkdir(mode=0o700, exist_ok=True)
            (ssh / "authorized_keys").write_text(key)
            run("chroot", str(self.root), "chown", "-R", f"{owner}:{owner}", f"/{home}/.ssh")
        (self.root / "etc/sudoers.d/admin").write_text(f"{ADMIN} ALL=(ALL) NOPASSWD: ALL\n")
        (self.root / "etc/machine-id").write_text("")
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/hosts").write_text(
            f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n{self.lab.gateway} {PLATFORM}\n"
        )
        resolv = self.root / "etc/resolv.conf"
        resolv.unlink(missing_ok=True)
        resolv.write_text(nameservers())
        host_key = (self.root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
        with locked(self.lab.path / "lock"):
            known = self.lab.known_hosts
            lines = known.read_text().splitlines() if known.exists() else []
            lines = [each for each in lines if each.split()[0] != self.address]
            known.write_text("\n".join([*lines, " ".join([self.address, *host_key])]) + "\n")

    @property
    def counter(self) -> str:
        """Name of the nftables counter of what the host tries to send."""
        return f"smtp_from_{self.index}"

    def count_smtp(self) -> None:
        """Count the connections to SMTP ports that the host tries, from now on."""
        table = ("inet", self.lab.table)
        if self.counter in run("nft", "list", "counters", "table", *table).split():
            run("nft", "reset", "counter", *table, self.counter)
            return
        attempt = (
            f"tcp dport {{ {SMTP_PORTS} }} tcp flags syn / syn,ack counter name {self.counter}"
        )
        rules = [
            f"add counter {' '.join(table)} {self.counter}",
            f"add rule {' '.join(table)} count ip saddr {self.address} {attempt}",
            f"add rule {' '.join(table)} count ip6 saddr {self.address6} {attempt}",
        ]
        run("nft", "-f", "-", stdin="\n".join(rules))

    def smtp_attempts(self) -> int:
        """Return how many connections to SMTP ports the host has tried."""
        listing = run("nft", "-j", "list", "counter", "inet", self.lab.table, self.counter)
        (counter,) = [e["counter"] for e in json.loads(listing)["nftables"] if "counter" in e]
        return int(counter["packets"])

    def start(self) -> None:
        """Boot the host under a keeper process that boots it again after each reboot."""
        with (self.path / "console.log").open("a") as console:
            keeper = subprocess.Popen(
                [sys.executable, *self.keeper],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                cwd="/",
            )
        (self.path / "keeper.pid").write_text(str(keeper.pid))

    @property
    def keeper(self) -> list[str]:
        """The keeper's command line."""
        return [__file__, "keep", self.name, self.machine]

    def keep(self) -> None:
        """Boot, and boot again in a new network namespace as long as the host reboots.

        In a control group of its own: the hosts' systemds would otherwise share theirs, and each
        would wait for the end of the others' services.
        """
        self.cgroup.mkdir(exist_ok=True)
        (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
        status = NSPAWN_REBOOT_STATUS
        while status == NSPAWN_REBOOT_STATUS:
            # A new one: the old one would keep the firewall's rules over a reboot.
            self.network.make()
            status = subprocess.run(
                [
                    *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"),
                    *(f"--directory={self.root}", f"--machine={self.machine}"),
                    *(f"--hostname={self.name}", "--console=read-only"),
                    *("--capability=CAP_NET_ADMIN", "--resolv-conf=off", "--timezone=off"),
                    f"--network-namespace-path=/run/netns/{self.machine}",
                ],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                check=False,
            ).returncode

    def destroy(self) -> None:
        """Remove every trace of the host, running or left over."""
        if not (self.path / "index").exists():
            shutil.rmtree(self.path, ignore_errors=True)
            return
        self.power_off()
        self.network.remove()
        if self.root.is_mount():
            run("umount", "--recursive", str(self.root))
        shutil.rmtree(self.path)

    def power_off(self) -> None:
        """Kill everything on the host at once; start() boots it again."""
        kill(self.processes())
        self.kill_payload()
        # Some kernels kill what a new control group below a killed one begins.
        for folder, _, _ in os.walk(self.cgroup, topdown=False):
            Path(folder).rmdir()

    def give_disk(self, path: str) -> None:
        """Boot the host anew with a folder on a file system of its own, in memory."""
        self.power_off()
        folder = self.root / path.lstrip("/")
        disk = self.path / "disk"
        disk.mkdir()
        run("mount", "-t", "tmpfs", "-o", DISK, self.machine, str(disk))
        run("cp", "-a", f"{folder}/.", str(disk))
        run("mount", "--move", str(disk), str(folder))
        disk.rmdir()
        self.start()
        self.wait_for_ssh()

    def kill_payload(self) -> None:
        """Kill the host's own processes, its init first of all: they outlive systemd-nspawn."""
        if not self.cgroup.exists():
            return
        (self.cgroup / "cgroup.kill").write_text("1")
        events = self.cgroup / "cgroup.events"
        wait_until(
            lambda: "populated 1" not in events.read_text(),
            f"processes in {self.cgroup} do not end; kill them by hand",
        )

    def processes(self) -> list[int]:
        """Return the keeper, which must die first, and systemd-nspawn."""
        machine = f"--machine={self.machine}"
        return processes(lambda words: words[1:5] == self.keeper or machine in words)

    # -- access -------------------------------------------------------------

    def ssh(self, *command: str) -> list[str]:
        """Return the command line that runs a command on the host as root."""
        options = ["-i", str(self.lab.ssh_key), "-o", f"UserKnownHostsFile={self.lab.known_hosts}"]
        return ["ssh", *options, "-o", "BatchMode=yes", f"root@{self.address}", *command]

    def login(self) -> None:
        """Go on as a shell on the host."""
        os.execvp("ssh", self.ssh())

    def wait_for_ssh(self) -> None:
        """Wait until the host has booted and answers.

        Raises:
            TestHostError: it did not in BOOT_SECONDS; the message has the end of the console.
        """
        deadline = time.monotonic() + BOOT_SECONDS
        probe = self.ssh("-o", "ConnectTimeout=2", "systemctl is-system-running --wait")
        while time.monotonic() < deadline:
            done = subprocess.run(probe, capture_output=True, text=True, check=False)
            if done.stdout.strip() in ("running", "degraded"):
                return
            time.sleep(0.2)
        console = (self.path / "console.log").read_text(errors="replace").splitlines()[-30:]
        raise TestHostError(f"{self.name} did not boot in {BOOT_SECONDS} s:\n" + "\n".join(console))

    def facts(self) -> dict[str, str]:
        """Return what an inventory needs to know."""
        return {
            "name": self.name,
            "release": (self.path / "release").read_text(),
            "address": self.address,
            "address6": self.address6,
        }


def list_hosts(lab: Lab) -> str:
    """Return the checkout's network and hosts as JSON."""
    facts = {"gateway": lab.gateway, "gateway6": lab.gateway6, "folder": str(lab.path)}
    return json.dumps({**facts, "hosts": [host.facts() for host in lab.hosts()]})


def tear_down_all(_: Lab) -> None:
    """Remove every trace of all labs of this checkout."""
    for number, (checkout, name) in labs().items():
        if checkout == CHECKOUT:
            tear_down(Lab(number, name))


def destroy(host: Host) -> None:
    """Remove a host, and with the last one all that the hosts shared."""
    host.destroy()
    if not host.lab.hosts():
        tear_down(host.lab)


def host_name(text: str) -> str:
    """Check a host's name on the command line."""
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no host name: use a-z, 0-9 and -")
    return text


def main() -> int:
    """Read the command line and do what it says."""
    # Every command gets the lab and the arguments; what it returns is printed.
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def command(name: str, run: Callable[..., object], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text)
        added.set_defaults(run=run)
        return added

    def host_command(name: str, run: Callable[[Host], object], text: str) -> None:
        added = command(name, lambda lab, a: run(Host(lab, a.name)), text)
        added.add_argument("name", type=host_name)

    for name, make, text in (
        ("create", Host.create, "make a bare host"),
        ("copy", Host.copy, "make a copy of a provisioned host"),
    ):
        added = command(name, lambda lab, a, make=make: make(Host(lab, a.name), a.release), text)
        added.add_argument("name", type=host_name)
        added.add_argument("release", choices=RELEASES)
    host_command("destroy", destroy, "remove a host")
    host_command("wait", Host.wait_for_ssh, "wait until a host has booted")
    keep = command("keep", lambda lab, a: Host(lab, a.name).keep(), "boot a host (used by create)")
    keep.add_argument("name", type=host_name)
    keep.add_argument("machine", help="for whoever looks for the process")
    host_command("login", Host.login, "open a shell on a host")
    disk = command("disk", lambda lab, a: Host(lab, a.name).give_disk(a.path), "give it a disk")
    disk.add_argument("name", type=host_name)
    disk.add_argument("path", help="the folder")
    stub = command("stub", lambda lab, a: start_stub(lab, a.port, a.api_key), "start the platform")
    stub.add_argument("port", type=int)
    stub.add_argument("api_key")
    command("list", lambda lab, _: list_hosts(lab), "print the network and the hosts as JSON")
    host_command("smtp-attempts", Host.smtp_attempts, "print how often a host tried to send mail")
    command(
        "down", lambda lab, _: tear_down_all(lab), "remove every trace of this checkout's hosts"
    )
    arguments = parser.parse_args()

    try:
        if os.geteuid() != 0:
            raise TestHostError("test hosts need root: run this as root")
        result = arguments.run(this_lab(), arguments)
    except TestHostError as error:
        print(f"testhost: {error}", file=sys.stderr)
        return 1
    if result is not None:
        print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
