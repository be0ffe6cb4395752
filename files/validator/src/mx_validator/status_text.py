"""The status as text, for the command line."""

from __future__ import annotations

from mx_validator.status import Status

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def format_duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has at least two."""
    for length, unit in _UNITS:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def format_status(status: Status) -> list[str]:
    """Return the lines of `mx-validator status`: what is wrong, and what to do about it."""
    up = format_duration(status.up_seconds)
    return [
        f"daemon:      up for {up}, event loop {status.lag_seconds:.3f} s late",
        f"platform:    {_platform(status)}",
        f"API key:     {_key(status)}",
        f"known good:  {_known_good(status)}",
        f"on disk:     {_store(status)}",
        f"mail queue:  {_queue(status)}",
        f"denied:      {status.denied} domains remembered",
    ]


def _platform(status: Status) -> str:
    if status.failing_seconds is not None:
        text = f"no verdict for {format_duration(status.failing_seconds)}: {status.last_error}"
        return text + ("; asked now and then only" if status.breaker_open else "")
    if status.last_verdict_seconds is None:
        return "not asked yet"
    text = f"answers; last verdict {format_duration(status.last_verdict_seconds)} ago"
    return text if status.lookup_seconds is None else f"{text}, in {status.lookup_seconds:.2f} s"


def _key(status: Status) -> str:
    if status.key_refused:
        return "REFUSED: put the right one into the API key file, and reload the daemon"
    return "accepted" if status.platform_up else "not known, for want of an answer"


def _known_good(status: Status) -> str:
    text = f"{status.known_good} domains"
    if status.oldest_seconds is not None and status.newest_seconds is not None:
        newest, oldest = map(format_duration, (status.newest_seconds, status.oldest_seconds))
        text += f", confirmed {newest} to {oldest} ago"
    return f"{text}; good for {status.known_good_days} d without the platform"


def _store(status: Status) -> str:
    if status.store_last_error is not None and status.store_failing_seconds is not None:
        failing = format_duration(status.store_failing_seconds)
        return (
            f"NOT WRITTEN for {failing}: {status.store_last_error};"
            f" {status.store_unwritten} domains wait"
        )
    text = f"{status.store_unwritten} domains wait" if status.store_unwritten else "up to date"
    if status.store_damaged:
        lost = "an unknown number of" if status.store_lost is None else f"{status.store_lost}"
        text += f"; was damaged and written anew, {lost} domains were lost"
    return text


def _queue(status: Status) -> str:
    if status.queue_free_inodes is None:
        return "takes mail"
    if status.queue_short:
        return f"NO MAIL IS TAKEN, only {status.queue_free_inodes} free inodes"
    return f"takes mail, {status.queue_free_inodes} free inodes"
