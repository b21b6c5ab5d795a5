"""Models and a machine with known numbers, for the tests of this room."""

import pytest

from luthier.models.facts import ModelFacts
from luthier.plan.cost import DataShape
from luthier.records import Machine


@pytest.fixture
def smollm2():
    return ModelFacts(
        parameters=134_515_008, layers=30, hidden=576, intermediate=1536, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, context=8192, tied=True
    )


@pytest.fixture
def llama3_8b():
    return ModelFacts(
        parameters=8_030_261_248,
        layers=32,
        hidden=4096,
        intermediate=14336,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocabulary=128256,
        context=8192,
        tied=False,
    )


@pytest.fixture
def laptop():
    return Machine("cpu", "laptop", 2, 8_000_000_000, 340.0, 140.0)


@pytest.fixture
def addresses():
    return DataShape(train_rows=790, train_tokens=118_500, trained_tokens=30_000, longest=210, shared_prefix_tokens=90, answer_p99=50)
