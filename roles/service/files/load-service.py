"""Load a service's files unless they are the ones that it has loaded, and wait until it answers.

What a service has loaded is recorded in /var/lib/oempro-mx/NAME-loaded: for each file the time of
its last change, its SHA-256 and its name. Times are compared for equality only, so no clock has to
be right; they reveal a file that was changed, loaded by somebody else and then put back. The record
is written last: a run that is cut off before is completed by the next.

Usage: load-service.py STEP, with the service's description in the environment variable SERVICE,
as JSON with the fields of class Service. STEP is one of

    load    enable, start, reload or restart the service if necessary; wait until it answers
    look    only print what `load` would do
    record  only record the files as loaded, for a caller that has loaded them itself

Prints "unchanged" or what was done. If a command fails, its output goes to stderr, and the exit
status is 1.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

RECORDS = Path("/var/lib/oempro-mx")
WAIT_SECONDS = 60
PROBE_SECONDS = 30  # after which one attempt of the probe is ended
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Service:
    """A service as roles/service/README.md describes it; the commands are for the shell."""

    name: str
    unit: str  # of systemd, to be enabled; empty if it has none
    reload_files: list[str]
    restart_files: list[str]
    check: str
    running: str
    reload: str
    restart: str
    probe: str


def shell(command: str, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Run a command; return its exit status, and what it says on stdout and stderr together."""
    return subprocess.run(
        [*prefix, "/bin/sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def require(command: str) -> None:
    """Run a command; end with its output if it fails."""
    done = shell(command)
    if done.returncode != 0:
        sys.exit(f"`{command}` failed with status {done.returncode}:\n{done.stdout}")


def on_disk(paths: list[str]) -> set[str]:
    """Return the record's lines of the files, those below directories included."""
    found = set()
    for path in map(Path, paths):
        for file in (path, *path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                checksum = hashlib.sha256(file.read_bytes()).hexdigest()
                found.add(f"{file.stat().st_mtime_ns} {checksum}  {file}")
    return found


def recorded(service: Service) -> set[str]:
    """Return the record's lines; there are none before the service is loaded first."""
    try:
        return set((RECORDS / f"{service.name}-loaded").read_text().splitlines())
    except FileNotFoundError:
        return set()


def record(service: Service, lines: set[str]) -> None:
    """Replace the record. Checksums of secrets are for root only."""
    RECORDS.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = RECORDS / f"{service.name}-loaded.new"
    new.touch(mode=0o600)
    new.write_text("".join(f"{line}\n" for line in sorted(lines)))
    new.rename(RECORDS / f"{service.name}-loaded")


def disabled(service: Service) -> bool:
    """Return whether the service would not start with the host."""
    unit = service.unit
    return bool(unit) and shell(f"systemctl is-enabled --quiet {unit}").returncode != 0


def needed(service: Service, differing: set[str]) -> str:
    """Return what has to be done to the service, given the lines that differ from the record."""
    if shell(service.running).returncode != 0:
        return "started"
    names = {line.partition("  ")[2] for line in differing}
    for path in service.restart_files:
        if any(name == path or name.startswith(f"{path}/") for name in names):
            return "restarted"
    if names:
        return "reloaded"
    return "enabled" if disabled(service) else "unchanged"


def wait_for_answer(service: Service) -> None:
    """Wait until the probe succeeds; end with its last output if it does not."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (done := shell(service.probe, "timeout", f"{PROBE_SECONDS}")).returncode != 0:
        if time.monotonic() > deadline:
            sys.exit(f"{service.name} does not answer as it should:\n{done.stdout}")
        time.sleep(POLL_SECONDS)


def load(service: Service, action: str) -> None:
    """Do what is needed."""
    if disabled(service):
        require(f"systemctl enable --quiet {service.unit}")
    if action in ("started", "restarted", "reloaded"):
        require(service.check)
        require(service.reload if action == "reloaded" else service.restart)
    wait_for_answer(service)


def main(step: str, service: Service) -> None:
    """Take one step with the service."""
    # Before the service reads them: a file that is changed meanwhile will differ from the record.
    lines = on_disk(service.reload_files + service.restart_files)
    if step == "record":
        record(service, lines)
        return
    differing = lines ^ recorded(service)
    action = needed(service, differing)
    if step == "load":
        load(service, action)
        if differing:
            record(service, lines)
    print(action)


if __name__ == "__main__":
    main(sys.argv[1], Service(**json.loads(os.environ["SERVICE"])))
