"""Where the tests of the checks find the planted sets."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
