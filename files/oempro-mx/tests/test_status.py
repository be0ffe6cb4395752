from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from oempro_mx import __version__, cli, text
from oempro_mx.commands import run
from oempro_mx.model import Check, CouldNotLookError, Finding, State, fail, ok, warn
from oempro_mx.settings import Settings, SettingsError
from oempro_mx.status import look_at_everything


def test_all_checks_are_seen_in_their_order_whatever_one_does(settings: Settings) -> None:
    never = threading.Event()

    def well(_: Settings) -> Iterator[Finding]:
        yield ok("a", "fine")

    def hangs(_: Settings) -> Iterator[Finding]:
        never.wait()
        yield ok("b", "too late")

    def blind(_: Settings) -> Iterator[Finding]:
        yield warn("c", "half seen", "mend")
        raise CouldNotLookError("dark", "light")

    def breaks(_: Settings) -> Iterator[Finding]:
        yield from ()
        raise ValueError("surprise")

    checks: dict[str, Check] = {"a": well, "b": hangs, "c": blind, "d": breaks}
    found = look_at_everything(settings, checks, deadline_seconds=0.5)
    never.set()
    assert [(each.name, each.state.value, each.seen) for each in found] == [
        ("a", "OK", "fine"),
        ("b", "COULD NOT LOOK", "no answer within 0 s"),
        ("c", "WARN", "half seen"),
        ("c", "COULD NOT LOOK", "dark"),
        ("d", "COULD NOT LOOK", "ValueError: surprise"),
    ]
    assert all(each.remedy for each in found[1:])


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([ok("a", "")], 0),
        ([ok("a", ""), warn("b", "", "x")], 1),
        ([Finding("a", State.COULD_NOT_LOOK, "", "x")], 1),
        ([fail("a", "", "x"), warn("b", "", "x")], 2),
    ],
)
def test_exit_code(findings: list[Finding], code: int) -> None:
    assert cli.exit_code(findings) == code


def test_text_has_the_remedy_and_commands_no_terminal() -> None:
    lines = text.lines([ok("queue", "empty"), fail("x", "evil \x1b[2J\nname", "mend it")], False)
    assert lines == [
        "OK              queue           empty",
        "FAIL            x               evil [2J name",
        f"{'':32}-> mend it",
    ]
    assert text.lines([ok("queue", "empty")], True)[0].startswith("\x1b[32mOK")


def test_json() -> None:
    shown = json.loads(text.as_json("mx1.example.com", [warn("a", "b", "c")]))
    finding = {"name": "a", "state": "WARN", "seen": "b", "remedy": "c"}
    assert shown == {"host": "mx1.example.com", "findings": [finding]}


@pytest.mark.parametrize(
    ("seconds", "words"), [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (2e5, "2 d")]
)
def test_duration(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


def test_settings(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    file.write_text(json.dumps({**asdict(settings), "of a later release": 1}))
    assert Settings.read(file) == settings
    for broken in ("", "[]", "{}", "{"):
        file.write_text(broken)
        with pytest.raises(SettingsError, match="run the playbook"):
            Settings.read(file)


def test_version_is_the_project_s() -> None:
    project = Path(__file__).resolve().parents[3]
    assert f"{__version__}\n" == (project / "VERSION").read_text()


def test_command_that_fails() -> None:
    with pytest.raises(CouldNotLookError, match="sh ended with status 3: why") as caught:
        run("sh", "-c", "echo why >&2; exit 3")
    assert caught.value.remedy == "sh -c 'echo why >&2; exit 3'"
    with pytest.raises(CouldNotLookError, match="no-such-program: No such file"):
        run("no-such-program")
