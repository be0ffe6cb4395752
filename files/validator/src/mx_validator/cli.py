"""The command `mx-validator`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import socket
import sqlite3
import sys
import time
from pathlib import Path
from typing import NoReturn

from mx_validator import __version__, daemon, log
from mx_validator.config import (
    DEFAULT_LOG_LEVEL,
    DEFAULT_PATH,
    Config,
    ConfigError,
    read_api_key,
    read_config,
)
from mx_validator.database import KnownGoodReader
from mx_validator.listener import AlreadyRunningError
from mx_validator.model import Outcome, Verdict
from mx_validator.platform_api import Endpoint, PlatformClient
from mx_validator.protocol import ProtocolError, format_attributes, parse_reply
from mx_validator.status import Status
from mx_validator.status_text import format_status

REPLY_SECONDS = 10.0  # the daemon replies within 8 s
MAX_REPLY_BYTES = 65536  # a reply has about 100

_EXIT_CODES = {
    Verdict.ALLOW.value: os.EX_OK,
    Verdict.DENY.value: 1,
    Verdict.DEFER.value: os.EX_TEMPFAIL,
}

_SOURCE_TEXTS = {
    "memory": "; from memory, {age_seconds} s old",
    "known good": "; known good, confirmed {age_seconds} s ago",
    "platform": "; asked just now",
    "limit": "; not asked now",
    "malformed": "",
    "deadline": "",
    "error": "",
}

logger = logging.getLogger(__name__)


class _ArgumentParser(argparse.ArgumentParser):
    """Exits with the code of sysexits.h for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(os.EX_USAGE, f"{self.prog}: {message}\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command with `arguments`, by default those of the process; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options.config)
        if options.command == "check-config":
            return _check_config(options.file)
        if options.command == "domains":
            config = read_config(options.config)
            return _listed(config) if options.platform else _domains(config.known_good_file)
        return _send_command(options, read_config(options.config).socket)
    except ConfigError as error:
        return _fail(os.EX_CONFIG, str(error))
    except BrokenPipeError:  # as in `mx-validator domains | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return os.EX_OK


def _parser() -> _ArgumentParser:
    parser = _ArgumentParser(
        prog="mx-validator",
        description="Tells Postfix which recipient domains the e-mail platform owns.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    config = _ArgumentParser(add_help=False)
    config.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_PATH,
        metavar="FILE",
        help="configuration file (%(default)s)",
    )
    serve = "serve Postfix until SIGTERM; SIGHUP reads the configuration and the API key again"
    commands.add_parser("serve", parents=[config], help=serve, description=serve)
    check = "ask the running daemon about a domain, or that of an address"
    check_parser = commands.add_parser(
        "check",
        parents=[config],
        help=check,
        description=f"{check}. Exit code: 0 ALLOW, 1 DENY, 75 DEFER, 69 daemon not reachable,"
        " 78 configuration not usable, 64 wrong usage.",
    )
    check_parser.add_argument("domain", metavar="DOMAIN|ADDRESS")
    status = "show the status of the daemon, and whether the platform answers it"
    status_parser = commands.add_parser(
        "status",
        parents=[config],
        help=status,
        description=f"{status}. Exit code: 0 all is well, 75 the platform gives no verdicts,"
        " known-good domains cannot be written to disk, or the mail queue has no room, 69 daemon"
        " not reachable.",
    )
    status_parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    domains = "list the known-good domains on disk, with the time of the last confirmation"
    domains_parser = commands.add_parser(
        "domains", parents=[config], help=domains, description=domains
    )
    domains_parser.add_argument(
        "--platform",
        action="store_true",
        help="those on the platform's list instead, which the platform is asked for now",
    )
    forget = (
        "remove a domain, or that of an address, from the running daemon's cache, so that it asks"
        " the platform again"
    )
    forget_parser = commands.add_parser(
        "forget",
        parents=[config],
        help=forget,
        description=f"{forget}. Exit code: 0 removed, 1 not cached, 69 daemon not reachable.",
    )
    forget_parser.add_argument("domain", metavar="DOMAIN|ADDRESS")
    check_config = "check a configuration file before it is installed"
    check_config_parser = commands.add_parser(
        "check-config",
        help=check_config,
        description=f"{check_config}, and the API key it names. The key's file may not exist yet:"
        " then it is not checked, whereas `serve` does not start without it.",
    )
    check_config_parser.add_argument("file", type=Path, metavar="FILE")
    return parser


def _serve(path: Path) -> int:
    log_handler = log.set_up(DEFAULT_LOG_LEVEL)
    daemon.allow_open_files()
    try:
        asyncio.run(daemon.run(path))
        code = os.EX_OK
    except ConfigError as error:
        logger.critical("%s", error)
        code = os.EX_CONFIG
    except (AlreadyRunningError, OSError) as error:
        logger.critical("cannot serve: %s", error)
        code = os.EX_CANTCREAT
    except Exception:
        logger.critical("ended by an unexpected error", exc_info=True)
        code = os.EX_SOFTWARE
    log_handler.stop()
    # Not by return: the interpreter would wait for a thread inside a DNS lookup, and Supervisor
    # could not restart the daemon meanwhile.
    os._exit(code)


def _send_command(options: argparse.Namespace, socket_path: Path) -> int:
    """Send the command to the daemon, and print its reply."""
    status = _status_json if getattr(options, "json", False) else _status
    commands = {"check": _check, "status": status, "forget": _forget}
    request = {"request": f"mx_validator_{options.command}"}
    if options.command != "status":
        request["domain"] = options.domain
    try:
        reply = parse_reply(_exchange(socket_path, format_attributes(request)))
        code, text = commands[options.command](reply)
    except (OSError, ProtocolError, LookupError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return _fail(os.EX_UNAVAILABLE, f"no answer from the daemon on {socket_path}: {reason}")
    if options.command != "status":
        name = options.domain
        text = f"{name if name.isprintable() else ascii(name)}: {text}"
    print(text)  # noqa: T201
    return code


def _check(reply: dict[str, str]) -> tuple[int, str]:
    source_text = _SOURCE_TEXTS[reply["source"]].format(**reply)
    code = _EXIT_CODES[reply["verdict"]]
    return code, f"{reply['verdict']} ({reply['reason']}{source_text})"


def _forget(reply: dict[str, str]) -> tuple[int, str]:
    if reply["result"] == "forgotten":
        return os.EX_OK, "forgotten"
    return 1, reply.get("reason", "nothing was known of it")


def _status(reply: dict[str, str]) -> tuple[int, str]:
    status = Status(**json.loads(reply["status"]))
    return os.EX_OK if status.is_well else os.EX_TEMPFAIL, "\n".join(format_status(status))


def _status_json(reply: dict[str, str]) -> tuple[int, str]:
    return _status(reply)[0], reply["status"]


def _domains(file: Path) -> int:
    reader = KnownGoodReader(file)
    try:
        if not file.exists():  # the daemon makes it with the first domain
            return os.EX_OK
        found = dict(reader)  # a domain comes a second time if the file is damaged
    except (sqlite3.Error, OSError) as error:
        return _fail(os.EX_UNAVAILABLE, f"{file}: cannot be read: {error}")
    for domain, confirmed in found.items():
        print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(confirmed)), domain)  # noqa: T201
    sys.stdout.flush()  # before the interpreter does it at exit, where a broken pipe is not caught
    if reader.damage is not None:
        lost = "an unknown number" if reader.lost is None else reader.lost
        return _fail(
            os.EX_UNAVAILABLE, f"{file}: damaged ({reader.damage}): {lost} of them cannot be read"
        )
    return os.EX_OK


