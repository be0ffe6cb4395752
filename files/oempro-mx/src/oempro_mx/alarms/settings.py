"""Whom to tell, as the playbook says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from oempro_mx.settings import SettingsError

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
        try:
            values = json.loads(path.read_bytes())
            return cls(**{each.name: values[each.name] for each in fields(cls)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise SettingsError(f"{path} cannot be used ({reason}): run the playbook") from error
