"""`python -m medley_cluster`."""

import sys

from medley_cluster.commands import main

sys.exit(main())
