"""The configuration file and the API key, read and checked as a whole before anything uses them."""

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
MAX_TTL_SECONDS = 86400  # a day; longer would go on taking mail for domains the platform gave up
MAX_KNOWN_GOOD_DAYS = 365
MAX_RATE_PER_SECOND = 10_000  # more than any platform, and than this daemon, can do
MAX_BURST = 1_000_000
MAX_SOCKET_PATH_BYTES = 100  # the kernel takes 107 (unix(7)); a suffix is added while binding
LOG_LEVELS = ("debug", "info", "warning", "error")

_REQUIRED = {
    "platform": {"url", "api_key_file", "rate_per_second", "burst"},
    "memory": {"allow_ttl_seconds", "deny_ttl_seconds", "deny_grace_seconds"},
    "known_good": {"file", "days"},
    "server": {"socket"},
    "metrics": {"address", "port"},
    "log": set[str](),
}
_OPTIONAL = {"platform": {"ca_file"}, "log": {"level"}}


class ConfigError(Exception):
    """Something in the configuration is not usable. The text says where, what, and the way out."""


@dataclass(frozen=True)
class Config:
    """The configuration file's content, checked."""

    url: str  # ends with a slash
    api_key_file: Path
    ca_file: Path
    rate_per_second: int
    burst: int
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
        ConfigError: It cannot be read, or does not say what it should.
    """
    values = _Values(path, _parse(path))
    config = Config(
        url=values.url("platform", "url"),
        api_key_file=values.path("platform", "api_key_file"),
        ca_file=values.path("platform", "ca_file", DEFAULT_CA_FILE),
        rate_per_second=values.number("platform", "rate_per_second", 1, MAX_RATE_PER_SECOND),
        burst=values.number("platform", "burst", 1, MAX_BURST),
        allow_ttl_seconds=values.seconds("memory", "allow_ttl_seconds"),
        deny_ttl_seconds=values.seconds("memory", "deny_ttl_seconds"),
        deny_grace_seconds=values.seconds("memory", "deny_grace_seconds"),
        known_good_file=values.path("known_good", "file"),
        known_good_days=values.number("known_good", "days", 0, MAX_KNOWN_GOOD_DAYS, "days"),
        socket=values.socket("server", "socket"),
        metrics_address=values.address("metrics", "address"),
        metrics_port=values.number("metrics", "port", 1, 65535),
        log_level=values.choice("log", "level", LOG_LEVELS, DEFAULT_LOG_LEVEL),
    )
    if config.url.lower().startswith("https:"):
        values.check_certificates("platform", "ca_file", config.ca_file)
    return config


def read_api_key(path: Path) -> str:
    """Read the API key: one line, which becomes part of an HTTP header.

    Raises:
        ConfigError: It cannot be read, or is no key. The text never shows the content.
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
    # A section header cannot be empty, so that no section is the one of defaults for all.
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text: save it as such") from error
    except configparser.ParsingError as error:
        # The line itself is not shown: it may be a key that was pasted into the wrong file.
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
    """The values of one file, each turned into what it stands for."""

    def __init__(self, file: Path, parser: configparser.ConfigParser) -> None:
        self._file = file
        self._parser = parser

    def url(self, section: str, key: str) -> str:
        value = self._parser.get(section, key)
        form = "give http(s)://host[:port]/ with a slash at the end"
        try:
            url = urlsplit(value)
            port_usable = url.port != 0
        except ValueError:  # of a broken [IPv6] address, or a port that is no number
            raise self._error(section, key, value, form) from None
        if not value.isascii() or not value.isprintable() or " " in value:
            raise self._error(section, key, value, form)
        if url.scheme not in {"http", "https"} or not url.hostname or not port_usable:
            raise self._error(section, key, value, form)
        if url.username is not None or url.password is not None:
            # Not shown: there is a password in it. And it would take the place of the API key.
            raise self._error(section, key, "(hidden)", "remove the part before '@'")
        if url.query or url.fragment or not url.path.endswith("/"):
            raise self._error(section, key, value, form)
        return value

    def path(self, section: str, key: str, default: str = "") -> Path:
        value = self._parser.get(section, key, fallback=default)
        path = Path(value)
        if not path.is_absolute() or not value.isprintable():
            raise self._error(section, key, value, "give the whole path, from / on")
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
            way_out = f"give a whole number{of_what}, {least} to {most}"
            raise self._error(section, key, value, way_out)
        return int(value)

    def address(self, section: str, key: str) -> str:
        value = self._parser.get(section, key)
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            way_out = "give an IP address of this host, such as 127.0.0.1 or ::1"
            raise self._error(section, key, value, way_out) from None

    def choice(self, section: str, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self._parser.get(section, key, fallback=default)
        if value not in choices:
            raise self._error(section, key, value, f"give one of {', '.join(choices)}")
        return value

    def check_certificates(self, section: str, key: str, file: Path) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except OSError:  # SSLError, "no certificate in it", is one too
            way_out = "give a readable file of CA certificates in PEM form"
            raise self._error(section, key, str(file), way_out) from None

    def _error(self, section: str, key: str, value: str, way_out: str) -> ConfigError:
        return ConfigError(f"{self._file}: [{section}] {key} is {value!r}: {way_out}")
