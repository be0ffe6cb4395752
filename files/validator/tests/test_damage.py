"""The file of known-good domains when it is damaged."""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import FakeClock
from mx_validator import database, salvage
from mx_validator.database import KnownGoodReader
from mx_validator.store import SqliteStore
from support import eventually
from test_store import filled, on_disk

DOMAINS = 1000
NAMES = {f"{number:05}.example" for number in range(DOMAINS)}
ROW_BYTES = 26  # at least, including its cell pointer in the page
SEEDS = range(150)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "known-good.sqlite"
    filled(path, DOMAINS)
    return path


@pytest.fixture
def start(file: Path) -> Iterator[Callable[[], tuple[SqliteStore, dict[str, float]]]]:
    """Makes a store, loads it and starts its thread, as the daemon does."""
    made: list[SqliteStore] = []

    def make() -> tuple[SqliteStore, dict[str, float]]:
        running = SqliteStore(file, retry_seconds=0.02, wall_clock=lambda: float(DOMAINS))
        made.append(running)
        found = dict(running.load())
        running.start()
        return running, found

    yield make
    for running in made:
        running.stop()
        assert not running._thread.is_alive()


def repaired(running: SqliteStore, found: dict[str, float]) -> None:
    """Replace the file if needed, as the daemon does, until it is written; then stop the store."""

    def settled() -> bool:
        if running.needs_rewrite:
            running.replace_all(found.items())
        return not running.needs_rewrite and not running.unwritten and running.last_error is None

    eventually(settled)
    running.stop()


Start = Callable[[], tuple[SqliteStore, dict[str, float]]]


