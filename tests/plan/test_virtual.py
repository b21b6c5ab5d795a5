"""Virtual tokens in the plan: they take a part of the context, memory for their keys and values, and hardly any time."""

from dataclasses import replace
from typing import Any

import pytest

from luthier.config.settings import Settings
from luthier.errors import ConfigError
from luthier.plan.choose import resolve


def settings(method: str, tokens: int = 20, **others: Any) -> Settings:
    section = {method: {"num_virtual_tokens": tokens}} if method != "lora" else {}
    return Settings.model_validate({"model": "smollm2", "data": {"train": "rows.jsonl"}, "method": method, **section, **others})


@pytest.mark.parametrize("method", ["prefix", "prompt", "p_tuning"])
def test_they_take_a_part_of_the_context(method, smollm2, laptop, addresses):
    small = replace(smollm2, context=2000)
    plan = resolve(settings(method, 600), small, laptop, addresses)
    choice = next(one for one in plan.resolved if one.name == "data.max_length")
    assert (choice.value, choice.why) == (1400, "the model's context less 600 virtual tokens")
    with pytest.raises(ConfigError, match=r"1,401 tokens are more than this model's context of 2,000, of which 600 are virtual"):
        resolve(settings(method, 600, data={"train": "rows.jsonl", "max_length": 1401}), small, laptop, addresses)


def test_a_context_full_of_them_is_refused(smollm2, laptop, addresses):
    with pytest.raises(ConfigError, match=r"1,024 virtual tokens leave no room") as refused:
        resolve(settings("prompt", 1024), replace(smollm2, context=1024), laptop, addresses)
    assert refused.value.where == "prompt.num_virtual_tokens"


def test_a_prefix_is_keys_and_values_and_a_prompt_runs_as_a_shared_beginning_does(smollm2, laptop, addresses):
    prefix, prompt, lora = (
        resolve(settings(method, training={"precision": "bf16"}), smollm2, laptop, addresses) for method in ("prefix", "prompt", "lora")
    )
    assert prefix.memory_bytes["virtual tokens"] == 20 * 2 * 30 * 3 * 64 * (2 + 4)
    assert prompt.memory_bytes["virtual tokens"] > 10 * prefix.memory_bytes["virtual tokens"]
    assert "virtual tokens" not in lora.memory_bytes
    assert sum(prompt.memory_bytes.values()) < sum(lora.memory_bytes.values())
    assert prefix.seconds < lora.seconds
    assert prefix.seconds < prompt.seconds < 1.2 * prefix.seconds


@pytest.mark.parametrize(("method", "rate"), [("prefix", 3e-2), ("prompt", 3e-2), ("p_tuning", 3e-3)])
def test_their_rates_are_their_own(method, rate, smollm2, laptop, addresses):
    assert resolve(settings(method), smollm2, laptop, addresses).settings.training.learning_rate == rate
