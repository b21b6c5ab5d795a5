"""The forgetting meter against plain arithmetic over the whole vocabulary."""

from pathlib import Path

import pytest
import torch

from luthier.engine import Engine, drift
from luthier.records import Source, TokenizedExample

TOKENS = [[5, 60, 7, 320, 44, 8, 9, 11], [5, 60, 7, 320, 44, 90, 12], [4, 17, 250, 33]]
EXAMPLES = [
    TokenizedExample(tokens, [place >= 3 for place in range(len(tokens))], Source("general.jsonl", line))
    for line, tokens in enumerate(TOKENS, start=1)
]


def moved(engine: Engine, part: str) -> Engine:
    """The same engine with every trained weight of this name changed."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in engine.model.named_parameters():
            if part in name and weight.requires_grad:
                weight += 0.2 * torch.randn(weight.shape, generator=draw)
    return engine


@pytest.fixture
def tuned(tiny_model: Path) -> Engine:
    return moved(Engine.open(str(tiny_model), lora={"r": 4, "lora_alpha": 8}), "lora_B")


@torch.no_grad()
def log_probabilities(engine: Engine, example: TokenizedExample) -> torch.Tensor:
    """What the model's own forward makes of each trained token: (n, V) in fp64."""
    logits = engine.model(input_ids=torch.tensor([example.token_ids])).logits[0].double()
    return torch.log_softmax(logits, -1)[[place - 1 for place, on in enumerate(example.trained) if on and place]]


def plainly(tuned: list[torch.Tensor], base: list[torch.Tensor]) -> dict[str, float]:
    right = [[token for token, on in zip(one.token_ids[1:], one.trained[1:], strict=True) if on] for one in EXAMPLES]
    count = sum(map(len, right))
    kl = sum(float((one.exp() * (one - other)).sum()) for one, other in zip(tuned, base, strict=True))
    losses = [-sum(float(one[range(len(ids)), ids].sum()) for one, ids in zip(rows, right, strict=True)) for rows in (tuned, base)]
    return {"kl": kl / count, "general_loss": losses[0] / count, "base_general_loss": losses[1] / count}


def test_a_fresh_adapter_has_not_moved(tiny_model: Path) -> None:
    found = drift.from_adapter(Engine.open(str(tiny_model), lora={"r": 4}), EXAMPLES)
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["general_loss"] == found["base_general_loss"]


@pytest.mark.parametrize("plain", [False, True], ids=["fast", "plain"])
@pytest.mark.parametrize("chunk", [2, 128])
def test_beside_an_adapter_it_is_what_the_equations_say(tuned: Engine, plain: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "CHUNK_TOKENS", chunk)
    if plain:
        tuned.go_plain("to be compared")
    now = [log_probabilities(tuned, one) for one in EXAMPLES]
    with tuned.model.disable_adapter():
        base = [log_probabilities(tuned, one) for one in EXAMPLES]
    found = drift.from_adapter(tuned, EXAMPLES)
    assert found == pytest.approx(plainly(now, base), rel=1e-4)
    assert found["kl"] > 0.01
    assert found["general_loss"] == pytest.approx(tuned.held_out_loss(EXAMPLES), rel=1e-5)
    assert drift.from_adapter(tuned, EXAMPLES) == found, "it changes nothing"


def test_of_a_whole_model_a_lower_bound_is_measured_which_is_exact_where_every_word_is_kept(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine.open(str(tiny_model), full=True)
    base = [log_probabilities(engine, one) for one in EXAMPLES]
    kept = drift.base_of(engine, EXAMPLES)
    monkeypatch.setattr(drift, "LIKELIEST", 10_000)
    whole = drift.base_of(engine, EXAMPLES)
    assert drift.from_base(engine, EXAMPLES, kept)["kl"] == pytest.approx(0, abs=1e-6)
    moved(engine, "")
    expected = plainly([log_probabilities(engine, one) for one in EXAMPLES], base)
    assert drift.from_base(engine, EXAMPLES, whole) == pytest.approx(expected, rel=1e-4)
    found = drift.from_base(engine, EXAMPLES, kept)
    assert 0 < found["kl"] < expected["kl"]
    assert (found["general_loss"], found["base_general_loss"]) == pytest.approx((expected["general_loss"], expected["base_general_loss"]), rel=1e-5)
