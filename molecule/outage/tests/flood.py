"""Runs on the MX: asks about a known-good domain in peace and during a flood, by turns.

    python3 flood.py KNOWN_GOOD_DOMAIN FLOOD_SUFFIX NUMBER

Prints JSON: latencies in milliseconds with and without the flood, each the median of its turns,
since a hiccup of the machine, which runs other hosts too, spoils but one; and what was answered.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import select
import socket
import statistics
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection

SOCKET = "/var/spool/postfix/mx-validator/policy"
TURN_SECONDS = 2.5
PROBES_PER_SECOND = 200
FLOOD_CONNECTIONS = 20  # each with one request under way, like as many smtpd processes
FLOOD_PER_SECOND = 5_000
TICK_SECONDS = 0.001


def request(recipient: str) -> bytes:
    return f"request=smtpd_access_policy\nrecipient={recipient}\n\n".encode()


def connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(SOCKET)
    return connection


def flood(suffix: str, number: int, on: Connection, report: Connection) -> None:
    """Ask about so many random domains while the other side says so."""
    os.nice(19)  # what asks for the flood must not keep the probe from its processor
    replies: Counter[str] = Counter()
    poll = select.poll()
    connections = {}
    for _ in range(FLOOD_CONNECTIONS):
        connection = connect()
        connections[connection.fileno()] = connection
        poll.register(connection, select.POLLIN)
    idle = list(connections.values())
    asked = 0
    is_on = False
    while asked < number or len(idle) < FLOOD_CONNECTIONS:
        if on.poll(None if not is_on and len(idle) == FLOOD_CONNECTIONS else 0):
            is_on = on.recv()
        due = FLOOD_PER_SECOND * TICK_SECONDS if is_on else 0
        ends = time.monotonic() + TICK_SECONDS
        while (left := ends - time.monotonic()) > 0:
            while idle and due > 0 and asked < number:
                domain = f"{random.getrandbits(64):x}.{suffix}"
                idle.pop().sendall(request(f"x@{domain}"))
                asked += 1
                due -= 1
            for descriptor, _ in poll.poll(left * 1000):
                connection = connections[descriptor]
                replies[connection.recv(200).decode().split()[0]] += 1
                idle.append(connection)
    report.send(replies)


def probe(domain: str, seconds: float) -> list[float]:
    """Ask about a known-good domain at a steady pace; return the latencies."""
    latencies = []
    with connect() as connection:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            began = time.perf_counter()
            connection.sendall(request(f"x@{domain}"))
            reply = connection.recv(200)
            latencies.append((time.perf_counter() - began) * 1000)
            if reply != b"action=OK\n\n":
                raise SystemExit(f"known-good domain: {reply!r}")
            time.sleep(1 / PROBES_PER_SECOND)
    return latencies


def percentile(latencies: list[float], part: float) -> float:
    return sorted(latencies)[int(len(latencies) * part)]


def main() -> None:
    domain, suffix, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    switch, switched = multiprocessing.Pipe()
    result, report = multiprocessing.Pipe()
    flooding = multiprocessing.Process(target=flood, args=(suffix, number, switched, report))
    began = time.time()
    flooding.start()
    quiet: list[list[float]] = []
    flooded: list[list[float]] = []
    while not result.poll():
        quiet.append(probe(domain, TURN_SECONDS))
        switch.send(True)
        flooded.append(probe(domain, TURN_SECONDS))
        if result.poll():
            break
        switch.send(False)
    flooding.join()
    figures = {
        f"{name}_{part * 100:.0f}": statistics.median(percentile(turn, part) for turn in turns)
        for name, turns in (("quiet", quiet), ("flooded", flooded))
        for part in (0.5, 0.99)
    }
    times = {"began": began, "ended": time.time(), "turns": len(flooded)}
    print(json.dumps({**figures, **times, "replies": result.recv()}))


if __name__ == "__main__":
    main()
