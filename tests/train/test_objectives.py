"""Each loss of preference tuning is TRL's on the same rows, in value and gradient; what is reported of it has TRL's meaning."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from trl_numbers import CASES, LABELS, ROWS, model_of, seen_of

from luthier.config.preference import PreferenceSettings
from luthier.engine import Engine
from luthier.records import Judged, Source, TokenizedExample
from luthier.train.objectives import Sides, Update, kto, orpo, sigmoid, weights_of

# python tests/train/trl_numbers.py, with TRL 1.16.0, torch 2.13.0 and transformers 5.23.0, on 2026-11-23.
TRL = {
    "dpo": {"loss": 0.46772003173828125, "norm": 11.545068971463232, "along": -1.50412238245569},
    "dpo ipo": {"loss": 1.7245054244995117, "norm": 46.666876520686465, "along": -10.33652657342555},
    "dpo hinge": {"loss": 0.4767985939979553, "norm": 23.812693854116734, "along": -2.927234380575886},
    "dpo with its answers": {"loss": 3.1728858947753906, "norm": 25.225272362750097, "along": -0.04387661969248083},
    "orpo": {"loss": 5.776734352111816, "norm": 32.3130424176045, "along": 2.264937705392287},
    "simpo": {"loss": 1.735433578491211, "norm": 25.5792542885832, "along": -3.8124454122587146},
    "simpo smoothed": {"loss": 1.6431889533996582, "norm": 22.096679836180257, "along": -2.7403604070610728},
    "simpo with its answers": {"loss": 4.44059944152832, "norm": 38.71807099148372, "along": -2.35221544318414},
    "kto": {"loss": 0.554144024848938, "norm": 14.324931717959716, "along": 0.05033766538221429},
}
EXACT = 1e-5  # relative, fp32


class NoTokenizer:
    """Rows are tokens already."""

    eos_token_id = 1


def example(prompt: list[int], answer: list[int]) -> TokenizedExample:
    return TokenizedExample(prompt + answer, [False] * len(prompt) + [True] * len(answer), Source("rows", 1))


def engine_of(phase: float, **settings: Any) -> Engine:
    return Engine(model_of(phase), NoTokenizer(), **settings)


def rows_of(objective: str) -> list[Judged]:
    """The rows of trl_numbers.py, with what the reference model makes of them where the objective needs it."""
    before = engine_of(1.5).log_probabilities
    if objective != "kto":
        pairs = [(example(prompt, good), example(prompt, bad)) for prompt, good, bad in ROWS]
        return [Judged(*pair, reference=tuple(before(list(pair))) if objective == "dpo" else ()) for pair in pairs]
    asked = [(prompt, good if label else bad) for (prompt, good, bad), label in zip(ROWS, LABELS, strict=True)]
    rows = []
    for place, ((prompt, answer), good) in enumerate(zip(asked, LABELS, strict=True)):
        own, other = example(prompt, answer), example(prompt, asked[place - 1][1])
        rows.append(Judged(own if good else None, None if good else own, other, tuple(before([own, other]))))
    return rows


def update_of(case: str, engine: Engine) -> Update:
    objective = case.split()[0]
    rows, drift = rows_of(objective), 0.0
    if objective == "kto":
        now = engine.log_probabilities([row.mismatched for row in rows if row.mismatched])
        drift = max(0.0, sum(value - row.reference[1] for value, row in zip(now, rows, strict=True)) / len(rows))
    return Update(rows, objective, weights_of(PreferenceSettings.model_validate(CASES[case]), objective), drift)


@pytest.mark.parametrize("how", [{}, {"micro_batch_tokens": 1}, {"attn_implementation": "sdpa"}], ids=["fast", "a pair at a time", "plain"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(case: str, how: dict[str, Any]) -> None:
    engine = engine_of(0.0, **how)
    assert bool(engine.plain_reason) == ("attn_implementation" in how)
    update = update_of(case, engine)
    measured = engine.forward_backward_judged(update.examples, update.together, update.loss)
    seen, expected = seen_of(engine.model, measured.loss), TRL[case]
    assert (seen["loss"], seen["norm"]) == pytest.approx((expected["loss"], expected["norm"]), rel=EXACT)
    assert seen["along"] == pytest.approx(expected["along"], abs=EXACT * expected["norm"])


def test_the_rows_of_the_comparison_reach_every_part_of_the_losses() -> None:
    """A hinge that is open for all pairs, or a drift of zero, would compare nothing."""
    labeled, hinge = (update_of(case, engine_of(0.0)) for case in ("kto", "dpo hinge"))
    engine_of(0.0).forward_backward_judged(hinge.examples, hinge.together, hinge.loss)
    assert labeled.drift > 0
    assert {value > 0 for value in hinge.row_losses} == {True, False}


def test_what_is_reported_is_what_trl_means_by_it() -> None:
    engine = engine_of(0.0)
    update = update_of("dpo", engine)
    engine.forward_backward_judged(update.examples, update.together, update.loss)
    now = engine.log_probabilities(update.examples)
    rewards = [0.3 * (value - before) for value, before in zip(now, [one for row in update.rows for one in row.reference], strict=True)]
    margins = [good - bad for good, bad in zip(rewards[::2], rewards[1::2], strict=True)]
    assert update.metrics == pytest.approx(
        {
            "rewards/chosen": sum(rewards[::2]) / 4,
            "rewards/rejected": sum(rewards[1::2]) / 4,
            "rewards/margins": sum(margins) / 4,
            "rewards/accuracies": sum(margin > 0 for margin in margins) / 4,
            "logps/chosen": sum(now[::2]) / 4,
            "logps/rejected": sum(now[1::2]) / 4,
        },
        rel=1e-5,
    )
    assert update.row_losses == pytest.approx([-math.log(1 / (1 + math.exp(-margin))) for margin in margins], rel=1e-5)


def test_an_update_of_good_answers_alone_says_nothing_of_bad_ones() -> None:
    rows = [row for row in rows_of("kto") if row.chosen]
    update = Update(rows, "kto", weights_of(PreferenceSettings(), "kto"))
    update.loss([0, 1, 2], torch.tensor([-5.0, -6.0, -7.0], dtype=torch.float64))
    assert set(update.metrics) == {"rewards/chosen", "logps/chosen", "kl"}


@pytest.mark.parametrize("certain", [0.0, 1e-9, -1e-17])
def test_an_answer_that_is_certain_has_a_gradient(certain: float) -> None:
    """Its odds are without end; 1e-9 is what rounding makes of it."""
    logps = torch.tensor([certain, -20.0, -20.0, certain], dtype=torch.float64, requires_grad=True)
    known, tokens = torch.zeros(2, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)
    losses = orpo(Sides(logps[:2], known, tokens), Sides(logps[2:], known, tokens), weights_of(PreferenceSettings(), "orpo"))
    losses.sum().backward()
    assert logps.grad is not None
    assert torch.isfinite(losses).all()
    assert torch.isfinite(logps.grad).all()
    assert losses[0] < 1e-9 < losses[1]


def test_smoothing_is_the_loss_of_both_ways_round() -> None:
    margins = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    expected = 0.8 * sigmoid(margins, 0.0) + 0.2 * sigmoid(-margins, 0.0)
    assert torch.allclose(sigmoid(margins, 0.2), expected)


def test_labeled_answers_are_weighed_by_their_kind() -> None:
    weights = weights_of(PreferenceSettings(desirable_weight=2.0, undesirable_weight=3.0), "kto")
    losses = kto(torch.zeros(2, dtype=torch.float64), torch.tensor([True, False]), 0.0, weights)
    assert losses.tolist() == [1.0, 1.5]


def test_beta_is_the_objectives_own_where_none_is_given() -> None:
    assert [weights_of(PreferenceSettings(), objective).beta for objective in ("dpo", "simpo", "kto")] == [0.1, 2.0, 0.1]
    assert weights_of(PreferenceSettings(beta=0.7), "dpo").beta == 0.7
