"""The chunked loss against torch's own cross entropy."""

import pytest
import torch

from luthier.engine.head import Head


class Model:
    """As much of a model as a head asks for."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self.bias: torch.Tensor | None = None

    def get_output_embeddings(self) -> "Model":
        return self


def loss_sum(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return Head(Model(weight)).losses(hidden, targets)[0]


@pytest.mark.parametrize("rows", [1, 128, 300])
def test_loss_and_gradient_are_those_of_cross_entropy(rows: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 16, requires_grad=True), torch.randn(50, 16)
    targets = torch.randint(0, 50, (rows,))
    ours = loss_sum(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(ours, hidden)
    theirs = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (wanted,) = torch.autograd.grad(theirs, hidden)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, wanted)


def test_a_word_that_cannot_be_costs_its_whole_distance() -> None:
    logits = torch.eye(3) * 200
    loss = loss_sum(logits, torch.eye(3), torch.tensor([1, 1, 1]))
    assert float(loss) == pytest.approx(400.0)