def change(file: Path, statement: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(statement, values)
        connection.commit()


ROWS: list[tuple[str, object]] = [
    ("confirmed", -math.inf),
    ("confirmed", math.inf),
    ("confirmed", -1.0),
    ("confirmed", 1e300),
    ("confirmed", 1e12),
    ("confirmed", "yesterday"),
    ("confirmed", b"\0\1"),
    ("domain", 7),
    ("domain", b"\xff\xfe.example"),
    ("domain", "00007.exampld"),
    ("domain", "Upper.example"),
    ("domain", "nonsense"),
    ("domain", ""),
    ("domain", "b\udcfc".encode("utf-8", "surrogateescape")),
    ("checksum", 0),
    ("checksum", "x"),
]


@pytest.mark.parametrize(("column", "value"), ROWS)
def test_a_row_that_nobody_wrote_is_left_out_and_the_file_written_anew(
    file: Path,
    start: Start,
    column: str,
    value: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(file, f"UPDATE known_good SET {column} = ? WHERE domain = '00007.example'", value)
    running, found = start()
    assert found.keys() == NAMES - {"00007.example"}
    assert found["00008.example"] == DOMAINS - 8
    assert running.last_error == "damaged (invalid rows)"
    assert running.failing_since == DOMAINS
    assert (running.damaged, running.lost) == (True, 1)
    repaired(running, found)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(
        f"{file}: known-good domains on disk are damaged (invalid rows), 1 cannot be read"
    )
    again, found_again = start()
    assert found_again == found
    assert (again.damaged, again.last_error, again.needs_rewrite) == (False, None, False)
    assert running._damaged_file.exists()


@pytest.mark.parametrize("value", [None, math.nan, -math.inf, "yesterday", b"x", -1.0, 1e300])
def test_a_damaged_row_of_a_file_without_checksums(
    tmp_path: Path, value: object, clock: FakeClock
) -> None:
    file = tmp_path / "old.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(
            "CREATE TABLE known_good (id INTEGER PRIMARY KEY, domain UNIQUE, confirmed)"
        )
        connection.executemany(
            "INSERT INTO known_good (domain, confirmed) VALUES (?, ?)",
            [("a.example", 1.0), ("b.example", value), ("c.example", 3.0), ("nonsense", 4.0)],
        )
        connection.commit()
    running = SqliteStore(file, wall_clock=clock)
    assert [domain for domain, _ in running.load()] == ["a.example", "c.example"]
    assert (running.damaged, running.lost) == (True, 2)


def test_a_file_without_checksums_gets_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "old.sqlite"
    change(
        file,
        "CREATE TABLE known_good"
        " (id INTEGER PRIMARY KEY, domain TEXT NOT NULL UNIQUE, confirmed REAL NOT NULL)",
    )
    change(file, "INSERT INTO known_good (domain, confirmed) VALUES (?, ?)", "a.example", 7.0)
    running = SqliteStore(file, wall_clock=lambda: 10.0)
    found = dict(running.load())
    assert found == {"a.example": 3}
    running.start()
    running.save("b.example")
    repaired(running, {**found, "b.example": 0})
    assert on_disk(file) == [("a.example", 7), ("b.example", 10)]
    assert not SqliteStore(file).needs_rewrite
    assert not caplog.records
    assert [each.name for each in tmp_path.iterdir()] == ["old.sqlite"]


def spoil(file: Path, chance: random.Random) -> int:
    """Damage a file somewhere. Return the number of rows that this may affect at most."""
    content = bytearray(file.read_bytes())
    kind = chance.choice(("bits", "bytes", "header", "sector", "page", "end"))
    touched = chance.randint(1, 8)
    if kind == "header":
        content[chance.randrange(100)] ^= 1 << chance.randrange(8)
        touched = 0
    elif kind == "bits":
        for _ in range(touched):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "bytes":
        for _ in range(touched):
            content[chance.randrange(len(content))] = chance.randrange(256)
    else:
        size = 512 if kind == "sector" else 4096
        start = chance.randrange(len(content) // size) * size
        if kind == "end":
            start = len(content) - size
            del content[start + chance.randrange(size) :]
        else:
            content[start : start + size] = chance.choice((bytes(size), chance.randbytes(size)))
        touched = size // ROW_BYTES + 2
    file.write_bytes(content)
    return touched


@pytest.mark.parametrize("seed", SEEDS)
def test_any_damage(file: Path, start: Start, seed: int) -> None:
    """No exception, no wrong row, no row lost that was not damaged, and a new file in the end."""
    touched = spoil(file, random.Random(seed))
    running, found = start()
    for domain, age in found.items():
        assert domain in NAMES
        assert age == DOMAINS - int(domain[:5])
    lost = DOMAINS - len(found)
    assert lost <= touched
    if lost:
        assert running.damaged
        assert running.lost in {lost, None}
    running.save("new.example")
    repaired(running, {**found, "new.example": 0.0})
    again, found_again = start()
    assert {**found, "new.example": 0.0} == found_again
    assert (again.damaged, again.last_error) == (False, None)


def test_any_byte_of_the_first_page(file: Path) -> None:
    """It has the names of tables and columns, which SQLite quotes in its messages."""
    good = file.read_bytes()
    for place in (place for place in range(database.PAGE_BYTES) if good[place]):
        for other in (good[place] ^ 1, 0xBE):  # 0xBE alone is not UTF-8
            file.write_bytes(good[:place] + bytes([other]) + good[place + 1 :])
            assert dict(SqliteStore(file).load()).keys() == NAMES, (place, other)


def test_damage_in_a_name_of_a_column(file: Path, start: Start) -> None:
    file.write_bytes(file.read_bytes().replace(b"domain TEXT", b"d\xbemain TEXT"))
    running, found = start()
    assert found.keys() == NAMES
    assert running.last_error == "damaged (names that are not UTF-8)"
    repaired(running, found)
    again, found_again = start()
    assert found_again == found
    assert again.last_error is None


@pytest.mark.parametrize("content", [b"not a database", b"not one, but as long as one" * 999])
def test_a_file_that_is_no_database(file: Path, start: Start, content: bytes) -> None:
    file.write_bytes(content)
    running, found = start()
    assert found == {}
    assert running.last_error == "damaged (file is not a database)"
    assert (running.damaged, running.lost) == (True, None)
    repaired(running, {"a.example": 1.0})
    assert running._damaged_file.read_bytes() == content
    assert on_disk(file) == [("a.example", DOMAINS - 1)]


@pytest.mark.parametrize("bytes_written", [0, 4096])
def test_a_file_that_was_only_begun_is_no_damage(
    tmp_path: Path, bytes_written: int, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "begun.sqlite"
    change(file, "PRAGMA user_version = 1")
    os.truncate(file, bytes_written)
    running = SqliteStore(file)
    assert list(running.load()) == []
    assert (running.damaged, running.last_error) == (False, None)
    running.start()
    running.save("a.example")
    eventually(lambda: not running.unwritten)
    running.stop()
    assert [domain for domain, _ in on_disk(file)] == ["a.example"]
    assert not caplog.records


def write_to_log(file: Path) -> None:
    """Leave a domain in the write-ahead log, as a power cut does."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(database.UPSERT, database.make_row("last.example", 5.0))
        connection.commit()
        for suffix in ("", "-wal"):
            shutil.copy(f"{file}{suffix}", f"{file}.copy{suffix}")
    for suffix in ("", "-wal"):
        Path(f"{file}.copy{suffix}").replace(f"{file}{suffix}")


def test_the_log_beside_a_damaged_file_is_read_too(file: Path, start: Start) -> None:
    write_to_log(file)
    with file.open("r+b") as damaged:
        damaged.write(b"garbage, as far as the header goes")
    with Path(f"{file}-wal").open("r+b") as damaged:
        damaged.seek(24)
        damaged.write(b"no checksum")
    running, found = start()
    assert found.keys() == NAMES | {"last.example"}
    repaired(running, found)
    assert {domain for domain, _ in on_disk(file)} == found.keys()


@pytest.mark.parametrize("which", [0, 1])  # in the table, in the index
def test_a_flipped_bit_in_a_name(file: Path, start: Start, which: int) -> None:
    content = bytearray(file.read_bytes())
    places = [match.start() for match in re.finditer(rb"00500\.example", content)]
    assert len(places) == 2
    content[places[which]] ^= 1
    file.write_bytes(content)
    running, found = start()
    eventually(lambda: running.needs_rewrite)
    assert running.damaged
    assert running.lost == DOMAINS - len(found) < 2
    repaired(running, found)
    assert {domain for domain, _ in on_disk(file)} == found.keys()


def test_rows_that_their_page_no_longer_counts(file: Path, start: Start) -> None:
    """SQLite skips them without an error."""
    content = bytearray(file.read_bytes())
    (page,) = {
        match.start() // 4096 * 4096
        for match in re.finditer(rb"00500\.example", content)
        if content[match.start() // 4096 * 4096] == 0x0D  # a leaf of a table
    }
    content[page + 3 : page + 5] = b"\0\1"  # rows
    file.write_bytes(content)
    running, found = start()
    assert found.keys() == NAMES
    assert (running.damaged, running.lost) == (True, 0)
    repaired(running, found)
    assert {domain for domain, _ in on_disk(file)} == NAMES


def test_what_was_dropped_is_not_found_in_a_damaged_file(file: Path, start: Start) -> None:
    # SQLite marks free space in its first bytes; with a long id, that leaves the domain intact.
    change(file, "UPDATE known_good SET id = id + 1000000")
    running, _ = start()
    running.delete("00500.example")
    running.stop()
    with file.open("r+b") as damaged:
        damaged.write(b"garbage")
    _, found = start()
    assert found.keys() == NAMES - {"00500.example"}


def test_damage_that_a_write_finds(
    file: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SqliteStore, "_check_integrity", lambda _: None)
    running, found = start()
    file.write_bytes(b"garbage" * 1000)
    running.save("a.example")
    eventually(lambda: running.needs_rewrite)
    assert running.last_error == "damaged (file is not a database)"
    repaired(running, {**found, "a.example": 0.0})
    assert len(on_disk(file)) == DOMAINS + 1


def test_it_cannot_be_written_anew_at_first(
    file: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_bytes(b"garbage" * 1000)
    obstacle = file.with_name(f"{file.name}.new")
    obstacle.mkdir()
    running, _ = start()
    running.replace_all([("a.example", 1.0)])
    eventually(lambda: "cannot be written anew ([Errno 21] Is a directory" in caplog.text)
    assert running.unwritten == 1
    assert file.read_bytes() == b"garbage" * 1000
    running.save("b.example")
    obstacle.rmdir()
    repaired(running, {})
    assert {domain for domain, _ in on_disk(file)} == {"a.example", "b.example"}


def test_a_process_that_ends_while_the_files_are_exchanged(file: Path, start: Start) -> None:
    """The new file is used, without the write-ahead log of the damaged one."""
    shutil.copy(file, f"{file}.new")
    write_to_log(file)
    file.unlink()
    running, found = start()
    assert found.keys() == NAMES
    assert not running.damaged


def test_a_file_that_may_not_be_read(
    file: Path, start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be intact: it is not replaced."""
    connect = sqlite3.connect

    def refuse(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite3, "connect", refuse)
    running, found = start()
    assert found == {}
    assert (running.damaged, running.needs_rewrite) == (False, False)
    assert "cannot be read (unable to open database file)" in caplog.text
    monkeypatch.setattr(sqlite3, "connect", connect)
    assert len(on_disk(file)) == DOMAINS


def test_pieces_that_the_disk_does_not_give(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pread = os.pread

    pages = {match.start() // 4096 for match in re.finditer(rb"00500\.example", file.read_bytes())}

    def broken(descriptor: int, count: int, place: int) -> bytes:
        if place // 4096 in pages:
            raise OSError(5, "Input/output error")
        return pread(descriptor, count, place)

    monkeypatch.setattr(os, "pread", broken)
    found = dict(salvage.salvage(file, file.with_name("nothing")))
    assert "00500.example" not in found
    assert DOMAINS - 4096 // ROW_BYTES <= len(found) < DOMAINS


def test_a_read_error_is_damage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(database, "_open_snapshot", broken)
    reader = KnownGoodReader(file)
    assert dict(reader).keys() == NAMES
    assert (reader.damage, reader.lost) == ("disk I/O error", 0)


@pytest.mark.parametrize("length", [1, 40, 57, 58, 59, 240])
@pytest.mark.parametrize("confirmed", [0.0, 1.0, 2.5, 100.0, 40_000.0, 8e6, 1.7e9, 1.7e9 + 0.25])
def test_rows_of_every_form_are_found(tmp_path: Path, length: int, confirmed: float) -> None:
    file = tmp_path / "one.sqlite"
    filled(file, 0)
    label = "x" * 60
    domain = ".".join([label] * 4)[-length:].strip(".") + ".example"
    change(file, database.UPSERT, *database.make_row(domain, confirmed))
    assert salvage.salvage(file) == [(domain, confirmed)]
