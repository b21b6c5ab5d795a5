"""What a search tries next and which trial it gives up, over trials that are numbers."""

import dataclasses

import pytest

from luthier.config.search import Range, Search
from luthier.plan import sampler
from luthier.records import Trial

SEARCH = Search(trials=12, settings={"training.learning_rate": Range(low=1e-4, high=1e-2, log=True), "lora.r": [4, 8, 16]})


def ended(number: int, rate: float, r: int, value: float, **changes: object) -> Trial:
    values = {"training.learning_rate": rate, "lora.r": r}
    trial = Trial(number, values, "done", value=value, curve={part: value + 1 / part for part in range(1, 9)})
    return dataclasses.replace(trial, **changes)


def searched(search: Search = SEARCH, count: int = 12) -> list[Trial]:
    """A search whose best is at a rate of 1e-3 and r: 16."""
    trials: list[Trial] = [ended(1, 5e-4, 8, 2.0)]
    while len(trials) < count and (values := sampler.next_values(search, False, trials)):
        worse = abs(float(f"{values['training.learning_rate']:e}".partition("e")[2]) + 3) + (16 - values["lora.r"]) / 16
        trials.append(ended(len(trials) + 1, values["training.learning_rate"], values["lora.r"], 1.0 + worse))
    return trials


def test_what_is_tried_lies_in_the_search_and_is_never_tried_twice() -> None:
    tried = [trial.values for trial in searched()]
    assert len(tried) == 12
    assert all(1e-4 <= values["training.learning_rate"] <= 1e-2 and values["lora.r"] in (4, 8, 16) for values in tried)
    assert len({str(values) for values in tried}) == 12
    assert len({values["lora.r"] for values in tried}) == 3


def test_what_is_tried_comes_from_the_seed_and_the_trials_before() -> None:
    trials = searched()
    # As a search that was killed after its seventh trial goes on.
    assert sampler.next_values(SEARCH, False, trials[:7]) == trials[7].values
    assert searched(SEARCH.model_copy(update={"seed": 1}))[1].values != trials[1].values


def test_rates_have_three_digits_and_stay_within_the_range() -> None:
    narrow = Search(trials=6, settings={"training.learning_rate": Range(low=1.2345e-4, high=1.2346e-4, log=True), "lora.r": [4, 8, 16]})
    for number in range(1, 5):
        values = sampler.next_values(narrow, False, [ended(place, 1.2345e-4, 4, 1.0) for place in range(1, number)])
        assert values is not None
        assert 1.2345e-4 <= values["training.learning_rate"] <= 1.2346e-4
    assert {float(f"{trial.values['training.learning_rate']:.3g}") - trial.values["training.learning_rate"] for trial in searched()} == {0.0}


def test_a_whole_number_stays_one() -> None:
    search = Search(settings={"training.batch_size": Range(low=4, high=64, log=True)})
    values = sampler.next_values(search, False, [Trial(1, {"training.batch_size": 16}, "done", value=1.0)])
    assert values is not None
    assert type(values["training.batch_size"]) is int


def test_a_search_of_few_values_ends_when_each_was_tried() -> None:
    search = Search(settings={"lora.r": [4, 8]})
    trials = [Trial(1, {"lora.r": 8}, "done", value=1.0)]
    assert sampler.next_values(search, False, trials) == {"lora.r": 4}
    assert sampler.next_values(search, False, [*trials, Trial(2, {"lora.r": 4}, "diverged")]) is None


def test_the_first_trial_may_lie_outside_of_what_is_searched() -> None:
    outside = Trial(1, {"training.learning_rate": 0.5, "lora.r": 64}, "done", value=9.0)
    assert sampler.next_values(SEARCH, False, [outside]) is not None


def test_values_may_be_lists() -> None:
    search = Search(settings={"lora.target_modules": [["q_proj"], ["q_proj", "v_proj"], "all-linear"]})
    trials = [Trial(1, {"lora.target_modules": "all-linear"}, "done", value=1.0)]
    values = sampler.next_values(search, False, trials)
    assert values is not None
    assert values["lora.target_modules"] in (["q_proj"], ["q_proj", "v_proj"])


@pytest.mark.parametrize(("greater", "behind"), [(False, 3.0), (True, 0.5)])
def test_a_curve_behind_the_median_is_given_up(greater: bool, behind: float) -> None:
    before = [ended(number, 1e-3, 8, 1.0, curve=dict.fromkeys(range(1, 9), 1.0)) for number in (1, 2, 3)]
    assert sampler.falls_behind(SEARCH, greater, before, {1: behind, 2: behind, 3: behind})
    assert not sampler.falls_behind(SEARCH, greater, before, {1: behind, 2: 1.0, 3: 1.0})  # the best of it counts


def test_no_curve_is_given_up_early() -> None:
    before = [ended(number, 1e-3, 8, 1.0, curve=dict.fromkeys(range(1, 9), 1.0)) for number in (1, 2, 3)]
    assert not sampler.falls_behind(SEARCH, False, before, {1: 9.0})  # the first eighth
    assert not sampler.falls_behind(SEARCH, False, before[:2], {1: 9.0, 2: 9.0, 3: 9.0})  # two trials
    given_up = [dataclasses.replace(trial, state="pruned", value=None) for trial in before]
    assert not sampler.falls_behind(SEARCH, False, [*before[:2], *given_up], {1: 9.0, 2: 9.0, 3: 9.0})


def test_poor_regions_are_left_after_trials_that_diverged() -> None:
    diverged = [Trial(number, {"training.learning_rate": 9e-3 + number * 1e-5, "lora.r": 8}, "diverged") for number in range(2, 10)]
    good = [ended(number, 2e-4 + number * 1e-6, 8, 1.0 + number / 100) for number in range(10, 14)]
    rates = []
    trials = [ended(1, 2e-4, 8, 1.0), *diverged, *good]
    for _ in range(4):
        values = sampler.next_values(SEARCH, False, trials)
        assert values is not None
        rates.append(values["training.learning_rate"])
        trials.append(ended(len(trials) + 1, values["training.learning_rate"], values["lora.r"], 1.2))
    assert max(rates) < 9e-3


def test_a_first_trial_outside_of_the_search_is_none_of_its_combinations() -> None:
    search = Search(settings={"lora.r": [4, 8]})
    trials = [Trial(1, {"lora.r": 16}, "done", value=1.0), Trial(2, {"lora.r": 4}, "done", value=1.0)]
    assert sampler.next_values(search, False, trials) == {"lora.r": 8}
