from __future__ import annotations

from pathlib import Path

import pytest

from mx_validator.config import Config, ConfigError, read_api_key, read_config

GOOD = """
[platform]
oempro_url = http://platform.example:8080/oempro/
oempro_admin_api_key_file = /etc/mx-validator/api-key
ca_file = /etc/ca.pem
api_rate_per_second = 20
api_burst = 200

[cache]
allow_ttl_seconds = 300
deny_ttl_seconds = 0
deny_grace_seconds = 900

[known_good]
file = /var/lib/known-good.sqlite
days = 7

[metrics]
address = 127.0.0.1
port = 9854

[server]
socket = /run/policy

[log]
level = debug
"""


def read(directory: Path, text: str) -> Config:
    path = directory / "mx-validator.conf"
    path.write_text(text)
    return read_config(path)


def test_everything_given(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD) == Config(
        oempro_url="http://platform.example:8080/oempro/",
        oempro_admin_api_key_file=Path("/etc/mx-validator/api-key"),
        ca_file=Path("/etc/ca.pem"),
        api_rate_per_second=20,
        api_burst=200,
        allow_ttl_seconds=300,
        deny_ttl_seconds=0,
        deny_grace_seconds=900,
        known_good_file=Path("/var/lib/known-good.sqlite"),
        known_good_days=7,
        socket=Path("/run/policy"),
        metrics_address="127.0.0.1",
        metrics_port=9854,
        log_level="debug",
    )


def test_defaults(tmp_path: Path) -> None:
    text = GOOD.replace("ca_file = /etc/ca.pem\n", "").replace("[log]\nlevel = debug\n", "")
    config = read(tmp_path, text)
    assert config.ca_file == Path("/etc/ssl/certs/ca-certificates.crt")
    assert config.log_level == "info"


@pytest.mark.parametrize(
    "url",
    [
        "http://x/",
        "http://[2001:db8::1]:8080/",
        "http://192.0.2.1/a/b/",
    ],
)
def test_urls(url: str, tmp_path: Path) -> None:
    text = GOOD.replace("http://platform.example:8080/oempro/", url)
    assert read(tmp_path, text).oempro_url == url


