"""``python -m medley_engine``: the ``medley-engine`` command."""

import sys

from medley_engine.cli import main

sys.exit(main())
