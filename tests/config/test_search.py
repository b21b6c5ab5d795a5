"""The file of a search: what is understood, and what a user is told about every mistake."""

from pathlib import Path
from typing import Any

import pytest

from luthier.config.load import load_config
from luthier.config.search import Range, Search, check_search, combinations, load_search, search_to_yaml
from luthier.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    (folder / "sweep.yaml").write_text(text, encoding="utf-8")
    return folder / "sweep.yaml"


def test_a_search_is_read_as_it_was_written(tmp_path: Path) -> None:
    search = Search(trials=7, settings={"training.learning_rate": Range(low=1e-4, high=1e-3, log=True), "lora.r": [4, 8]})
    path = written(tmp_path, search_to_yaml(search, ["what it costs"]))
    assert path.read_text(encoding="utf-8").startswith("# what it costs\ntrials: 7\nmetric: loss\n")
    found, places = load_search(path)
    assert found == search
    assert places["settings.lora.r"].endswith("sweep.yaml:6")


MISTAKES = {
    # what                (text,                                                                   line, what is said)
    "an unknown key":     ("trials: 3\nmetrics: loss\nsettings: {lora.r: [4, 8]}\n",                2, "did you mean metric"),
    "a key of a range":   ("settings:\n  training.learning_rate: {low: 1e-4, hihg: 1e-3}\n",        2, "did you mean high"),
    "upside down":        ("settings:\n  training.learning_rate: {low: 1e-3, high: 1e-4}\n",        2, "must be below high"),
    "no logarithm":       ("settings:\n  lora.lora_dropout: {low: 0.0, high: 0.5, log: true}\n",    2, "must be above 0"),
    "one value":          ("settings:\n  lora.r: [8]\n",                                            2, "at least 2"),
    "no range":           ("settings:\n  lora.r: 8\n",                                              2, "lora.r"),
    "no settings":        ("trials: 3\n",                                                        None, "'settings' is missing"),
    "no trial":           ("trials: 0\nsettings: {lora.r: [4, 8]}\n",                               1, "greater than or equal to 1"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_named_with_its_line(what: str, tmp_path: Path) -> None:
    text, line, said = MISTAKES[what]
    with pytest.raises(ConfigError) as raised:
        load_search(written(tmp_path, text))
    assert said in str(raised.value)
    assert raised.value.where.endswith("sweep.yaml" if line is None else f"sweep.yaml:{line}")


REFUSED = {
    # setting                 values                what is said
    "training.learning_rat":  ([1e-4, 1e-3],        "is no setting"),
    "model":                  (["a", "b"],          "could not be compared"),
    "data.max_length":        ([64, 128],           "could not be compared"),
    "training.batch_size":    ([8, 0],              "training.batch_size is 0"),
    "prefix.num_virtual_tokens": ([8, 16],          "no effect with method"),
    "training.optim":         (Range(low=1, high=2), "is not a number"),
    "training.learning_rate": (Range(low=0.1, high=20.0), "training.learning_rate is 20.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_searched_is_refused_before_anything_runs(name: str, load: Any) -> None:
    values, said = REFUSED[name]
    config = load()
    search = Search(settings={name: values})
    with pytest.raises(ConfigError) as raised:
        check_search(search, config, [], {f"settings.{name}": "sweep.yaml:3"})
    assert said in str(raised.value)
    assert raised.value.where == "sweep.yaml:3"


NOT_COMPARED = {
    # setting                 values         metric,  overrides,                                what is said, and to do
    "preference.beta":        ([0.1, 0.2],   "loss",  ["objective=dpo"],                        "what the loss is", "metric: rewards/accuracies"),
    "preference.undesirable_weight": ([1.0, 2.0], "loss", ["objective=kto"],                    "what the loss is", "out of the search"),
    "training.learning_rate": (["auto", 1e-3], "loss", [],                                      "auto is not a value", "luthier plan"),
    "lora.r":                 ([4, 8],       "loss",  ["init_from=runs/a"],                     "init_from", "take init_from out"),
    "ia3.target_modules":     ([["q_proj"], ["k_proj"]], "loss", ["method=ia3", "init_from=runs/a"], "init_from", "take init_from out"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_COMPARED)
def test_trials_that_could_not_be_compared_are_refused(name: str, load: Any) -> None:
    values, metric, overrides, said, to_do = NOT_COMPARED[name]
    with pytest.raises(ConfigError) as raised:
        check_search(Search(metric=metric, settings={name: values}), load("", *overrides), overrides, {})
    assert said in raised.value.problem
    assert to_do in raised.value.next_step


COMPARED = {
    # setting                  values        metric                overrides
    "preference.beta":         ([0.1, 0.2],  "rewards/accuracies", ["objective=dpo"]),
    "lora.loraplus_lr_ratio":  ([2.0, 16.0], "loss",               ["init_from=runs/a"]),
    "freeze.layers":           (["0-1", "0-3"], "loss",            ["method=full", "init_from=runs/a"]),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARED)
def test_what_leaves_trials_comparable_is_searched(name: str, load: Any) -> None:
    values, metric, overrides = COMPARED[name]
    check_search(Search(metric=metric, settings={name: values}), load("", *overrides), overrides, {})


def test_what_can_be_searched_is_accepted(load: Any) -> None:
    settings = {"training.learning_rate": Range(low=1e-4, high=1e-3), "method": ["lora", "dora"], "training.warmup_ratio": [0.0, 0.1]}
    check_search(Search(settings=settings), load(), [], {})
    check_search(Search(settings={"prefix.num_virtual_tokens": [8, 16]}), load(), ["method=prefix"], {})


def test_the_combinations_are_counted() -> None:
    assert combinations(Search(settings={"lora.r": [4, 8, 16], "training.batch_size": Range(low=1, high=4)})) == 12
    assert combinations(Search(settings={"lora.r": [4, 8], "training.learning_rate": Range(low=1e-4, high=1e-3)})) == float("inf")


def test_the_file_of_settings_is_not_taken_for_a_search(load: Any) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        load_search(load_config(load().file).file)