URL = "oempro_url = http://platform.example:8080/oempro/"
MISTAKES = {
    "unknown section": ("[log]", "[logging]", "[logging] is not known: there are platform, "),
    "section for all": ("[log]", "[DEFAULT]", "[DEFAULT] is not known"),
    "unknown key": ("level =", "levl =", "[log] levl is not known: there are level"),
    "key missing": ("deny_ttl_seconds = 0", "", "[cache] deny_ttl_seconds is missing: add"),
    "section missing": ("[server]\nsocket = /run/policy", "", "[server] socket is missing"),
    "key twice": ("level = debug", "level = info\nlevel = info", "line 27 gives 'level' a second"),
    "section twice": ("[log]", "[cache]", "line 25 gives 'cache' a second time"),
    "no section": ("[platform]", "", "line 3 is neither '[section]' nor 'key = value'"),
    "no value": ("level = debug", "s3cret", "line 26 is neither '[section]' nor 'key = value'"),
    "ttl not a number": ("= 300", "= 5m", "[cache] allow_ttl_seconds is '5m': give a whole num"),
    "ttl negative": ("= 300", "= -1", "allow_ttl_seconds is '-1'"),
    "ttl with a fraction": ("= 300", "= 1.5", "allow_ttl_seconds is '1.5'"),
    "ttl over a day": ("= 300", "= 86401", "seconds, 0 to 86400"),
    "ttl absurd": ("= 300", "= " + "9" * 5000, "0 to 86400"),
    "ttl in other digits": ("= 300", "= ٣٠٠", "0 to 86400"),
    "ttl empty": ("= 300", "=", "allow_ttl_seconds is ''"),
    "grace over a day": ("= 900", "= 86401", "[cache] deny_grace_seconds is '86401'"),
    "no rate": (
        "api_rate_per_second = 20",
        "api_rate_per_second = 0",
        "a whole number, 1 to 10000",
    ),
    "no burst": ("= 200", "= 0", "[platform] api_burst is '0': give a whole number, 1 to 1000000"),
    "days": ("days = 7", "days = 366", "days is '366': give a whole number of days, 0 to 365"),
    "port": ("= 9854", "= 65536", "[metrics] port is '65536': give a whole number, 1 to 65535"),
    "no port": ("= 9854", "= 0", "[metrics] port is '0'"),
    "address": ("= 127.0.0.1", "= localhost", "address is 'localhost': give an IP address of"),
    "known-good file": ("/var/lib/known-good", "known-good", "[known_good] file is 'known-good"),
    "level": ("level = debug", "level = loud", "[log] level is 'loud': give one of debug, info"),
    "relative path": ("= /run/policy", "= policy", "[server] socket is 'policy': give an absolute"),
    "path of two lines": ("/etc/ca.pem", "/etc/ca\n .pem", "ca_file is '/etc/ca\\n.pem'"),
    "socket too long": ("/run/policy", "/run/" + "p" * 96, "shorten it to 100 bytes"),
    "url without a slash": (
        URL,
        "oempro_url = http://x",
        "[platform] oempro_url is 'http://x': give http(s)",
    ),
    "url without a slash after its path": (URL, "oempro_url = http://x/y", "a slash at the end"),
    "other scheme": (URL, "oempro_url = ftp://x/", "[platform] oempro_url is 'ftp://x/'"),
    "no scheme": (URL, "oempro_url = platform.example/", "[platform] oempro_url is"),
    "no host": (URL, "oempro_url = http:///", "[platform] oempro_url is"),
    "port only": (URL, "oempro_url = http://:80/", "[platform] oempro_url is"),
    "port too large": (URL, "oempro_url = http://x:65536/", "[platform] oempro_url is"),
    "port 0": (URL, "oempro_url = http://x:0/", "[platform] oempro_url is"),
    "port is a word": (URL, "oempro_url = http://x:http/", "[platform] oempro_url is"),
    "broken address": (URL, "oempro_url = http://[::1/", "[platform] oempro_url is"),
    "query": (URL, "oempro_url = http://x/?a=b", "[platform] oempro_url is"),
    "fragment": (URL, "oempro_url = http://x/#/", "[platform] oempro_url is"),
    "blank in the url": (URL, "oempro_url = http://x /", "[platform] oempro_url is"),
    "url of two lines": (URL, "oempro_url = http://x/\n y/", "[platform] oempro_url is"),
    "8-bit url": (URL, "oempro_url = http://bücher.example/", "[platform] oempro_url is"),
    "password": (
        URL,
        "oempro_url = http://me:s3cret@x/",
        "[platform] oempro_url is '(hidden)': remove the",
    ),
    "user": (
        URL,
        "oempro_url = http://s3cret@x/",
        "[platform] oempro_url is '(hidden)': remove the part",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named_with_place_value_and_way_out(name: str, tmp_path: Path) -> None:
    old, new, message = MISTAKES[name]
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert str(caught.value).startswith(f"{tmp_path / 'mx-validator.conf'}: ")
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


OLD_NAMES = {
    "url": (
        URL,
        "url = http://x/",
        "[platform] url is not known: there are api_burst, api_rate_per",
    ),
    "key": (
        "oempro_admin_api_key_file =",
        "api_key_file =",
        "[platform] api_key_file is not known",
    ),
    "rate": ("api_rate_per_second", "rate_per_second", "[platform] rate_per_second is not known"),
    "burst": ("api_burst", "burst", "[platform] burst is not known: there are api_burst,"),
    "memory": ("[cache]", "[memory]", "[memory] is not known: there are platform, cache, known"),
}


@pytest.mark.parametrize("name", OLD_NAMES)
def test_a_file_of_an_earlier_version_is_refused_with_the_new_names(
    name: str, tmp_path: Path
) -> None:
    old, new, message = OLD_NAMES[name]
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert message in str(caught.value)


def test_percent_signs_are_ordinary(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD.replace("/run/policy", "/run/%(x)s")).socket == Path("/run/%(x)s")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_config(tmp_path / "nothing")


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "conf"
    path.write_bytes(b"[platform]\noempro_url = \xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_config(path)


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_certificates_must_be_there_for_https(content: str | None, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    text = GOOD.replace("/etc/ca.pem", str(ca_file))
    assert read(tmp_path, text).ca_file == ca_file
    with pytest.raises(
        ConfigError, match=r"\[platform\] ca_file is .*: give a readable file of CA"
    ):
        read(tmp_path, text.replace("http:", "HTTPS:"))


@pytest.mark.parametrize("content", [b"key-1.~", b"key-1.~\n", b" key-1.~ \r\n"])
def test_api_key(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    assert read_api_key(path) == "key-1.~"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the API key is missing: write it there"),
        (b" \n", "the API key is missing"),
        (b"s3cret key", "has blanks"),
        (b"s3cret\nkey", "has blanks, line ends"),
        (b"s3cret\r\nHost: x", "has blanks, line ends"),
        (b"s3cret\xff", "other than ASCII"),
        (b"s3cret\0", "other than ASCII"),
    ],
)
def test_what_is_no_api_key(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_api_key(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "s3cret" not in str(caught.value).removeprefix(str(path))


def test_no_api_key_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the API key: No such file"):
        read_api_key(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("old", "new", "name", "value"),
    [
        ("days = 7", "days = 0", "known_good_days", 0),
        ("days = 7", "days = 365", "known_good_days", 365),
        ("= 127.0.0.1", "= 0:0::1", "metrics_address", "::1"),
        ("= 9854", "= 65535", "metrics_port", 65535),
        ("= 200", "= 1", "api_burst", 1),
    ],
)
def test_limits_of_what_is_usable(
    old: str, new: str, name: str, value: object, tmp_path: Path
) -> None:
    assert getattr(read(tmp_path, GOOD.replace(old, new)), name) == value