def _listed(config: Config) -> int:
    """Print the platform's list, of which the platform does not say how complete it is."""
    key = read_api_key(config.oempro_admin_api_key_file)
    client = PlatformClient(Endpoint(config.oempro_url, key, config.ca_file))
    try:
        listed = asyncio.run(client.list_domains())
    finally:
        client.close()
    if isinstance(listed, Outcome):
        return _fail(os.EX_UNAVAILABLE, f"no list of the platform's domains: {listed.reason}")
    for domain in sorted(listed):
        print(domain)  # noqa: T201
    sys.stdout.flush()
    return os.EX_OK


def _exchange(socket_path: Path, request: bytes) -> bytes:
    """Return the reply to a request; an incomplete one if the daemon closes the connection."""
    deadline = time.monotonic() + REPLY_SECONDS
    reply = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(REPLY_SECONDS)
        connection.connect(str(socket_path))
        connection.sendall(request)
        while not reply.endswith(b"\n\n") and len(reply) < MAX_REPLY_BYTES:
            # Zero would make the socket non-blocking, with another error.
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            data = connection.recv(MAX_REPLY_BYTES)
            if not data:
                break
            reply += data
    return reply


def _check_config(path: Path) -> int:
    config = read_config(path)
    try:
        read_api_key(config.oempro_admin_api_key_file)
    except ConfigError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
    return os.EX_OK


def _fail(code: int, text: str) -> int:
    print(f"mx-validator: {text}", file=sys.stderr)  # noqa: T201
    return code
