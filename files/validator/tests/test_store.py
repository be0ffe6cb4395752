from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import FakeClock, eventually
from mx_validator import store
from mx_validator.store import Store

Stores = Callable[[], Store]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "known-good.sqlite"


@pytest.fixture
def stores(file: Path, clock: FakeClock) -> Iterator[Stores]:
    """Makes stores of the one file that run, and stops them in the end."""
    made: list[Store] = []

    def make() -> Store:
        made.append(Store(file, retry_seconds=0.02, wall_clock=clock))
        made[-1].start()
        return made[-1]

    yield make
    for running in made:
        running.stop()
        assert not running._thread.is_alive()


def on_disk(file: Path) -> list[tuple[str, float]]:
    return list(store.read(file))


def written(running: Store) -> None:
    eventually(lambda: not running.unwritten)


def test_what_is_kept_comes_back_the_oldest_first(
    file: Path, stores: Stores, clock: FakeClock
) -> None:
    running = stores()
    for domain in ("a", "b", "c", "a"):
        running.keep(domain)
        clock.now += 10
    running.keep("old", age_seconds=100)
    running.drop("c")
    running.stop()
    clock.now += 100
    assert list(Store(file, wall_clock=clock).load()) == [("b", 130), ("a", 110), ("old", 200)]


def test_it_is_on_disk_without_an_end_of_the_process(file: Path, stores: Stores) -> None:
    running = stores()
    running.keep("a")
    written(running)
    assert on_disk(file) == [("a", 1000)]


def test_more_than_a_batch(file: Path, stores: Stores) -> None:
    running = stores()
    for number in range(2 * store.BATCH_DOMAINS + 1):
        running.keep(str(number))
    running.stop()
    assert [domain for domain, _ in on_disk(file)] == [
        str(number) for number in range(2 * store.BATCH_DOMAINS + 1)
    ]


def test_a_clock_that_was_put_back_makes_nothing_younger_than_new(
    file: Path, stores: Stores, clock: FakeClock
) -> None:
    running = stores()
    running.keep("a")
    running.stop()
    clock.now -= 500
    assert list(Store(file, wall_clock=clock).load()) == [("a", 0)]


def test_no_file_is_the_beginning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    fresh = Store(file)
    assert list(fresh.load()) == []
    assert fresh.trouble is None
    assert not caplog.records


def test_stop_when_nothing_was_written(file: Path, stores: Stores) -> None:
    stores().stop()
    assert not file.exists()


def filled(file: Path, domains: int) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(store._SCHEMA)
        connection.executemany(
            store._KEEP, ((f"{number:05}.example", float(number)) for number in range(domains))
        )
        connection.commit()


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to look like one" * 99])
def test_garbage_is_put_aside(content: bytes, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_bytes(content)
    running = Store(file)
    assert list(running.load()) == []
    assert running.starts_empty is bool(content)
    if not content:  # a file of which nothing was written yet is an empty database
        return
    aside = file.with_name("known-good.sqlite.damaged")
    assert aside.read_bytes() == content
    (read, put_aside) = [record.getMessage() for record in caplog.records]
    assert read.startswith(f"{file}: known-good domains on disk could be read for 0 domains only (")
    assert read.endswith("file is not a database); what is in memory goes on to count")
    assert put_aside == f"{aside}: put aside; a new file is begun"
    running.start()
    running.keep("a")
    written(running)
    assert running.trouble is None
    running.stop()
    assert [domain for domain, _ in on_disk(file)] == ["a"]


def test_what_is_left_of_a_damaged_file_is_read(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filled(file, 10_000)
    with file.open("r+b") as damaged:
        damaged.seek(file.stat().st_size // 2)
        damaged.write(b"\xff" * 4096 * 8)
    running = Store(file)
    found = list(running.load())
    assert 100 < len(found) < 10_000
    assert found[0][0] == "00000.example"
    assert running.starts_empty
    assert f"could be read for {len(found)} domains only" in caplog.text
    assert file.with_name("known-good.sqlite.damaged").exists()


def test_damage_that_a_write_finds(
    file: Path, stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(b"garbage" * 1000)
    running = stores()
    running.keep("a")
    eventually(lambda: running.starts_empty and not running.unwritten)
    assert "cannot be written (file is not a database)" in caplog.text
    assert [domain for domain, _ in on_disk(file)] == ["a"]


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
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "mx_validator")
    filled(file, 0)
    running = stores()
    tries = []
    write = running._write

    def counted() -> bool:
        tries.append(1)
        return write()

    monkeypatch.setattr(running, "_write", counted)
    with locked(file):
        running.keep("a")
        eventually(lambda: len(tries) > 3)
        assert running.trouble == "database is locked"
        assert running.trouble_since == clock()
        assert running.unwritten == 1
    written(running)
    eventually(lambda: running.trouble is None)
    assert running.trouble_since is None
    (trouble, end) = [record.getMessage() for record in caplog.records]
    assert "known-good domains on disk cannot be written (database is locked)" in trouble
    assert end == f"{file}: is written again"
    assert not running.starts_empty


def test_a_full_disk(
    file: Path, stores: Stores, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(file, 0)
    connect = store._connect

    def full(uri: str) -> sqlite3.Connection:
        connection = connect(uri)
        connection.execute("PRAGMA max_page_count = 3")
        return connection

    monkeypatch.setattr(store, "_connect", full)
    running = stores()
    for number in range(500):
        running.keep(f"{number}.example")
    eventually(lambda: running.trouble == "database or disk is full")
    assert "database or disk is full" in caplog.text
    assert running.unwritten == 500


def test_a_folder_in_its_place(file: Path, stores: Stores) -> None:
    file.mkdir()
    assert list(Store(file).load()) == []
    running = stores()
    running.keep("a")
    eventually(lambda: running.trouble == "unable to open database file")
    file.rmdir()
    written(running)
    assert [domain for domain, _ in on_disk(file)] == ["a"]


def test_it_cannot_be_put_aside(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(b"garbage" * 1000)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    running = Store(file)
    assert list(running.load()) == []
    assert not running.starts_empty
    assert "cannot be put aside ([Errno 13] Permission denied)" in caplog.text


def test_the_end_does_not_wait_for_a_write_for_ever(
    file: Path, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.0)
    filled(file, 0)
    running = stores()
    with locked(file):
        running.keep("a")
        eventually(lambda: running.trouble)
        running.stop()
    assert on_disk(file) == []


def test_a_file_that_only_root_may_write_is_read_as_it_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(file, 3)
    connect = store._connect

    def no_recovery(uri: str) -> sqlite3.Connection:
        if "immutable" not in uri:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(uri)

    monkeypatch.setattr(store, "_connect", no_recovery)
    assert len(on_disk(file)) == 3


def test_reading_what_is_not_there(file: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        on_disk(file)
    assert not file.exists()
