"""Makes what tests share (`tests/*.py`) importable by name, and decides which examples property tests draw.

In importlib's import mode test folders are no packages.
"""

import os
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# How long an example takes says something about the machine, and nothing about the code.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fresh", settings.get_profile("same"), derandomize=False, print_blob=True)
settings.load_profile("fresh" if os.environ.get("MEDLEY_FRESH_EXAMPLES") else "same")
