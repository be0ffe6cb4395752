"""The command `oempro-mx`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from oempro_mx import __version__, text
from oempro_mx.alarms.run import look as alarm
from oempro_mx.alarms.settings import DEFAULT_PATH as ALARM_PATH
from oempro_mx.alarms.settings import AlarmSettings
from oempro_mx.model import Finding, State
from oempro_mx.settings import DEFAULT_PATH, Settings, SettingsError
from oempro_mx.status import look_at_everything

TEXTFILES = Path("/var/lib/prometheus/node-exporter")
EXIT_CODES = {State.OK: 0, State.WARN: 1, State.COULD_NOT_LOOK: 1, State.FAIL: 2}


def main(arguments: list[str] | None = None) -> int:
    """Run the command with `arguments`, by default those of the process; return the exit code."""
    options = _parser().parse_args(arguments)
    if os.geteuid() != 0:
        return _stop("run this as root: sudo oempro-mx status")
    if options.command == "alarm":
        return _alarm(options)
    if options.command == "metrics":
        return _metrics(options.directory)
    try:
        settings = Settings.read(options.config)
    except SettingsError as error:
        return _stop(str(error))
    if options.check_config:
        return 0
    findings = look_at_everything(settings)
    if options.json:
        print(text.as_json(settings.hostname, findings))
    else:
        print("\n".join(text.lines(findings, sys.stdout.isatty())))
    return exit_code(findings)


def exit_code(findings: list[Finding]) -> int:
    """Return 2 if anything fails, 1 if anything else is not OK, else 0."""
    return max(EXIT_CODES[finding.state] for finding in findings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="oempro-mx", description="Looks after this MX as a whole; mx-validator is its daemon."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = "show how the MX is, with the command that mends what is not well"
    status_parser = commands.add_parser(
        "status",
        help=status,
        description=f"{status}. It changes nothing. Exit code: 0 all is well; 1 something is WARN,"
        " or COULD NOT be LOOKed at; 2 something FAILs, or the command cannot run.",
    )
    status_parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    status_parser.add_argument(
        "--check-config", action="store_true", help="only check that the file can be used"
    )
    status_parser.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_PATH,
        metavar="FILE",
        help="what the playbook says about this host (%(default)s)",
    )
    tells = "look, and tell alarm_url and alarm_command what has changed; a timer runs it"
    alarm_parser = commands.add_parser(
        "alarm",
        help=tells,
        description=f"{tells}. Exit code: 0, also if it could not be told, which is tried again and"
        " is seen in the status; 2 the command cannot run.",
    )
    alarm_parser.add_argument(
        "--check-config", action="store_true", help="only check that the file can be used"
    )
    alarm_parser.add_argument(
        "--config", type=Path, default=ALARM_PATH, metavar="FILE", help="whom to tell (%(default)s)"
    )
    metrics = "write the metrics for Prometheus's node exporter; a timer runs it"
    metrics_parser = commands.add_parser(
        "metrics",
        help=metrics,
        description=f"{metrics}. Exit code: 0, also if some could not be read and are missing; 2"
        " the command cannot run.",
    )
    metrics_parser.add_argument(
        "--directory",
        type=Path,
        default=TEXTFILES,
        metavar="DIR",
        help="that of the textfile collector (%(default)s)",
    )
    return parser


def _metrics(directory: Path) -> int:
    # Imported here: the library is there for the validator, and takes its time to load.
    from oempro_mx.metrics.collect import write  # noqa: PLC0415

    try:
        problems = write(Settings.read(DEFAULT_PATH), directory)
    except (SettingsError, OSError) as error:
        return _stop(str(error))
    return _tell(problems)


def _alarm(options: argparse.Namespace) -> int:
    try:
        alarm_settings = AlarmSettings.read(options.config)
        if options.check_config:
            return 0
        settings = Settings.read(DEFAULT_PATH)
        problems = alarm(settings.hostname, look_at_everything(settings), alarm_settings)
    except (SettingsError, OSError) as error:
        return _stop(str(error))
    return _tell(problems)


def _tell(problems: list[str]) -> int:
    """Say what went wrong in a run of a timer, which the next run tries again."""
    for problem in problems:
        print(problem, file=sys.stderr)
    return 0


def _stop(reason: str) -> int:
    print(f"oempro-mx: {reason}", file=sys.stderr)
    return 2
