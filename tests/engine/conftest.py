"""Fixtures of the engine's tests; the functions behind them are in conftest_engine.py, where tests import them from."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest_engine import open_tiny

from luthier.engine import Engine


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    return open_tiny(tiny_model)
