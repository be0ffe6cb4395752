"""Whether somebody would be told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from oempro_mx.alarms import memory
from oempro_mx.alarms import settings as alarm_settings
from oempro_mx.alarms.memory import Memory
from oempro_mx.alarms.settings import AlarmSettings
from oempro_mx.model import Finding, ok, warn
from oempro_mx.settings import Settings
from oempro_mx.text import duration

NAME = "alarms"
AGAIN = "systemctl start oempro-mx-alarm"
INTERVALS = 3  # without a look, from which on something is wrong


def look(
    _: Settings,
    config: Path = alarm_settings.DEFAULT_PATH,
    state: Path = memory.DEFAULT_PATH,
) -> Iterator[Finding]:
    """Judge when the timer has looked last, and whether its messages get there."""
    if not config.exists():
        yield ok(NAME, "nobody is told: neither alarm_url nor alarm_command is set")
        return
    settings = AlarmSettings.read(config)
    known = Memory.read(state)
    # The first look comes some time after the timer was set.
    late = time.time() - (known.looked or config.stat().st_mtime)
    failing = [(name, way) for name, way in known.ways.items() if way.error]
    for name, way in failing:
        since = duration(time.time() - way.failing_since)
        yield warn(NAME, f"alarm_{name} cannot be told for {since}: {way.error}", AGAIN)
    if late > INTERVALS * settings.interval_minutes * 60:
        yield warn(NAME, f"nothing has looked for {duration(late)}: nobody would be told", AGAIN)
    elif not failing:
        ways = {"alarm_url": settings.url, "alarm_command": settings.command}
        told = " and ".join(name for name, value in ways.items() if value)
        yield ok(NAME, f"{told} would be told; looked {duration(late)} ago")
