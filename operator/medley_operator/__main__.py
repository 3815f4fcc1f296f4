"""`python -m medley_operator run`."""

import sys

from medley_operator.main import main

sys.exit(main())
