"""The `medley` command for people, also installed as the kubectl plugin `kubectl-medley`."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command with the arguments of this process, and exit."""
    from medley_operator.cli.app import app  # noqa: PLC0415 - shell completion imports this module often

    invoked = Path(sys.argv[0]).name
    name = "kubectl medley" if invoked.startswith("kubectl-medley") else "medley"
    try:
        app(prog_name=name)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader went away (`medley plan … | head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
