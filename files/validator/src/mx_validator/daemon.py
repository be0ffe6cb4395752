"""The daemon: its parts put together, and what it does on signals."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path

from mx_validator import log
from mx_validator.cache import room_for_known_good
from mx_validator.config import Config, ConfigError, read_api_key, read_config
from mx_validator.decider import Decider, Disk, Outcome, Times
from mx_validator.listener import Listener, only_copy
from mx_validator.metrics import Metrics, served
from mx_validator.platform_api import PlatformClient, Target
from mx_validator.policy import Responder
from mx_validator.queue_space import Room
from mx_validator.server import MAX_CONNECTIONS, Server
from mx_validator.status import Observer
from mx_validator.store import Store
from mx_validator.throttle import Breaker, Kind, Limits, TokenBucket
from mx_validator.watchdog import Watchdog

# The server's connections, and room for those to the platform, for Python and for libraries.
OPEN_FILES = MAX_CONNECTIONS + 200
# Beside the file of known-good domains: when mail last came for the unused ones among them.
MAIL_FILE = "last-mail.sqlite"
# The event loop gets its turn after this time, however busy the threads are that ask the platform.
SWITCH_SECONDS = 0.0001

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
    sys.setswitchinterval(SWITCH_SECONDS)
    place = service.config.socket
    with only_copy(place):
        # Before known-good domains are loaded: who connects meanwhile waits, and is not sent away.
        listener = Listener(place)
        try:
            await service.start()
            await service.server.start(listener.socket)
            logger.info("listening on %s, asking %s", place, service.config.url)
            await stop.wait()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
            await service.server.stop()
            service.stop()
        finally:
            # Last: until then, who connects waits for the next copy.
            listener.remove()
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
        config = self.config
        log.set_level(config.log_level)
        self._client = PlatformClient(target)
        self._store = Store(config.known_good_file)
        # A second file of the same form. Without it, unused domains stay known for longer.
        self._mail_store = Store(config.known_good_file.with_name(MAIL_FILE))
        self._limits = Limits(
            TokenBucket(config.rate_per_second, config.burst, time.monotonic()),
            Breaker(str(config.api_key_file)),
        )
        # The socket is in Postfix's queue, or smtpd in its chroot could not reach it.
        self._room = Room(config.socket.parent)
        self._metrics = Metrics()
        disk = Disk(self._store, self._mail_store)
        self._decider = Decider(self._ask, _times(config), self._limits, disk)
        self._decider.known_good.max_domains = room_for_known_good(_host_bytes())
        self._observer = Observer(
            self._decider,
            self._limits,
            self._store,
            self._room,
            lambda: self._watchdog.lag_seconds,
        )
        self._metrics_server = contextlib.ExitStack()
        self._list: asyncio.Task[None] | None = None
        self.server = Server(Responder(self._decider, self._observer.look, self._room).respond)

    async def start(self) -> None:
        """Load what is known good, and set everything going."""
        self._decider.load(self._store.load(), dict(self._mail_store.load()))
        # What has been loaded stays: it need not be searched for garbage time and again, a pause
        # that grows with it.
        gc.collect()
        gc.freeze()
        logger.info("%d known-good domains loaded", len(self._decider.known_good))
        self._store.start()
        self._mail_store.start()
        self._watchdog = Watchdog(self._beat)
        self._metrics.add(self._observer)
        self._serve_metrics()
        self._begin_list()

    def stop(self) -> None:
        """End what `start` began, and write what is left to write."""
        self._watchdog.stop()
        self._metrics_server.close()
        self._client.close()
        self._store.stop()
        self._mail_store.stop()

    def reload(self) -> None:
        """Read the configuration and the key again. If they are not usable, go on as before."""
        try:
            config, target = _read(self._path)
        except ConfigError as error:
            logger.error("not reloaded, everything stays as it was: %s", error)  # noqa: TRY400 - no traceback needed
            return
        for name in ("socket", "known_good_file"):
            old = getattr(self.config, name)
            if getattr(config, name) != old:
                logger.warning("%s stays %s until a restart", name, old)
        if config.url != self.config.url:
            self._decider.change_platform()
        self._decider.times = _times(config)
        self._limits.bucket.configure(config.rate_per_second, config.burst)
        self._limits.breaker.reset(str(config.api_key_file))
        self._client.set_target(target)
        log.set_level(config.log_level)
        self.config, old_config = config, self.config
        if _metrics_place(config) != _metrics_place(old_config):
            self._metrics_server.close()
            self._serve_metrics()
        self._begin_list()
        logger.info("reloaded, asking %s", config.url)

    def _begin_list(self) -> None:
        """Ask for the platform's list if nothing is known yet: then first mails come in numbers."""
        if self._list is not None:
            self._list.cancel()  # it may be of another platform
        if len(self._decider.known_good) == 0:
            self._list = asyncio.create_task(self._take_list())

    async def _take_list(self) -> None:
        try:
            domains = await self._client.list_domains()
        except Exception:
            logger.exception("asking for the platform's list of domains failed unexpectedly")
            return
        if isinstance(domains, Outcome):
            logger.info("no list of the platform's domains (%s): goes on without", domains.reason)
            return
        self._decider.listed.update(domains)
        logger.info("%d domains on the platform's list: each is asked about once", len(domains))

    def _serve_metrics(self) -> None:
        place = _metrics_place(self.config)
        try:
            self._metrics_server.enter_context(served(*place, self._metrics))
        except OSError as error:
            # Nobody's mail is to wait for this.
            logger.error("no metrics on %s port %d: %s", *place, error.strerror)  # noqa: TRY400 - no traceback needed

    async def _ask(self, domain: str, kind: Kind) -> Outcome:
        began = time.monotonic()
        outcome = await self._client.ask(domain, kind)
        self._metrics.observe(outcome.kind, time.monotonic() - began)
        return outcome

    def _beat(self) -> None:
        self._decider.tend()
        self._room.look()
        if self._store.wants_all:
            self._store.keep_all(self._decider.ages())
        if self._mail_store.wants_all:
            self._mail_store.keep_all(self._decider.mail_ages())


def _read(path: Path) -> tuple[Config, Target]:
    config = read_config(path)
    return config, Target(config.url, read_api_key(config.api_key_file), config.ca_file)


def _host_bytes() -> int:
    """The host's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _metrics_place(config: Config) -> tuple[str, int]:
    return config.metrics_address, config.metrics_port


def _times(config: Config) -> Times:
    return Times(
        allow_ttl=config.allow_ttl_seconds,
        deny_ttl=config.deny_ttl_seconds,
        known_good=config.known_good_days * 86400,
        deny_grace=config.deny_grace_seconds,
    )
