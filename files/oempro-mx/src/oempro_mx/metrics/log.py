"""Counts what Postfix logs, from where the last look ended."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

LOG = Path("/var/log/postfix.log")
STATE = Path("/var/lib/oempro-mx/metrics.json")

# The beginning of a line: senders decide on much of what comes later.
_BY = r"\S+ +\d+ [\d:]+ \S+ postfix/"
# cleanup(8) logs it once for each message, as soon as it has read the headers.
_ACCEPTED = re.compile(_BY + r"cleanup\[\d+\]: \w+: message-id=")
_REFUSED = re.compile(_BY + r"smtpd\[\d+\]: \w+: reject: \w+ from \S+: (\d{3} \d\.\d+\.\d+) ")
_DELIVERY = re.compile(_BY + r"lmtp\[\d+\]: .*, dsn=\d\.\d+\.\d+, status=(sent|deferred) \(")


@dataclass
class Counts:
    """How often each event was logged, and how far the log was read."""

    inode: int = 0
    offset: int = 0
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by reply code and enhanced code
    deliveries: dict[str, int] = field(default_factory=lambda: {"sent": 0, "deferred": 0})

    @classmethod
    def read(cls, path: Path) -> Counts:
        """Read the file. One that is missing or damaged begins anew, as after a restart."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        """Replace the file. Raises OSError."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)))
        new.replace(path)

    def update(self, log: Path) -> None:
        """Count the lines that were written since, also at the end of a log that was rotated."""
        for file in (log.with_name(f"{log.name}.1"), log):
            with contextlib.suppress(FileNotFoundError):
                self._read_on(file, current=file == log)

    def _read_on(self, file: Path, *, current: bool) -> None:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_ino != self.inode and not current:
                return  # it was read to its end before, or never
            if status.st_ino != self.inode or status.st_size < self.offset:
                self.inode, self.offset = status.st_ino, 0
            stream.seek(self.offset)
            self._count(line.decode(errors="replace") for line in self._whole_lines(stream))

    def _whole_lines(self, stream: Iterable[bytes]) -> Iterator[bytes]:
        for line in stream:
            if not line.endswith(b"\n"):
                return  # it is being written
            self.offset += len(line)
            yield line

    def _count(self, lines: Iterable[str]) -> None:
        refused: Counter[str] = Counter(self.refused)
        deliveries: Counter[str] = Counter(self.deliveries)
        for line in lines:
            if _ACCEPTED.match(line):
                self.accepted += 1
            elif found := _REFUSED.match(line):
                refused[found[1]] += 1
            elif found := _DELIVERY.match(line):
                deliveries[found[1]] += 1
        self.refused, self.deliveries = dict(refused), dict(deliveries)
