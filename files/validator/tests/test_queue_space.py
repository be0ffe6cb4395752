from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from mx_validator.queue_space import QueueSpace

DIRECTORY = Path("/var/spool/postfix/mx-validator")


class FileSystem:
    """The figures that statvfs() returns for the directory."""

    def __init__(self) -> None:
        self.files = 1_000_000
        self.free = 500_000
        self.gone = False

    def statvfs(self, path: Path) -> SimpleNamespace:
        assert path == DIRECTORY
        if self.gone:
            raise FileNotFoundError(path)
        return SimpleNamespace(f_files=self.files, f_favail=self.free)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FileSystem:
    disk = FileSystem()
    monkeypatch.setattr(os, "statvfs", disk.statvfs)
    return disk


@pytest.mark.parametrize(
    ("files", "free", "short"),
    [
        (1_000_000, 10_000, False),
        (1_000_000, 9_999, True),
        (1_000_000, 0, True),
        (20_000, 2_000, False),
        (20_000, 1_999, True),
        (5, 0, False),  # a tenth of it is no inode
    ],
)
def test_few_inodes(files: int, free: int, short: bool, disk: FileSystem) -> None:
    disk.files, disk.free = files, free
    room = QueueSpace(DIRECTORY)
    assert (room.is_short, room.free_inodes) == (short, free)


def test_a_file_system_that_counts_none(disk: FileSystem) -> None:
    disk.files = disk.free = 0
    room = QueueSpace(DIRECTORY)
    assert (room.is_short, room.free_inodes) == (False, None)


@pytest.mark.usefixtures("_logged")
def test_the_log_says_it_once(disk: FileSystem, caplog: pytest.LogCaptureFixture) -> None:
    room = QueueSpace(DIRECTORY)
    for disk.free in (500_000, 9_000, 8_000, 10_000, 11_000):
        room.update()
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]
    assert "only 9000 free inodes for the mail queue in /var/spool/postfix" in caplog.text
    assert "10000 free inodes again" in caplog.text


def test_what_cannot_be_seen_changes_nothing(disk: FileSystem) -> None:
    disk.free = 9_000
    room = QueueSpace(DIRECTORY)
    disk.gone = True
    room.update()
    assert (room.is_short, room.free_inodes) == (True, 9_000)
    assert not QueueSpace(DIRECTORY).is_short
