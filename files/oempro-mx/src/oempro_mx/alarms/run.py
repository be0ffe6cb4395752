"""One look: remember it, and tell what has changed."""

from __future__ import annotations

import time
from pathlib import Path

from oempro_mx.alarms import levels
from oempro_mx.alarms.memory import DEFAULT_PATH, Memory, Way
from oempro_mx.alarms.message import message
from oempro_mx.alarms.settings import AlarmSettings
from oempro_mx.alarms.ways import ping, ways
from oempro_mx.model import Finding


def look(
    host: str, findings: list[Finding], settings: AlarmSettings, path: Path = DEFAULT_PATH
) -> list[str]:
    """Tell what has changed, each way what it has not been told yet; return what went wrong.

    Raises:
        OSError: the memory cannot be written. What was told now will be told again.
    """
    memory = Memory.read(path)
    worst = levels.worst(findings)
    memory.looks = levels.extended(memory.looks, worst)
    memory.looked = time.time()
    tell = ways(settings)
    memory.ways = {name: memory.ways.get(name, Way()) for name in tell}
    for name, way in memory.ways.items():
        now = {
            each: level
            for each in {*memory.looks, *way.told}
            if (level := levels.settled(way.told.get(each, 0), memory.looks.get(each, [])))
        }
        try:
            if now != way.told:
                tell[name](message(host, way.told, now, worst))
            elif name == "url" and levels.FAILING not in now.values():
                ping(settings.url)
        except OSError as error:
            way.error = str(error)
            way.failing_since = way.failing_since or memory.looked
        else:
            way.told, way.error, way.failing_since = now, "", 0.0
    memory.write(path)
    return [f"alarm_{name}: {way.error}" for name, way in memory.ways.items() if way.error]
