from __future__ import annotations

import logging
import re
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mx_validator import log
from support import PATIENCE, eventually


def line(text: str, *, traceback: bool = False) -> str:
    error = sys.exc_info() if traceback else None
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "%s", (text,), error)
    record.created = 1700000000.5
    return log.OneLineFormatter().format(record)


def test_format() -> None:
    assert line("hello") == "2023-11-14T22:13:20Z INFO hello"


def test_nothing_from_outside_can_begin_a_line_or_send_a_control_sequence() -> None:
    assert line("a\nb\rc\x1b[2Jd\x7f\x85\u2028\udcff").endswith(
        r"INFO a\nb\rc\x1b[2Jd\x7f\x85\u2028\udcff"
    )


def test_a_traceback_is_one_line() -> None:
    def fail() -> None:
        raise ValueError("two\nlines")

    try:
        fail()
    except ValueError:
        text = line("failed", traceback=True)
    assert re.fullmatch(r".*INFO failed\\nTraceback.*ValueError: two\\nlines", text)


@given(st.text())
def test_any_text_is_one_line_that_can_be_written(text: str) -> None:
    assert len(line(text).splitlines()) == 1
    line(text).encode()


def test_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        writer = log.set_up("info")
        logging.getLogger("mx_validator.x").info("ours")
        logging.getLogger("mx_validator.x").debug("too much")
        logging.getLogger("urllib3").info("theirs")
        logging.getLogger("asyncio").warning("important")
        log.set_level("debug")
        logging.getLogger("mx_validator.x").debug("wanted")
        writer.stop()
    finally:
        root.handlers[:] = before
        log.set_level("notset")
    captured = capsys.readouterr()
    assert [text.split(" ", 1)[1] for text in captured.err.splitlines()] == [
        "INFO ours",
        "WARNING important",
        "DEBUG wanted",
    ]
    assert captured.out == ""


class Stuck(logging.Handler):
    """A handler that writes nothing before `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.free.wait(PATIENCE)
        self.lines.append(record.getMessage())


def test_who_logs_never_waits_for_the_reader() -> None:
    stuck = Stuck()
    writer = log.BackgroundHandler(stuck, max_queued=3)
    logger = logging.getLogger("stuck")
    logger.propagate = False
    logger.addHandler(writer)
    logger.warning("0")
    eventually(writer._lines.empty)  # the first is being written
    for number in range(1, 10):
        logger.warning("%d", number)
    stuck.free.set()
    writer.stop()
    assert stuck.lines == [
        "0",
        "1",
        "2",
        "3",
        "6 log lines were dropped because the pipe to Supervisor was full",
    ]


def test_the_end_does_not_wait_for_a_reader_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "FLUSH_SECONDS", 0.05)
    stuck = Stuck()
    writer = log.BackgroundHandler(stuck, max_queued=1)
    for _ in range(3):
        writer.emit(logging.makeLogRecord({"msg": "x"}))
        writer.stop()
    assert stuck.lines == []
    stuck.free.set()
