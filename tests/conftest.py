"""Makes what tests share (`tests/*.py`) importable by name, and decides which examples property tests draw.

In importlib's import mode test folders are no packages.
"""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("same", derandomize=True)
settings.register_profile("fresh", derandomize=False, print_blob=True)
settings.load_profile("fresh" if os.environ.get("MEDLEY_FRESH_EXAMPLES") else "same")
