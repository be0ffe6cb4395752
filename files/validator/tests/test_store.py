from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import FakeClock
from mx_validator import database, store
from mx_validator.store import SqliteStore
from support import eventually

Stores = Callable[[], SqliteStore]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "known-good.sqlite"


@pytest.fixture
def stores(file: Path, clock: FakeClock) -> Iterator[Stores]:
    """Makes stores of one file, starts them, and stops them at the end."""
    made: list[SqliteStore] = []

    def make() -> SqliteStore:
        made.append(SqliteStore(file, retry_seconds=0.02, wall_clock=clock))
        made[-1].start()
        return made[-1]

    yield make
    for running in made:
        running.stop()
        assert not running._thread.is_alive()


def on_disk(file: Path) -> list[tuple[str, float]]:
    reader = database.KnownGoodReader(file)
    found = list(reader)
    assert reader.damage is None
    return found


def written(running: SqliteStore) -> None:
    eventually(lambda: not running.unwritten)


def test_what_is_kept_comes_back_the_oldest_first(
    file: Path, stores: Stores, clock: FakeClock
) -> None:
    running = stores()
    for domain in ("a.example", "b.example", "c.example", "a.example"):
        running.save(domain)
        clock.now += 10
    running.delete("c.example")
    running.stop()
    clock.now += 100
    assert list(SqliteStore(file, wall_clock=clock).load()) == [
        ("b.example", 130),
        ("a.example", 110),
    ]


def test_a_clock_that_begins_in_1970(file: Path, stores: Stores) -> None:
    running = stores()
    running.save("a.example", age_seconds=5000)
    running.stop()
    assert on_disk(file) == [("a.example", 0)]


def test_it_is_on_disk_without_an_end_of_the_process(file: Path, stores: Stores) -> None:
    running = stores()
    running.save("a.example")
    written(running)
    assert on_disk(file) == [("a.example", 1000)]


def test_more_than_a_batch(file: Path, stores: Stores) -> None:
    running = stores()
    for number in range(2 * store.BATCH_DOMAINS + 1):
        running.save(f"{number}.example")
    running.stop()
    assert [domain for domain, _ in on_disk(file)] == [
        f"{number}.example" for number in range(2 * store.BATCH_DOMAINS + 1)
    ]


def test_a_clock_that_was_put_back_makes_nothing_younger_than_new(
    file: Path, stores: Stores, clock: FakeClock
) -> None:
    running = stores()
    running.save("a.example")
    running.stop()
    clock.now -= 500
    assert list(SqliteStore(file, wall_clock=clock).load()) == [("a.example", 0)]


def test_no_file_is_the_beginning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh = SqliteStore(file)
    assert list(fresh.load()) == []
    assert fresh.last_error is None
    assert not caplog.records


def test_stop_when_nothing_was_written(file: Path, stores: Stores) -> None:
    stores().stop()
    assert not file.exists()


def filled(file: Path, domains: int) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(database.SCHEMA)
        connection.executemany(
            database.UPSERT,
            (database.make_row(f"{number:05}.example", float(number)) for number in range(domains)),
        )
        connection.commit()


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def test_a_trouble_is_logged_once_and_the_write_repeated(
    file: Path,
    stores: Stores,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    clock: FakeClock,
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "mx_validator")
    filled(file, 0)
    running = stores()
    tries = []
    write = running._write_batch

    def counted() -> bool:
        tries.append(1)
        return write()

    monkeypatch.setattr(running, "_write_batch", counted)
    with locked(file):
        running.save("a.example")
        eventually(lambda: len(tries) > 3)
        assert running.last_error == "database is locked"
        assert running.failing_since == clock()
        assert running.unwritten == 1
    written(running)
    eventually(lambda: running.last_error is None)
    assert running.failing_since is None
    (trouble, end) = [record.getMessage() for record in caplog.records]
    assert "known-good domains on disk cannot be written (database is locked)" in trouble
    assert end == f"{file}: is written again"
    assert not running.needs_rewrite


def test_a_full_disk(
    file: Path, stores: Stores, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(file, 0)
    connect = database.connect

    def full(path: Path, way: str = "mode=rwc") -> sqlite3.Connection:
        connection = connect(path, way)
        connection.execute("PRAGMA max_page_count = 3")
        return connection

    monkeypatch.setattr(store, "connect", full)
    running = stores()
    for number in range(500):
        running.save(f"{number}.example")
    eventually(lambda: running.last_error == "database or disk is full")
    assert "database or disk is full" in caplog.text
    assert running.unwritten == 500


def test_a_folder_in_its_place(file: Path, stores: Stores) -> None:
    file.mkdir()
    assert list(SqliteStore(file).load()) == []
    running = stores()
    running.save("a.example")
    eventually(lambda: running.last_error == "unable to open database file")
    file.rmdir()
    written(running)
    assert [domain for domain, _ in on_disk(file)] == ["a.example"]


def test_a_directory_that_may_not_be_searched(
    file: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(path: Path, **_: object) -> os.stat_result:
        asked.append(path)
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", refuse)  # root may search every one
        running = stores()
        eventually(lambda: asked)
    running.save("a.example")
    written(running)
    assert [domain for domain, _ in on_disk(file)] == ["a.example"]


def test_the_end_does_not_wait_for_a_write_for_ever(
    file: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.0)
    filled(file, 0)
    running = stores()
    with locked(file):
        running.save("a.example")
        eventually(lambda: running.last_error)
        running.stop()
    assert on_disk(file) == []


def test_a_file_that_only_root_may_write_is_read_as_it_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(file, 3)
    connect = database.connect

    def no_recovery(path: Path, way: str) -> sqlite3.Connection:
        return connect(path if "immutable" in way else path.with_name("nothing"), way)

    monkeypatch.setattr(database, "connect", no_recovery)
    assert len(on_disk(file)) == 3


def test_reading_what_is_not_there(file: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        on_disk(file)
    assert not file.exists()
