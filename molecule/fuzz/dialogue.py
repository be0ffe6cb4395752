"""Sends a session to the MX, and notes what was sent and what came back."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field

from contents import Data
from probes import Mx, unverified
from session import Mail, Rcpt, Send, Session, StartTls, Step

TIMEOUT_SECONDS = 60  # of one reply
PIECES = 20  # a write is cut into so many, at most


class ClosedError(Exception):
    """The server has closed the connection."""


@dataclass
class Exchange:
    """One step: the replies to it, and how much of it has left the sender."""

    step: Step
    replies: list[str] = field(default_factory=list)
    begun: bool = False  # content was sent
    whole: bool = False  # all of it


@dataclass
class Transcript:
    """What happened in one session."""

    session: Session
    exchanges: list[Exchange] = field(default_factory=list)
    greeting: str = ""
    ended: str = ""  # by whom or what, if not by QUIT


class Wire:
    """One connection: writes in pieces, reads replies."""

    def __init__(self, address: str, pieces: int | None) -> None:
        self._socket = socket.create_connection((address, 25), timeout=TIMEOUT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = self._socket.makefile("rb")
        self._random = None if pieces is None else random.Random(pieces)

    def start_tls(self) -> None:
        """Go on encrypted."""
        self._socket = unverified().wrap_socket(self._socket)
        self._read = self._socket.makefile("rb")

    def send(self, data: bytes) -> None:
        """Write, in pieces of random size if the session wants that."""
        places = [0, len(data)]
        if self._random:
            places += (
                self._random.randint(0, len(data)) for _ in range(self._random.randrange(PIECES))
            )
        places.sort()
        for begin, end in itertools.pairwise(places):
            if begin < end:
                self._socket.sendall(data[begin:end])

    def reply(self) -> str:
        """Read one reply; of several lines, the last.

        Raises:
            ClosedError: there is none.
        """
        while True:
            line = self._read.readline()
            if not line.endswith(b"\n"):
                raise ClosedError
            if line[3:4] != b"-":
                return line.decode("utf-8", "backslashreplace").rstrip()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()
        self._read.close()


def converse(mx: Mx, session: Session) -> Transcript:
    """Run a session to its end, or until the server ends it."""
    transcript = Transcript(session)
    wire = Wire(mx.address, session.pieces)
    try:
        Dialogue(wire, transcript).run()
    except ClosedError:
        transcript.ended = "closed by the server"
    except TimeoutError:
        transcript.ended = f"no reply in {TIMEOUT_SECONDS} s"
    except (OSError, ssl.SSLError) as error:
        transcript.ended = f"{type(error).__name__}: {error}"
    finally:
        wire.close()
    return transcript


class Dialogue:
    """The sender's side of one session."""

    def __init__(self, wire: Wire, transcript: Transcript) -> None:
        self._wire = wire
        self._transcript = transcript
        self._session = transcript.session

    def run(self) -> None:
        steps = list(self._session.steps)
        if not self._session.impatient:
            self._transcript.greeting = self._wire.reply()
        while steps:
            group = list(self._group(steps))
            del steps[: len(group)]
            last = not steps and self._session.cut is not None
            self._exchange(group, last)
            if len(group) == 1 and not self._session.stubborn and self._refused():
                while steps and isinstance(steps[0], Rcpt | Send):
                    del steps[0]

    def _refused(self) -> bool:
        """Whether the last step was a sender who was refused."""
        last = self._transcript.exchanges[-1]
        return isinstance(last.step, Mail) and last.replies[-1:] > ["4"]

    def _group(self, steps: list[Step]) -> Iterator[Step]:
        """The steps that are sent in one go."""
        together = self._session.pipelined and isinstance(steps[0], Mail)
        yield steps[0]
        for step in steps[1:] if together else ():
            if isinstance(step, Rcpt):
                yield step
                continue
            if isinstance(step, Send) and not step.early:
                yield step
            return

    def _exchange(self, steps: list[Step], last: bool) -> None:
        """Send some steps and read the replies to them."""
        exchanges = [Exchange(step) for step in steps]
        self._transcript.exchanges += exchanges
        out = b""
        for exchange in exchanges:
            step = exchange.step
            if not isinstance(step, Send):
                out += step.line + b"\r\n"
            elif step.early:
                out += b"".join(step.commands())
                out += step.content.wire if isinstance(step.content, Data) else b""
                out += b"QUIT\r\n"
                exchange.begun = exchange.whole = True
            else:
                out += b"".join(step.commands())
        final = exchanges[-1]
        if last and not (isinstance(final.step, Send) and isinstance(final.step.content, Data)):
            self._cut(out, final)
            return
        if isinstance(final.step, Send) and not isinstance(final.step.content, Data):
            final.begun = True
        self._wire.send(out)
        if final.begun:
            final.whole = True
        if self._session.impatient and not self._transcript.greeting:
            self._transcript.greeting = self._wire.reply()
        for exchange in exchanges:
            self._replies(exchange, last)

    def _replies(self, exchange: Exchange, last: bool) -> None:
        """Read what is answered to one step; send the content after a 354."""
        step = exchange.step
        if isinstance(step, Send) and step.early:
            while True:
                exchange.replies.append(self._wire.reply())
        for _ in step.commands() if isinstance(step, Send) else [step]:
            exchange.replies.append(self._wire.reply())
        if (
            isinstance(step, Send)
            and isinstance(step.content, Data)
            and exchange.replies[-1].startswith("354")
        ):
            if last:
                self._cut(step.content.wire, exchange)
                return
            exchange.begun = True
            self._wire.send(step.content.wire)
            exchange.whole = True
            exchange.replies.append(self._wire.reply())
        if isinstance(step, StartTls) and exchange.replies[-1].startswith("220"):
            self._wire.start_tls()

    def _cut(self, out: bytes, exchange: Exchange) -> None:
        """Send a part and break the connection."""
        length = int(len(out) * (self._session.cut or 0))
        exchange.begun = isinstance(exchange.step, Send)
        exchange.whole = exchange.begun and length == len(out)
        self._wire.send(out[:length])
        self._transcript.ended = f"cut by the sender after {length} of {len(out)} bytes"
        self._wire.close()
