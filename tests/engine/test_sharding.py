"""What does not go with weights that ranks share is refused by name; the rest is in tests/recipes/test_ranks.py, on real ranks."""

from typing import Any

import pytest

from luthier.config.settings import Settings
from luthier.engine import sharding
from luthier.errors import ConfigError

FSDP: dict[str, Any] = {"model": "m", "data": {"train": "rows.jsonl"}, "devices": 2, "wrapping": "fsdp"}


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"method": "prefix"}, "method"),
        ({"training": {"optim": "adafactor"}}, "training.optim"),
        ({"training": {"cache_frozen_layers": True}}, "training.cache_frozen_layers"),
        ({"lora": {"init_lora_weights": "pissa"}}, "lora.init_lora_weights"),
        ({"method": "qlora", "qlora": {"quantization": "int8"}}, "qlora.quantization"),
    ],
)
def test_what_does_not_go_with_shared_weights_is_named(given: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match="does not go with wrapping: fsdp") as refused:
        sharding.require(Settings.model_validate(FSDP | given))
    assert refused.value.where == where


@pytest.mark.parametrize("given", [{}, {"method": "full"}, {"method": "qlora"}, {"training": {"optim": "lion"}}])
def test_what_goes_with_them_is_not(given: dict[str, Any]) -> None:
    sharding.require(Settings.model_validate(FSDP | given))
