"""The configuration file and the API key: both are checked completely before they are used.

Each value has one name: the role's variable `validator_oempro_url` is the key `oempro_url` in the
file and the field `oempro_url` here. In the sections `[known_good]`, `[metrics]` and `[log]` the
section is part of the name: `validator_known_good_days` is `days` there.
"""

from __future__ import annotations

import configparser
import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_PATH = Path("/etc/mx-validator/mx-validator.conf")
DEFAULT_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
DEFAULT_LOG_LEVEL = "info"
MAX_TTL_SECONDS = 86400  # with a longer TTL, domains that the platform gave up would get mail
MAX_KNOWN_GOOD_DAYS = 365
MAX_RATE_PER_SECOND = 10_000  # more than any platform, and this daemon, can handle
MAX_BURST = 1_000_000
MAX_SOCKET_PATH_BYTES = 100  # the kernel's limit is 107 (unix(7)); binding adds a suffix
LOG_LEVELS = ("debug", "info", "warning", "error")

_REQUIRED = {
    "platform": {
        "oempro_url",
        "oempro_admin_api_key_file",
        "api_rate_per_second",
        "api_burst",
    },
    "cache": {"allow_ttl_seconds", "deny_ttl_seconds", "deny_grace_seconds"},
    "known_good": {"file", "days"},
    "server": {"socket"},
    "metrics": {"address", "port"},
    "log": set[str](),
}
_OPTIONAL = {"platform": {"ca_file"}, "log": {"level"}}


class ConfigError(Exception):
    """The configuration is not usable. The text names the place, the mistake and the remedy."""


@dataclass(frozen=True)
class Config:
    """The checked content of the configuration file."""

    oempro_url: str  # ends with a slash
    oempro_admin_api_key_file: Path
    ca_file: Path
    api_rate_per_second: int
    api_burst: int
    allow_ttl_seconds: int
    deny_ttl_seconds: int
    deny_grace_seconds: int
    known_good_file: Path
    known_good_days: int
    socket: Path
    metrics_address: str
    metrics_port: int
    log_level: str  # one of LOG_LEVELS


