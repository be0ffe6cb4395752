from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from conftest import request_for
from mx_validator.listener import AlreadyRunningError, Listener, single_instance
from mx_validator.protocol import Request
from mx_validator.server import PolicyServer
from support import PATIENCE, eventually_async

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Connect = Callable[[], Awaitable[tuple[Reader, Writer]]]


class FakePolicy:
    """Replies with the recipient; if it begins with `slow`, not before `free` is set."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.slow = 0
        self.given_up = 0
        self.answered = 0

    def respond(self, request: Request) -> bytes | Coroutine[Any, Any, bytes]:
        recipient = request[1]
        self.answered += 1
        if recipient.startswith("slow"):
            return self._later(recipient)
        return f"{recipient}\n\n".encode()

    async def _later(self, recipient: str) -> bytes:
        self.slow += 1
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return f"{recipient}\n\n".encode()


@pytest.fixture
async def policy() -> FakePolicy:
    return FakePolicy()


@contextlib.asynccontextmanager
async def running(path: Path, server: PolicyServer) -> AsyncIterator[None]:
    with Listener(path).socket as listening:
        await server.start(listening)
        try:
            yield
        finally:
            await server.stop(drain_seconds=0.01)


@pytest.fixture
async def connect(tmp_path: Path) -> AsyncIterator[Connect]:
    writers: list[Writer] = []

    async def make() -> tuple[Reader, Writer]:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "policy"))
        writers.append(writer)
        return reader, writer

    yield make
    for writer in writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read(reader: Reader, until: bytes = b"\n\n") -> bytes:
    return await asyncio.wait_for(reader.readuntil(until), PATIENCE)


async def is_closed(reader: Reader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE) == b""
    except ConnectionResetError:
        return True


async def test_one_after_the_other(tmp_path: Path, policy: FakePolicy, connect: Connect) -> None:
    policy.free.set()
    async with running(tmp_path / "policy", PolicyServer(policy.respond)):
        reader, writer = await connect()
        for recipient in ("a", "slow", "b"):
            writer.write(request_for(recipient))
            assert await read(reader) == f"{recipient}\n\n".encode()


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_pipelined_requests_are_answered_in_their_order(
    size: int, tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    policy.free.set()
    names = [("slow" if number % 3 == 0 else "") + str(number) for number in range(20)]
    stream = b"".join(request_for(name) for name in names)
    async with running(tmp_path / "policy", PolicyServer(policy.respond)):
        reader, writer = await connect()
        for start in range(0, len(stream), size):
            writer.write(stream[start : start + size])
            await asyncio.sleep(0)
        for name in names:
            assert await read(reader) == f"{name}\n\n".encode()


async def test_a_slow_answer_holds_up_nobody_else(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    async with running(tmp_path / "policy", PolicyServer(policy.respond)):
        slow_reader, slow_writer = await connect()
        slow_writer.write(request_for("slow"))
        await eventually_async(lambda: policy.slow)
        reader, writer = await connect()
        writer.write(request_for("a"))
        assert await read(reader) == b"a\n\n"
        policy.free.set()
        assert await read(slow_reader) == b"slow\n\n"


async def test_who_sends_without_waiting_is_not_read_for_ever(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    async with running(tmp_path / "policy", PolicyServer(policy.respond)):
        reader, writer = await connect()
        writer.write(request_for("slow"))
        many = 20_000
        writer.write(request_for("a") * many)
        await eventually_async(lambda: policy.slow)
        # What the server does not read stays in the client's buffer.
        waiting = writer.transport.get_write_buffer_size
        left = -1
        while left != waiting():
            left = waiting()
            await asyncio.sleep(0.05)
        assert left > len(request_for("a")) * many / 2
        policy.free.set()
        assert await read(reader) == b"slow\n\n"
        for _ in range(many):
            await read(reader)


async def test_who_does_not_read_is_not_answered_for_ever(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    async with running(tmp_path / "policy", PolicyServer(policy.respond)):
        reader, writer = await connect()
        transport = writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        name = "a" * 4000
        many = 3000
        writer.write(request_for(name) * many)
        answered = -1
        while answered != policy.answered:
            answered = policy.answered
            await asyncio.sleep(0.05)
        assert answered < many
        transport.resume_reading()
        for _ in range(many):
            assert await read(reader) == f"{name}\n\n".encode()


async def test_answers_before_garbage_are_sent_and_then_the_connection_is_closed(
    tmp_path: Path, policy: FakePolicy, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path / "policy", PolicyServer(policy.respond)):
        reader, writer = await connect()
        writer.write(request_for("a") + b"s3cret\n\n" + request_for("b"))
        assert await read(reader) == b"a\n\n"
        assert await is_closed(reader)
    assert "closing a connection: request missing" in caplog.text
    assert "s3cret" not in caplog.text


async def test_garbage_behind_a_slow_answer(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    async with running(tmp_path / "policy", PolicyServer(policy.respond)):
        reader, writer = await connect()
        writer.write(request_for("slow") + b"\n")
        await eventually_async(lambda: policy.slow)
        policy.free.set()
        assert await read(reader) == b"slow\n\n"
        assert await is_closed(reader)


async def test_who_leaves_is_forgotten(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    async with running(tmp_path / "policy", PolicyServer(policy.respond, max_connections=1)):
        _, writer = await connect()
        writer.write(request_for("slow"))
        await eventually_async(lambda: policy.slow)
        writer.close()
        await writer.wait_closed()
        answer = b""
        while not answer:
            reader, writer = await connect()
            with contextlib.suppress(OSError):
                writer.write(request_for("a"))
                answer = await asyncio.wait_for(reader.read(3), PATIENCE)
        assert answer == b"a\n\n"
        assert policy.given_up == 1


async def test_too_many_connections(
    tmp_path: Path, policy: FakePolicy, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path / "policy", PolicyServer(policy.respond, max_connections=2)):
        taken = [await connect() for _ in range(2)]
        for _ in range(5):
            reader, _writer = await connect()
            assert await is_closed(reader)
        for reader, writer in taken:
            writer.write(request_for("a"))
            assert await read(reader) == b"a\n\n"
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "2 connections are open" in caplog.text


async def test_a_burst_of_connections_does_not_get_past_the_limit(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    async with running(tmp_path / "policy", PolicyServer(policy.respond, max_connections=5)):
        readers = [reader for reader, _ in await asyncio.gather(*(connect() for _ in range(60)))]
        closed = [asyncio.create_task(is_closed(reader)) for reader in readers]
        await eventually_async(lambda: sum(task.done() for task in closed) == 55)
        for task in closed:
            task.cancel()


async def test_idle_connections_are_closed_and_busy_ones_are_not(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    server = PolicyServer(policy.respond, idle_seconds=0.01, sweep_seconds=0.02)
    async with running(tmp_path / "policy", server):
        busy, writer = await connect()
        writer.write(request_for("slow"))
        await eventually_async(lambda: policy.slow)
        for _ in range(2):
            reader, _writer = await connect()
            assert await is_closed(reader)
        policy.free.set()
        assert await read(busy) == b"slow\n\n"


async def test_idle_connection_that_does_not_read_is_closed(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    server = PolicyServer(policy.respond, idle_seconds=0.01, sweep_seconds=0.02)
    async with running(tmp_path / "policy", server):
        _, writer = await connect()
        transport = writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        writer.write(request_for("a" * 4000) * 1000)
        await eventually_async(lambda: policy.answered and not server._connections)


async def test_stop_lets_answers_be_finished(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    server = PolicyServer(policy.respond)
    listener = Listener(tmp_path / "policy")
    await server.start(listener.socket)
    idle, _ = await connect()
    reader, writer = await connect()
    writer.write(request_for("slow") + request_for("a"))
    await eventually_async(lambda: policy.slow)
    stopping = asyncio.create_task(server.stop())
    assert await is_closed(idle)
    # A new connection waits in the backlog until the process ends.
    late, writer = await connect()
    writer.write(request_for("a"))
    policy.free.set()
    assert await read(reader) == b"slow\n\n"
    assert await is_closed(reader)
    await stopping
    assert policy.answered == 1
    listener.remove()
    assert await is_closed(late)
    assert not (tmp_path / "policy").exists()


async def test_stop_does_not_wait_for_ever(
    tmp_path: Path, policy: FakePolicy, connect: Connect
) -> None:
    server = PolicyServer(policy.respond)
    with Listener(tmp_path / "policy").socket as listening:
        await server.start(listening)
        reader, writer = await connect()
        writer.write(request_for("slow"))
        await eventually_async(lambda: policy.slow)
        await server.stop(drain_seconds=0.01)
        assert await is_closed(reader)


def test_socket_is_for_its_group(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        listener = Listener(tmp_path / "policy")
    finally:
        os.umask(before)
    with listener.socket:
        status = (tmp_path / "policy").stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o660
        assert os.listdir(tmp_path) == ["policy"]  # noqa: PTH208 - just the names


def test_socket_replaces_a_stale_one(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    Listener(path).socket.close()
    path.with_name("policy.new").touch()
    with Listener(path).socket, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_socket_is_removed_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    first, second = Listener(path), Listener(path)
    with first.socket, second.socket:
        first.remove()
        assert path.exists()
        second.remove()
        assert not path.exists()
        second.remove()


def test_socket_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    with pytest.raises(IsADirectoryError):
        Listener(tmp_path / "policy")
    assert not (tmp_path / "policy.new").exists()


def test_only_copy(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    with (
        single_instance(path),
        pytest.raises(AlreadyRunningError, match=r"policy\.lock"),
        single_instance(path),
    ):
        pytest.fail("two copies")
    with single_instance(path):
        pass
