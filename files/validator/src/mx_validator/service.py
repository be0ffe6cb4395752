"""The daemon: its parts put together, and what it does on signals."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from pathlib import Path

from mx_validator import log
from mx_validator.config import Config, ConfigError, read_api_key, read_config
from mx_validator.listener import Listener, only_copy
from mx_validator.platform import PlatformClient, Target
from mx_validator.responder import Responder
from mx_validator.server import MAX_CONNECTIONS, Server
from mx_validator.verdict import Decider

# The server's connections, and room for those to the platform, for Python and for libraries.
OPEN_FILES = MAX_CONNECTIONS + 200

logger = logging.getLogger(__name__)


async def run(path: Path) -> None:
    """Serve as the configuration file says, until SIGTERM or SIGINT.

    Raises:
        ConfigError: The configuration or the API key is not usable.
        AlreadyRunningError: Another copy serves the same socket.
        OSError: The socket cannot be made.
    """
    service = _Service(path)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, service.reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    place = service.config.socket
    with only_copy(place):
        listener = Listener(place)
        try:
            await service.server.start(listener.socket)
            logger.info("listening on %s, asking %s", place, service.config.url)
            await stop.wait()
        finally:
            listener.remove()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        await service.server.stop()
        service.client.close()
    logger.info("stopped")


def allow_open_files() -> None:
    """Raise the limit of open files, as far as permitted, to what the server may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Service:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.config, target = _read(path)
        log.set_level(self.config.log_level)
        self.client = PlatformClient(target)
        self._decider = Decider(
            self.client.ask, self.config.allow_ttl_seconds, self.config.deny_ttl_seconds
        )
        self.server = Server(Responder(self._decider).respond)

    def reload(self) -> None:
        """Read the configuration and the key again. If they are not usable, go on as before."""
        try:
            config, target = _read(self._path)
        except ConfigError as error:
            logger.error("not reloaded, everything stays as it was: %s", error)  # noqa: TRY400 - no traceback needed
            return
        if config.socket != self.config.socket:
            logger.warning("the socket stays at %s until a restart", self.config.socket)
        if config.url != self.config.url:
            # What one platform said is no verdict of another.
            self._decider.forget()
        self._decider.set_ttls(config.allow_ttl_seconds, config.deny_ttl_seconds)
        self.client.set_target(target)
        log.set_level(config.log_level)
        self.config = config
        logger.info("reloaded, asking %s", config.url)


def _read(path: Path) -> tuple[Config, Target]:
    config = read_config(path)
    api_key = read_api_key(config.api_key_file)
    return config, Target(config.url, api_key, config.api_key_file, config.ca_file)
