"""Files that differ from those that the services have loaded, as the playbook has recorded them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from oempro_mx.model import Finding, ok, warn
from oempro_mx.settings import Settings

RECORDS = Path("/var/lib/oempro-mx")
SHOWN = 3  # names of files in a line

# As roles/service/files/load-service.py writes it: time of change, SHA-256, name.
_LINE = re.compile(r"(?m)^\d+ ([0-9a-f]{64})  (.+)$")


def differing(records: Path) -> tuple[int, list[str]]:
    """Return how many files are recorded, and the names of those that were changed or deleted."""
    recorded = {
        name: checksum
        for file in sorted(records.glob("*-loaded"))
        for checksum, name in _LINE.findall(file.read_text())
    }
    return len(recorded), [
        name for name, checksum in sorted(recorded.items()) if _checksum(Path(name)) != checksum
    ]


def look(settings: Settings, records: Path = RECORDS) -> Iterator[Finding]:
    """Name the files that somebody else has changed: the next run overwrites them."""
    count, changed = differing(records)
    if not changed:
        yield ok("files", f"the services have loaded the {count} files that are there")
        return
    names = ", ".join(changed[:SHOWN]) + (", ..." if len(changed) > SHOWN else "")
    seen = f"{len(changed)} differ from what the last run wrote and loaded: {names}"
    yield warn("files", seen, settings.playbook)


def _checksum(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""
