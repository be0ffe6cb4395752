"""Room for mail: free bytes and inodes where the queue and the mailbox are."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from oempro_mx.commands import run
from oempro_mx.model import Finding, fail, ok, warn
from oempro_mx.settings import Settings
from oempro_mx.text import duration, size

QUEUE = "/var/spool/postfix"
SAMPLES = Path("/run/oempro-mx-space.json")  # lost with a reboot, which is no harm
SAMPLE_SECONDS = 60  # between two of them
KEEP_SECONDS = 86400
LEAST_SECONDS = 600  # over which growth is judged
WARN_SECONDS = 86400  # until nothing is left
SIZE_FACTOR = 1.5  # of the largest message, which smtpd(8) wants free
MIN_FREE_INODES = 10_000  # as the validator has it; of a small file system a tenth

Sample = tuple[float, int]
"""A time, and how many bytes were free."""


class Room(NamedTuple):
    """What a file system has left."""

    free: int
    free_inodes: int
    inodes: int


def room(path: str) -> Room:
    """Return what the file system of a path has left for others than root."""
    figures = os.statvfs(path)
    return Room(figures.f_bavail * figures.f_frsize, figures.f_favail, figures.f_files)


def seconds_left(samples: list[Sample], now: float, free: int, least: int) -> float | None:
    """Return when the room will be used up, going on as since the oldest sample.

    None: it is not getting less, or it is too early to say.
    """
    for then, was_free in samples[:1]:
        if now - then >= LEAST_SECONDS and was_free > free:
            return (free - least) * (now - then) / (was_free - free)
    return None


def judge(path: str, left: Room, least: int, until_full: float | None) -> Finding:
    """Judge the room in a file system, of which `least` bytes have to stay free."""
    name, remedy = f"disk {path}", f"du -xh --max-depth=2 {path} | sort -h | tail"
    least_inodes = min(MIN_FREE_INODES, left.inodes // 10)
    seen = f"{size(left.free)} free, of which {size(least)} stay so"
    if left.inodes:
        seen += f"; {left.free_inodes} free inodes"
    if left.free < least or left.free_inodes < least_inodes:
        return fail(name, f"every sender is told 452: {seen}", remedy)
    if until_full is not None and until_full < WARN_SECONDS:
        return warn(name, f"full in {duration(until_full)}, as it goes: {seen}", remedy)
    if left.free < 2 * least or left.free_inodes < 2 * least_inodes:
        return warn(name, f"nearly full: {seen}", remedy)
    return ok(name, seen)


def look(settings: Settings, samples_file: Path = SAMPLES) -> Iterator[Finding]:
    """Judge each file system once, and remember what is free for the next time."""
    limits = run("postconf", "-h", "queue_minfree", "message_size_limit").split()
    least = max(int(limits[0]), int(int(limits[1]) * SIZE_FACTOR))
    now = time.time()
    remembered = _read(samples_file)
    devices = set()
    for path in (QUEUE, settings.mail_home):
        device = Path(path).stat().st_dev
        if device in devices:
            continue
        devices.add(device)
        left = room(path)
        samples = [each for each in remembered.get(path, []) if now - each[0] < KEEP_SECONDS]
        yield judge(path, left, least, seconds_left(samples, now, left.free, least))
        if not samples or now - samples[-1][0] >= SAMPLE_SECONDS:
            samples.append((now, left.free))
        remembered[path] = samples
    new = samples_file.with_suffix(".new")
    new.write_text(json.dumps(remembered))
    new.rename(samples_file)


def _read(samples_file: Path) -> dict[str, list[Sample]]:
    try:
        read = json.loads(samples_file.read_text())
        return {path: [(float(t), int(f)) for t, f in samples] for path, samples in read.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # they begin anew
        return {}
