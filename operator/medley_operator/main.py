"""The operator process: `medley-operator run`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from medley_operator.kube import ConfigurationError
from medley_operator.log import configure, logger
from medley_operator.operator import Operator
from medley_operator.settings import Settings, SettingsError
from medley_operator.version import VERSION

LOG = logger("main")

SWITCH_INTERVAL_S = 0.0005
"""How long the planning thread may keep the interpreter from the event loop, which wants it after each system call.

At Python's default of 5 ms, a round of some seconds would slow every call to the API server down so much that the
Lease could be lost.
"""

EXIT_FAILED = 1
EXIT_BAD_SETTINGS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="medley-operator",
        description="Serves large language models on the cheapest mix of GPUs. Settings come from MEDLEY_* variables.",
    )
    parser.add_argument("--version", action="version", version=f"medley-operator {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="run the operator until it is told to stop")
    parser.parse_args(arguments)
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        print(f"medley-operator: {error}", file=sys.stderr)  # noqa: T201  there is no log yet
        return EXIT_BAD_SETTINGS
    configure(settings.log_level, settings.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return asyncio.run(_run(settings))


async def _run(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await Operator(settings).run(stop)
    except ConfigurationError as error:
        LOG.critical("cannot start", error=str(error))
        return EXIT_FAILED
    except ExceptionGroup:
        LOG.exception("stopped by an error that nobody foresaw")
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
