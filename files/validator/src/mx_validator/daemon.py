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
from functools import partial
from pathlib import Path

from mx_validator import log
from mx_validator.cache import known_good_capacity
from mx_validator.config import Config, ConfigError, read_api_key, read_config
from mx_validator.decider import CacheTimes, Decider, Stores
from mx_validator.listener import Listener, single_instance
from mx_validator.metrics import Metrics, serving
from mx_validator.model import LookupKind, Outcome
from mx_validator.platform_api import Endpoint, PlatformClient
from mx_validator.policy import PolicyService
from mx_validator.queue_space import QueueSpace
from mx_validator.server import MAX_CONNECTIONS, PolicyServer
from mx_validator.status import Parts, Status
from mx_validator.store import SqliteStore
from mx_validator.throttle import CircuitBreaker, Throttle, TokenBucket
from mx_validator.watchdog import Watchdog

# The server's connections, and a margin for those to the platform, for Python and for libraries.
OPEN_FILES = MAX_CONNECTIONS + 200
# Beside the file of known-good domains: the last mail of the unused ones among them.
LAST_MAIL_FILE = "last-mail.sqlite"
# The event loop runs again after this time, however busy the threads of the platform's client are.
SWITCH_SECONDS = 0.0001

logger = logging.getLogger(__name__)


async def run(config_file: Path) -> None:
    """Serve as the configuration file says, until SIGTERM or SIGINT.

    Raises:
        ConfigError: The configuration or the API key is not usable.
        AlreadyRunningError: Another daemon serves the same socket.
        OSError: The socket cannot be made.
    """
    daemon = _Daemon(config_file)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sys.setswitchinterval(SWITCH_SECONDS)
    socket_path = daemon.config.socket
    with single_instance(socket_path):
        # Before known-good domains are loaded: meanwhile, connections wait in the backlog.
        listener = Listener(socket_path)
        try:
            await daemon.start()
            await daemon.server.start(listener.socket)
            logger.info("listening on %s, asking %s", socket_path, daemon.config.oempro_url)
            await stop.wait()
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
            await daemon.server.stop()
            daemon.stop()
        finally:
            # Last: until then, new connections wait in the backlog.
            listener.remove()
    logger.info("stopped")


