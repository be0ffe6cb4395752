"""A session as a person reads it, and can type it again."""

from __future__ import annotations

from collections.abc import Iterator

from contents import Data
from dialogue import Transcript
from session import Send

WIDTH = 300  # bytes of a line that are shown


def escaped(data: bytes) -> str:
    """Bytes as printable text, in the form that printf(1) takes."""
    text = data.decode("latin-1").encode("unicode_escape").decode()
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}... ({len(data)} bytes)"


def dialogue(transcript: Transcript) -> Iterator[str]:
    """The lines of a session: C: what the sender says, S: what the server replies."""
    session = transcript.session
    habits = ("pipelined", "stubborn", "impatient", "pieces", "cut")
    used = [
        f"{name}={value}"
        for name in habits
        if (value := getattr(session, name)) not in (None, False)
    ]
    if used:
        yield f"({', '.join(used)})"
    yield f"S: {transcript.greeting}"
    for exchange in transcript.exchanges:
        replies = list(exchange.replies)
        step = exchange.step
        for line in step.commands() if isinstance(step, Send) else [step.line + b"\r\n"]:
            yield f"C: {escaped(line)}"
            if replies:
                yield f"S: {replies.pop(0)}"
        if isinstance(step, Send) and isinstance(step.content, Data) and exchange.begun:
            yield f"C: {escaped(step.content.wire)}"
        yield from (f"S: {reply}" for reply in replies)
    if transcript.ended:
        yield f"({transcript.ended})"
