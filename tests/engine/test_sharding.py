"""What does not go with weights that ranks share is refused by name; the rest is in tests/recipes/test_ranks.py, on real ranks."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist
import torch.distributed.fsdp
from transformers import LlamaConfig, LlamaForCausalLM

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


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.usefixtures("group_of_one")
def test_parts_that_are_to_lie_in_main_memory_are_torchs_to_keep_there(offload: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    really = torch.distributed.fsdp.fully_shard
    monkeypatch.setattr(torch.distributed.fsdp, "fully_shard", lambda *args, **more: given.append(more) or really(*args, **more))
    sizes = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 64}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    sharding.shard(model, "cpu", hosts=False, offload=offload)
    assert [isinstance(more["offload_policy"], torch.distributed.fsdp.CPUOffloadPolicy) for more in given[:2]] == [offload, offload]
    sharding.fill(model)
