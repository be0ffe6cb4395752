from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from receiver import Receiver

from oempro_mx import cli
from oempro_mx.alarms import levels
from oempro_mx.alarms.memory import Memory
from oempro_mx.alarms.run import look
from oempro_mx.alarms.settings import AlarmSettings
from oempro_mx.checks import alarms
from oempro_mx.model import Finding, State, fail, ok, warn
from oempro_mx.settings import Settings

WELL = [ok("queue", "empty")]
BAD = [fail("queue", "2 messages wait", "postqueue -p")]


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        # W well, w a warning, F a failure; what is told after each look.
        ("FFF", "WFF"),
        ("FFWWW", "WFFFW"),
        ("FWFWFW", "WWFFFF"),  # what comes and goes is told once
        ("FWWWFWWW", "WWWWWWWW"),  # once is no reason
        ("wwFFww", "WwwFFF"),
        ("wwFwFwFw", "WwwwFFFF"),
        ("FFwwwWWW", "WFFFwwwW"),
    ],
)
def test_levels(seen: str, told: str) -> None:
    looks: list[int] = []
    level, said = 0, ""
    for each in seen:
        looks = [*looks, "WwF".index(each)][-levels.LOOKS :]
        level = levels.settled(level, looks)
        said += "WwF"[level]
    assert said == told


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver("127.0.0.1", "/ping/token")
    yield made
    made.stop()


def test_change_is_told_once_and_health_each_time(receiver: Receiver, tmp_path: Path) -> None:
    settings, file = AlarmSettings(receiver.url, "", 5), tmp_path / "told"

    def after(findings: list[Finding]) -> list[tuple[str, str]]:
        assert look("mx1.example.com", findings, settings, file) == []
        return [(method, path) for method, path, _ in receiver.requests]

    ping, failed = ("GET", "/ping/token"), ("POST", "/ping/token/fail")
    assert after(WELL) == [ping]
    assert after(BAD) == [ping, ping]  # not yet: it may be a chance
    assert after(BAD) == [ping, ping, failed]
    told = json.loads(receiver.requests[-1][2])
    assert (told["host"], told["state"]) == ("mx1.example.com", "FAIL")
    assert told["changes"] == [
        {"name": "queue", "state": "FAIL", "seen": "2 messages wait", "remedy": "postqueue -p"}
    ]
    assert "mx1.example.com: FAIL\nFAIL " in told["text"]
    assert "-> postqueue -p\n" in told["text"]
    receiver.requests.clear()
    assert after(BAD) == []  # the silence alarms whoever waits for pings
    for _ in range(2):
        assert after(WELL) == []
    assert after(WELL) == [("POST", "/ping/token")]
    assert json.loads(receiver.requests[-1][2])["state"] == "OK"
    receiver.requests.clear()
    assert after(WELL) == [ping]


def test_each_way_is_told_until_it_was(receiver: Receiver, tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = f'cat >> {said}; printf %s "$OEMPRO_MX_ALARM" > {said}.json'
    settings, file = AlarmSettings(receiver.url, command, 5), tmp_path / "told"
    receiver.status = 500
    for _ in range(3):
        problems = look("mx1", BAD, settings, file)
    assert problems == ["alarm_url: it answers 500"]
    assert said.read_text().count("mx1: FAIL") == 1
    assert json.loads((tmp_path / "said.json").read_text())["state"] == "FAIL"
    receiver.status = 200
    receiver.requests.clear()
    assert look("mx1", BAD, settings, file) == []
    assert [path for _, path, _ in receiver.requests] == ["/ping/token/fail"]
    assert said.read_text().count("mx1: FAIL") == 1


@pytest.mark.parametrize("finding", [*BAD, warn("queue", "1 is on hold", "postsuper -H ALL")])
def test_what_is_told_late_says_how_it_was(
    receiver: Receiver, tmp_path: Path, finding: Finding
) -> None:
    settings, file = AlarmSettings(receiver.url, "", 5), tmp_path / "told"
    receiver.status = 500
    for _ in range(2):
        look("mx1", [finding], settings, file)
    receiver.status = 200
    receiver.requests.clear()
    look("mx1", WELL, settings, file)
    [change] = json.loads(receiver.requests[0][2])["changes"]
    assert change["state"] == finding.state.value
    assert change["seen"] == "it was so until now: empty"


@pytest.mark.parametrize("command", ["exit 3", "kill -9 $$", "no-such-program"])
def test_command_that_fails(command: str, tmp_path: Path) -> None:
    settings = AlarmSettings("", command, 5)
    for _ in range(2):
        problems = look("mx1", BAD, settings, tmp_path / "told")
    assert problems[0].startswith("alarm_command: it ended with status ")


def test_nobody_listens(tmp_path: Path) -> None:
    settings = AlarmSettings("http://127.0.0.1:9/secret-token", "", 5)
    [problem] = look("mx1", WELL, settings, tmp_path / "told")
    assert problem == "alarm_url: [Errno 111] Connection refused"
    assert "secret-token" not in repr(settings)


def test_damaged_memory_tells_again(receiver: Receiver, tmp_path: Path) -> None:
    settings, file = AlarmSettings(receiver.url, "", 5), tmp_path / "told"
    for damage in ("", "{}", "[]", '{"ways": 1}', '{"ways": {}, "other": 1}'):
        file.write_text(damage)
        assert Memory.read(file) == Memory()
    for _ in range(2):
        look("mx1", BAD, settings, file)
    assert receiver.requests[-1][1] == "/ping/token/fail"


def test_status_of_the_alarms(settings: Settings, receiver: Receiver, tmp_path: Path) -> None:
    config, told = tmp_path / "alarm.json", tmp_path / "told"

    def seen() -> list[tuple[State, str]]:
        return [(each.state, each.seen) for each in alarms.look(settings, config, told)]

    assert seen() == [(State.OK, "nobody is told: neither alarm_url nor alarm_command is set")]
    values = {"url": receiver.url, "command": "true", "interval_minutes": 5}
    config.write_text(json.dumps(values))
    assert seen() == [(State.OK, "alarm_url and alarm_command would be told; looked 0 s ago")]
    os.utime(config, (1, time.time() - 1000))
    assert seen() == [(State.WARN, "nothing has looked for 17 min: nobody would be told")]
    look("mx1", WELL, AlarmSettings.read(config), told)
    assert seen() == [(State.OK, "alarm_url and alarm_command would be told; looked 0 s ago")]
    receiver.status = 404
    look("mx1", WELL, AlarmSettings.read(config), told)
    assert seen() == [(State.WARN, "alarm_url cannot be told for 0 s: it answers 404")]
    memory = Memory.read(told)
    memory.looked = time.time() - 3600
    memory.write(told)
    assert (State.WARN, "nothing has looked for 60 min: nobody would be told") in seen()


def test_wrong_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "alarm.json"
    config.write_text('{"url": ""}')
    assert cli.main(["alarm", "--check-config", "--config", str(config)]) == 2
    assert "cannot be used (KeyError: 'command'): run the playbook" in capsys.readouterr().err
    config.write_text('{"url": "", "command": "", "interval_minutes": 5}')
    assert cli.main(["alarm", "--check-config", "--config", str(config)]) == 0


def test_worst_finding_of_a_name_counts() -> None:
    found = levels.worst([ok("disk", "a"), fail("disk", "b", "x"), warn("disk", "c", "x")])
    assert found["disk"].seen == "b"
