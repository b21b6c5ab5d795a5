"""The search that luthier plan --sweep proposes."""

from pathlib import Path
from typing import Any

import pytest

from luthier.config.load import load_config
from luthier.config.search import Range, Search, check_search
from luthier.plan import choose, search
from luthier.plan.in_words import duration


@pytest.fixture
def plan_of(tmp_path: Path, smollm2: Any, laptop: Any, addresses: Any) -> Any:
    (tmp_path / "luthier.yaml").write_text("model: m\ndata: {train: rows.jsonl}\n", encoding="utf-8")

    def plan(*overrides: str) -> Any:
        config = load_config(tmp_path / "luthier.yaml", list(overrides))
        return config, choose.resolve(config.settings, smollm2, laptop, addresses)

    return plan


@pytest.mark.parametrize("method", ["lora", "full", "prefix", "bottleneck", "ia3", "dora", "prompt"])
def test_what_is_proposed_holds_what_auto_chose_and_can_be_run(plan_of: Any, method: str) -> None:
    config, plan = plan_of(f"method={method}")
    proposed = search.propose(plan)
    check_search(proposed, config, [f"method={method}"], {})
    for name, values in proposed.settings.items():
        value = choose.value_of(plan.settings, name)
        assert values.low <= value <= values.high if isinstance(values, Range) else value in values
    assert {"training.learning_rate", "training.batch_size"} <= set(proposed.settings)
    assert proposed.trials == 4 * len(proposed.settings)


def test_the_width_of_the_adapter_is_searched_too(plan_of: Any) -> None:
    assert search.propose(plan_of("lora.r=8")[1]).settings["lora.r"] == [4, 8, 16]
    assert "prompt.num_virtual_tokens" in search.propose(plan_of("method=prompt")[1]).settings


def test_the_cost_is_that_of_all_trials(plan_of: Any) -> None:
    _, plan = plan_of()
    lines = search.cost_lines(search.propose(plan), plan, Path("luthier.yaml"))
    assert lines[0] == "luthier sweep luthier.yaml --space THIS_FILE"
    overridden = search.cost_lines(search.propose(plan), plan, Path("luthier.yaml"), ["seed=1", "data.train=my rows"])[0]
    assert overridden == "luthier sweep luthier.yaml --space THIS_FILE seed=1 'data.train=my rows'"
    assert f"12 trials of about {duration(plan.seconds)}" in lines[2]
    assert f"at most about {duration(12 * plan.seconds)}" in lines[2]


EDGES = [
    # rate     r     at the edge
    (1e-4,    8,    ["training.learning_rate"]),
    (1e-3,    8,    []),
    (9e-3,   16,    ["training.learning_rate", "lora.r"]),
    (1e-3,    4,    ["lora.r"]),
]  # fmt: skip


@pytest.mark.parametrize(("rate", "r", "edges"), EDGES)
def test_a_best_value_at_the_edge_is_seen(rate: float, r: int, edges: list[str]) -> None:
    tried = Search(settings={"training.learning_rate": Range(low=1e-4, high=1e-2, log=True), "lora.r": [4, 8, 16], "method": ["lora", "dora"]})
    assert search.at_the_edge(tried, {"training.learning_rate": rate, "lora.r": r, "method": "lora"}) == edges


@pytest.mark.parametrize("value", [0.0, 0.5, None, True, "auto"])
def test_a_value_that_the_range_does_not_hold_is_at_no_edge_of_it(value: object) -> None:
    """The first trial is the settings file as it stands, and may be the best."""
    tried = Search(settings={"training.weight_decay": Range(low=1e-3, high=1e-1, log=True)})
    assert search.at_the_edge(tried, {"training.weight_decay": value}) == []


def test_an_adapter_that_goes_on_keeps_its_width(plan_of: Any) -> None:
    config, plan = plan_of("init_from=runs/earlier")
    proposed = search.propose(plan)
    assert list(proposed.settings) == ["training.learning_rate", "training.batch_size"]
    check_search(proposed, config, ["init_from=runs/earlier"], {})
