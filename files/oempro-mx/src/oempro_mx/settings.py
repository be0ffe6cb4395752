"""What the playbook tells the command about this host."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

DEFAULT_PATH = Path("/etc/oempro-mx/status.json")


class SettingsError(Exception):
    """The file of settings cannot be used; the message says why."""


_Kind = TypeVar("_Kind")


def read(kind: type[_Kind], path: Path) -> _Kind:
    """Read a dataclass of settings from a JSON object with its fields. Raises SettingsError."""
    try:
        values = json.loads(path.read_bytes())
        return kind(**{each.name: values[each.name] for each in fields(kind)})  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SettingsError(f"{path} cannot be used ({reason}): run the playbook") from error


@dataclass(frozen=True)
class Settings:
    """The settings, as roles/status/templates/status.json.j2 writes them."""

    hostname: str
    username: str  # with which the platform logs in
    protocols: list[str]  # of Dovecot: imaps, pop3s, imap, pop3
    mail_home: str
    certificate: str
    certificate_mode: str  # selfsigned, provided or acme
    units: list[str]  # of systemd, which must run
    firewall: bool
    queue_minutes: int  # age of the oldest message in the queue from which on it is a failure
    mailbox_minutes: int  # the same for the mailbox
    playbook: str  # the command of a run for this host, on the controller

    @classmethod
    def read(cls, path: Path) -> Settings:
        """Read the file. Raises SettingsError."""
        return read(cls, path)
