"""Makes what tests share (`tests/*.py`) importable by name: in importlib's import mode test folders are no packages."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
