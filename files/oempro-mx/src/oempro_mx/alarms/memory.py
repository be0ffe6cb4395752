"""What was seen, and what each way of telling has been told, from one look to the next."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

DEFAULT_PATH = Path("/var/lib/oempro-mx/alarm-told.json")


@dataclass
class Way:
    """One way of telling."""

    told: dict[str, int] = field(default_factory=dict)  # levels by name; a missing one is well
    error: str = ""  # why the last message did not get there; empty if it did
    failing_since: float = 0.0  # in seconds since 1970, if there is an error


@dataclass
class Memory:
    """All that is kept."""

    looked: float = 0.0  # when, in seconds since 1970
    looks: dict[str, list[int]] = field(default_factory=dict)  # levels by name, the last at the end
    ways: dict[str, Way] = field(default_factory=dict)  # by name: url, command

    @classmethod
    def read(cls, path: Path) -> Memory:
        """Read the file. One that is missing or damaged is as none: everything is told again."""
        try:
            values = json.loads(path.read_bytes())
            ways = {name: Way(**way) for name, way in values.pop("ways").items()}
            return cls(**values, ways=ways)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()

    def write(self, path: Path) -> None:
        """Replace the file. Raises OSError."""
        new = path.with_suffix(".new")
        with new.open("w") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
