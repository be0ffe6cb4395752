"""Whom to tell, as the playbook says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from oempro_mx.settings import read

DEFAULT_PATH = Path("/etc/oempro-mx/alarm.json")


@dataclass(frozen=True)
class AlarmSettings:
    """The settings, as roles/alarm/templates/alarm.json.j2 writes them."""

    url: str = field(repr=False)  # empty: none
    command: str = field(repr=False)  # for /bin/sh; empty: none
    interval_minutes: int  # between two looks

    @classmethod
    def read(cls, path: Path) -> AlarmSettings:
        """Read the file. Raises SettingsError."""
        return read(cls, path)
