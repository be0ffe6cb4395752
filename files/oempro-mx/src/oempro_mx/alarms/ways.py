"""Two ways of telling: an HTTP request, and a command."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable

from oempro_mx.alarms.message import Message
from oempro_mx.alarms.settings import AlarmSettings

HTTP_SECONDS = 20.0
COMMAND_SECONDS = 60
MAX_REPLY_BYTES = 65536

Tell = Callable[[Message], None]
"""Tells a message. Raises OSError if it did not get there; the error names no secret."""


class NotToldError(OSError):
    """A message did not get there."""


def ways(settings: AlarmSettings) -> dict[str, Tell]:
    """Return the ways that are set, by name."""
    found: dict[str, Tell] = {}
    if settings.url:
        found["url"] = lambda message: _post(settings.url, message)
    if settings.command:
        found["command"] = lambda message: _run(settings.command, message)
    return found


def ping(url: str) -> None:
    """Say that the host is alive and nothing fails. Raises NotToldError."""
    _send(urllib.request.Request(url))  # noqa: S310 - the scheme is the preflight's to check


def _post(url: str, message: Message) -> None:
    """Send a message as JSON: to URL/fail while anything fails, as healthchecks.io wants it."""
    target = url.rstrip("/") + ("/fail" if message.state == "FAIL" else "")
    headers = {"Content-Type": "application/json"}
    body = message.as_json().encode()
    _send(urllib.request.Request(target, body, headers))  # noqa: S310 - as above


def _send(request: urllib.request.Request) -> None:
    request.add_header("User-Agent", "oempro-mx")
    try:
        with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as reply:  # noqa: S310
            reply.read(MAX_REPLY_BYTES)
    except urllib.error.HTTPError as error:
        raise NotToldError(f"it answers {error.code}") from error
    except (OSError, ValueError) as error:
        raise NotToldError(str(getattr(error, "reason", error))) from error


def _run(command: str, message: Message) -> None:
    """Run the command with the text on standard input, and the JSON in a variable."""
    done = subprocess.run(  # noqa: S603 - the operator's own command
        ["timeout", "--kill-after=5", str(COMMAND_SECONDS), "/bin/sh", "-c", command],  # noqa: S607
        input=message.as_text(),
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "OEMPRO_MX_ALARM": message.as_json(),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise NotToldError(f"it ended with status {done.returncode}")
