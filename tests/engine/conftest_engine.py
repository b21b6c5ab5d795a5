"""A tiny model with an adapter whose B is not zero (a fresh one would hide half of the mistakes), and rows of every kind."""

import random
from pathlib import Path

import torch

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine
from luthier.models import load, lora
from luthier.records import Source, TokenizedExample


def open_tiny(folder: Path, dropout: float = 0.0, **settings: object) -> Engine:
    """The tiny model in fp32 with a LoRA adapter that changes its answers. Every call gives the same weights."""
    model = lora.add(load.load_model(folder, "fp32", "cpu"), LoraSettings(r=4, lora_alpha=8.0, lora_dropout=dropout))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return Engine(model, load.load_tokenizer(folder), **settings)  # type: ignore[arg-type]


def ragged(seed: int, rows: int, prefix: int = 0, longest: int = 60) -> list[TokenizedExample]:
    """Random rows of 3 to `longest` tokens after a common beginning, with holes in the mask and a tail that is not trained."""
    draw = random.Random(seed)
    beginning = [draw.randrange(3, 500) for _ in range(prefix)]
    examples = []
    for number in range(rows):
        own = [draw.randrange(3, 500) for _ in range(draw.randint(3, longest))]
        trained = [draw.random() < 0.4 for _ in own]
        trained[0], trained[1] = False, True
        trained[-1] = number % 2 == 0
        examples.append(TokenizedExample(beginning + own, [False] * prefix + trained, Source("rows", number + 1)))
    return examples


def gradients(engine: Engine) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in engine.model.named_parameters() if parameter.grad is not None}
    engine.model.zero_grad(set_to_none=True)
    return found


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of any parameter's gradient."""
    assert one.keys() == other.keys()
    assert one
    return max(float((one[name] - other[name]).norm() / other[name].norm().clamp_min(1e-12)) for name in one)
