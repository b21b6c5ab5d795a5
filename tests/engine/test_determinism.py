"""`training.deterministic`: an operation that may give other bits the next time is refused, and no such kernel is chosen."""

from collections.abc import Iterator

import pytest
import torch

from luthier.engine import determinism, packed
from luthier.engine.blocks import Rule
from luthier.engine.packed import Packed


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    determinism.enter(False, "cpu")


def test_an_operation_without_a_deterministic_form_ends_the_run_only_where_that_is_asked_for() -> None:
    numbers, places = torch.zeros(4), torch.tensor([1, 1])
    determinism.enter(False, "cpu")
    with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
        numbers.put_(places, torch.ones(2))
    assert not determinism.asked_for()
    determinism.enter(True, "cpu")
    assert determinism.asked_for()
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        numbers.put_(places, torch.ones(2))


@pytest.mark.parametrize("asked", [True, False])
def test_attention_asks_for_a_measured_kernel_only_where_it_may_be_another_sum(asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_of: list[str] = []
    monkeypatch.setattr(packed.varlen, "supports", lambda *_: True)
    monkeypatch.setattr(packed.probe, "attention_kernel", lambda device: asked_of.append(str(device)))
    determinism.enter(asked, "cpu")
    q = torch.randn(2, 3, 8)
    Packed([3]).attend(0, q, q, q, Rule(0.3))
    assert asked_of == ([] if asked else ["cpu"])
