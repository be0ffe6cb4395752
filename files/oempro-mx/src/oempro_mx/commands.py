"""Runs other programs, none of them for ever."""

from __future__ import annotations

import shlex
import subprocess

from oempro_mx.model import CouldNotLookError

COMMAND_SECONDS = 15.0


def run(*argv: str, codes: tuple[int, ...] = (0,)) -> str:
    """Run a program, and return its standard output.

    Raises:
        CouldNotLookError: it cannot be run, does not end in time or ends with another exit status
            than `codes`. The remedy is to run it by hand.
    """
    status, output, errors = run_any(*argv)
    if status not in codes:
        last = (errors or output).strip().splitlines()[-1:]
        raise CouldNotLookError(
            f"{argv[0]} ended with status {status}: {' '.join(last)}", shlex.join(argv)
        )
    return output


def run_any(*argv: str) -> tuple[int, str, str]:
    """Run a program; return its exit status, standard output and errors. Raises like `run`."""
    try:
        done = subprocess.run(  # noqa: S603 - all callers give it their own words
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=COMMAND_SECONDS,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    except subprocess.TimeoutExpired as error:
        reason = f"{argv[0]} did not end within {COMMAND_SECONDS:.0f} s"
        raise CouldNotLookError(reason, shlex.join(argv)) from error
    except OSError as error:
        reason = f"{argv[0]}: {error.strerror}"
        raise CouldNotLookError(reason, f"command -v {argv[0]}") from error
    return (
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )
