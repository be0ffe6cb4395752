"""Makes a failing session smaller while it still fails, within a time.

Why not hypothesis: a try costs a session and its deliveries, up to seconds, so the order matters
(whole transactions first, bytes last), and the time must be bounded; hypothesis shrinks the random
choices behind a session, knows neither, and needs hundreds of tries.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from contents import Chunks, Content, Data
from session import Envelope, Greet, Send, Session, Step


def minimise(session: Session, fails: Callable[[Session], bool], seconds: float) -> Session:
    """Return the smallest session found that still fails."""
    deadline = time.monotonic() + seconds
    smallest = session
    improved = True
    while improved:
        improved = False
        for candidate in smaller(smallest):
            if time.monotonic() > deadline:
                return smallest
            if fails(candidate):
                smallest = candidate
                improved = True
                break
    return smallest


def smaller(session: Session) -> Iterator[Session]:
    """All sessions that are a bit smaller than this one, the largest steps first."""
    steps = session.steps
    length = len(steps) // 2
    while length:
        for begin in range(0, len(steps), length):
            left = steps[:begin] + steps[begin + length :]
            if any(isinstance(each, Greet) for each in left):
                yield replace(session, steps=left)
        length //= 2
    if session.pieces is not None:
        yield replace(session, pieces=None)
    if session.pipelined:
        yield replace(session, pipelined=False)
    if session.stubborn:
        yield replace(session, stubborn=False)
    if session.impatient:
        yield replace(session, impatient=False)
    for place, step in enumerate(steps):
        for other in smaller_steps(step):
            yield replace(session, steps=(*steps[:place], other, *steps[place + 1 :]))


def smaller_steps(step: Step) -> Iterator[Step]:
    if isinstance(step, Envelope) and step.parameters:
        yield replace(step, parameters=())
    if isinstance(step, Send):
        for content in smaller_contents(step.content):
            yield replace(step, content=content)


def smaller_contents(content: Content) -> Iterator[Content]:
    if isinstance(content, Chunks):
        if len(content.chunks) > 1:
            yield Chunks((b"".join(content.chunks),))
        else:
            for data in shorter(content.chunks[0]):
                yield Chunks((data,))
    else:
        for data in shorter(content.data):
            yield Data(data, content.bare)


def shorter(data: bytes) -> Iterator[bytes]:
    """The data without one of its parts: halves, quarters, down to a 32nd or single bytes."""
    for parts in (2, 4, 8, 16, 32):
        length = max(len(data) // parts, 1)
        if data and length * parts <= len(data) + parts:
            for begin in range(0, len(data), length):
                yield data[:begin] + data[begin + length :]
