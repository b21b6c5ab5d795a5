"""Fixtures of the engine's tests; the functions behind them are in conftest_engine.py, where tests import them from."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from conftest_engine import open_tiny

from luthier.engine import Engine, batches, lanes


@pytest.fixture(autouse=True, scope="module")
def short_beginnings_are_shared_too(request: pytest.FixtureRequest) -> Iterator[None]:
    """A tiny model's rows are too short for sharing to pay; what it computes is tested all the same."""
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__.rpartition(".")[2] != "test_batches":
            patch.setattr(batches, "PASS_TOKENS", 0)
        yield


@pytest.fixture(autouse=True, scope="module")
def two_lanes_are_used_everywhere() -> Iterator[None]:
    """Updates of a tiny model are too small for lanes to pay, and the machine may have one core; what they compute is tested all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "LANE_TOKENS", 0)
        patch.setattr(lanes, "usual_count", lambda device: 2)
        patch.setattr(lanes, "TRAINED_SHARE", 0.25)  # an adapter is much beside so small a model
        yield


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    return open_tiny(tiny_model)