def read_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: The file cannot be read, or has a mistake.
    """
    values = _Values(path, _parse(path))
    config = Config(
        oempro_url=values.url("platform", "oempro_url"),
        oempro_admin_api_key_file=values.path("platform", "oempro_admin_api_key_file"),
        ca_file=values.path("platform", "ca_file", DEFAULT_CA_FILE),
        api_rate_per_second=values.number(
            "platform", "api_rate_per_second", 1, MAX_RATE_PER_SECOND
        ),
        api_burst=values.number("platform", "api_burst", 1, MAX_BURST),
        allow_ttl_seconds=values.seconds("cache", "allow_ttl_seconds"),
        deny_ttl_seconds=values.seconds("cache", "deny_ttl_seconds"),
        deny_grace_seconds=values.seconds("cache", "deny_grace_seconds"),
        known_good_file=values.path("known_good", "file"),
        known_good_days=values.number("known_good", "days", 0, MAX_KNOWN_GOOD_DAYS, "days"),
        socket=values.socket("server", "socket"),
        metrics_address=values.address("metrics", "address"),
        metrics_port=values.number("metrics", "port", 1, 65535),
        log_level=values.choice("log", "level", LOG_LEVELS, DEFAULT_LOG_LEVEL),
    )
    if config.oempro_url.lower().startswith("https:"):
        values.check_certificates("platform", "ca_file", config.ca_file)
    return config


def read_api_key(path: Path) -> str:
    """Read the API key: one line, which is sent in an HTTP header.

    Raises:
        ConfigError: The file cannot be read, or has no key. The text never shows the content.
    """
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the API key: {error.strerror}") from error
    if not key:
        raise ConfigError(f"{path}: the API key is missing: write it there, on one line")
    if not all(0x21 <= byte <= 0x7E for byte in key):
        raise ConfigError(
            f"{path}: the API key has blanks, line ends or other than ASCII characters in it:"
            " write the key alone, on one line"
        )
    return key.decode("ascii")


def _parse(path: Path) -> configparser.ConfigParser:
    # configparser applies this section to all others; no section header can have an empty name.
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: save it as such") from error
    except configparser.ParsingError as error:
        # The line is not shown: it may be an API key that was pasted into the wrong file.
        line = getattr(error, "lineno", None) or error.errors[0][0]
        raise ConfigError(
            f"{path}: line {line} is neither '[section]' nor 'key = value' within one: correct it"
        ) from error
    except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
        name = getattr(error, "option", error.section)
        raise ConfigError(
            f"{path}: line {error.lineno} gives {name!r} a second time: remove one of them"
        ) from error
    _check_names(path, parser)
    return parser


def _check_names(path: Path, parser: configparser.ConfigParser) -> None:
    for section in parser.sections():
        if section not in _REQUIRED:
            raise ConfigError(f"{path}: [{section}] is not known: there are {', '.join(_REQUIRED)}")
        known = _REQUIRED[section] | _OPTIONAL.get(section, set())
        for key in parser[section]:
            if key not in known:
                raise ConfigError(
                    f"{path}: [{section}] {key} is not known: there are {', '.join(sorted(known))}"
                )
    for section, keys in _REQUIRED.items():
        for key in sorted(keys):
            if not parser.has_option(section, key):
                raise ConfigError(f"{path}: [{section}] {key} is missing: add '{key} = ...'")


class _Values:
    """The values of a file, each checked and converted."""

    def __init__(self, file: Path, parser: configparser.ConfigParser) -> None:
        self._file = file
        self._parser = parser

    def url(self, section: str, key: str) -> str:
        value = self._parser.get(section, key)
        form = "give http(s)://host[:port]/ with a slash at the end"
        try:
            url = urlsplit(value)
            port_usable = url.port != 0
        except ValueError:  # for a broken [IPv6] address, or a port that is no number
            raise self._error(section, key, value, form) from None
        if not value.isascii() or not value.isprintable() or " " in value:
            raise self._error(section, key, value, form)
        if url.scheme not in {"http", "https"} or not url.hostname or not port_usable:
            raise self._error(section, key, value, form)
        if url.username is not None or url.password is not None:
            # The value is not shown: it has a password, which would be sent instead of the API key.
            raise self._error(section, key, "(hidden)", "remove the part before '@'")
        if url.query or url.fragment or not url.path.endswith("/"):
            raise self._error(section, key, value, form)
        return value

    def path(self, section: str, key: str, default: str = "") -> Path:
        value = self._parser.get(section, key, fallback=default)
        path = Path(value)
        if not path.is_absolute() or not value.isprintable():
            raise self._error(section, key, value, "give an absolute path")
        return path

    def socket(self, section: str, key: str) -> Path:
        path = self.path(section, key)
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            limit = f"shorten it to {MAX_SOCKET_PATH_BYTES} bytes"
            raise self._error(section, key, str(path), limit)
        return path

    def seconds(self, section: str, key: str) -> int:
        return self.number(section, key, 0, MAX_TTL_SECONDS, "seconds")

    def number(self, section: str, key: str, least: int, most: int, unit: str = "") -> int:
        value = self._parser.get(section, key)
        if not re.fullmatch("[0-9]{1,9}", value) or not least <= int(value) <= most:
            of_what = f" of {unit}" if unit else ""
            remedy = f"give a whole number{of_what}, {least} to {most}"
            raise self._error(section, key, value, remedy)
        return int(value)

    def address(self, section: str, key: str) -> str:
        value = self._parser.get(section, key)
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            remedy = "give an IP address of this host, such as 127.0.0.1 or ::1"
            raise self._error(section, key, value, remedy) from None

    def choice(self, section: str, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self._parser.get(section, key, fallback=default)
        if value not in choices:
            raise self._error(section, key, value, f"give one of {', '.join(choices)}")
        return value

    def check_certificates(self, section: str, key: str, file: Path) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except OSError:  # also SSLError, for a file without certificates
            remedy = "give a readable file of CA certificates in PEM form"
            raise self._error(section, key, str(file), remedy) from None

    def _error(self, section: str, key: str, value: str, remedy: str) -> ConfigError:
        return ConfigError(f"{self._file}: [{section}] {key} is {value!r}: {remedy}")