def allow_open_files() -> None:
    """Raise the limit of open files, as far as permitted, to what the server may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Daemon:
    def __init__(self, config_file: Path) -> None:
        self._config_file = config_file
        self.config, endpoint = _read(config_file)
        config = self.config
        log.set_level(config.log_level)
        self._client = PlatformClient(endpoint)
        self._store = SqliteStore(config.known_good_file)
        # A second file of the same form. If it is lost, unused domains are kept for longer.
        self._mail_store = SqliteStore(config.known_good_file.with_name(LAST_MAIL_FILE))
        self._throttle = Throttle(
            TokenBucket(config.api_rate_per_second, config.api_burst, time.monotonic()),
            CircuitBreaker(str(config.oempro_admin_api_key_file)),
        )
        # The socket is in Postfix's queue directory, where a chrooted smtpd can reach it.
        self._queue_space = QueueSpace(config.socket.parent)
        self._metrics = Metrics()
        stores = Stores(self._store, self._mail_store)
        self._decider = Decider(self._lookup, _cache_times(config), self._throttle, stores)
        self._decider.known_good.max_domains = known_good_capacity(_host_bytes())
        parts = Parts(
            self._decider,
            self._throttle,
            self._store,
            self._queue_space,
            lambda: self._watchdog.lag_seconds,
        )
        self._read_status = partial(Status.read, parts)
        self._metrics_server = contextlib.ExitStack()
        self._list_task: asyncio.Task[None] | None = None
        policy = PolicyService(self._decider, self._read_status, self._queue_space)
        self.server = PolicyServer(policy.respond)

    async def start(self) -> None:
        """Load the known-good domains, and start all parts."""
        self._decider.load(self._store.load(), dict(self._mail_store.load()))
        # The loaded domains stay: without freeze(), each garbage collection would traverse them, a
        # pause that grows with their number.
        gc.collect()
        gc.freeze()
        logger.info("%d known-good domains loaded", len(self._decider.known_good))
        self._store.start()
        self._mail_store.start()
        self._watchdog = Watchdog(self._on_heartbeat)
        self._metrics.register(self._read_status, self._decider.answer_counts.copy)
        self._serve_metrics()
        self._request_list()

    def stop(self) -> None:
        """Stop all parts, and write to disk what is not yet written."""
        self._watchdog.stop()
        self._metrics_server.close()
        self._client.close()
        self._store.stop()
        self._mail_store.stop()

    def reload(self) -> None:
        """Read the configuration and the key again; if they are not usable, keep the old ones."""
        try:
            config, endpoint = _read(self._config_file)
        except ConfigError as error:
            logger.error("not reloaded, everything stays as it was: %s", error)  # noqa: TRY400 - no traceback needed
            return
        for name in ("socket", "known_good_file"):
            old = getattr(self.config, name)
            if getattr(config, name) != old:
                logger.warning("%s stays %s until a restart", name, old)
        if config.oempro_url != self.config.oempro_url:
            self._decider.change_platform()
        self._decider.times = _cache_times(config)
        self._throttle.bucket.configure(config.api_rate_per_second, config.api_burst)
        self._throttle.breaker.reset(str(config.oempro_admin_api_key_file))
        self._client.set_endpoint(endpoint)
        log.set_level(config.log_level)
        self.config, old_config = config, self.config
        if _metrics_address(config) != _metrics_address(old_config):
            self._metrics_server.close()
            self._serve_metrics()
        self._request_list()
        logger.info("reloaded, asking %s", config.oempro_url)

    def _request_list(self) -> None:
        """Request the platform's list while no domain is known good: many first mails follow."""
        if self._list_task is not None:
            self._list_task.cancel()  # it may be of another platform
        if len(self._decider.known_good) == 0:
            self._list_task = asyncio.create_task(self._load_list())

    async def _load_list(self) -> None:
        try:
            domains = await self._client.list_domains()
        except Exception:
            logger.exception("the request for the platform's list of domains failed unexpectedly")
            return
        if isinstance(domains, Outcome):
            logger.info("no list of the platform's domains: %s", domains.reason)
            return
        self._decider.listed.update(domains)
        logger.info(
            "%d domains on the platform's list: the rate limit does not apply to them", len(domains)
        )

    def _serve_metrics(self) -> None:
        address = _metrics_address(self.config)
        try:
            self._metrics_server.enter_context(serving(*address, self._metrics))
        except OSError as error:
            # Without metrics, mail is accepted all the same.
            logger.error("no metrics on %s port %d: %s", *address, error.strerror)  # noqa: TRY400 - no traceback needed

    async def _lookup(self, domain: str, kind: LookupKind) -> Outcome:
        started = time.monotonic()
        outcome = await self._client.check_domain(domain, kind)
        self._metrics.record_lookup(outcome.kind, time.monotonic() - started)
        return outcome

    def _on_heartbeat(self) -> None:
        self._decider.run_maintenance()
        self._queue_space.update()
        if self._store.needs_rewrite:
            self._store.replace_all(self._decider.ages())
        if self._mail_store.needs_rewrite:
            self._mail_store.replace_all(self._decider.mail_ages())


def _read(config_file: Path) -> tuple[Config, Endpoint]:
    config = read_config(config_file)
    api_key = read_api_key(config.oempro_admin_api_key_file)
    return config, Endpoint(config.oempro_url, api_key, config.ca_file)


def _host_bytes() -> int:
    """Return the size of the host's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _metrics_address(config: Config) -> tuple[str, int]:
    return config.metrics_address, config.metrics_port


def _cache_times(config: Config) -> CacheTimes:
    return CacheTimes(
        allow_ttl=config.allow_ttl_seconds,
        deny_ttl=config.deny_ttl_seconds,
        known_good=config.known_good_days * 86400,
        deny_grace=config.deny_grace_seconds,
    )
