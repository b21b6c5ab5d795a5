"""What `freeze` leaves out of full training, and what of it is refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from luthier.config.adapters import FreezeSettings
from luthier.errors import ConfigError
from luthier.models import freeze, load

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": 0,
}  # fmt: skip


def llama(tied: bool = True) -> Any:
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


def frozen_of(model: Any, **settings: Any) -> set[str]:
    """The parts of the model in which nothing is trained: numbers of layers, and names of what stands outside of them."""
    freeze.train_all_but(model, FreezeSettings.model_validate(settings))
    trained = {part_of(name) for name, weight in model.named_parameters() if weight.requires_grad}
    return {part_of(name) for name, _ in model.named_parameters()} - trained


def part_of(name: str) -> str:
    parts = name.split(".")
    return parts[2] if parts[1] in ("layers", "h") else parts[-2]


def test_without_settings_everything_is_trained(tiny_model: Path) -> None:
    model = load.load_model(tiny_model, "fp32", "cpu").requires_grad_(False)
    assert frozen_of(model) == set()


@pytest.mark.parametrize(
    ("layers", "frozen"),
    [("0-1", {"0", "1"}), ("0-1,3", {"0", "1", "3"}), ([2, 0, 2], {"0", "2"}), (1, {"1"}), ("0", {"0"}), ("0 , 2-3", {"0", "2", "3"}), (None, set())],
)
def test_layers_by_number(layers: Any, frozen: set[str]) -> None:
    assert frozen_of(llama(), layers=layers) == frozen


def test_the_embedding_takes_a_tied_head_with_it_and_leaves_another(tiny_model: Path) -> None:
    assert frozen_of(llama(tied=True), embeddings=True) == {"embed_tokens"}
    untied = llama(tied=False)
    assert frozen_of(untied, embeddings=True) == {"embed_tokens"}
    assert untied.lm_head.weight.requires_grad
    tied = llama(tied=True)
    freeze.train_all_but(tied, FreezeSettings(embeddings=True))
    assert not tied.lm_head.weight.requires_grad


def test_the_positions_of_gpt2_are_embeddings_too() -> None:
    assert frozen_of(GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4)), layers="0", embeddings=True) == {"0", "wte", "wpe"}


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer 7 is not there: this model has 4\n.*numbers from 0 to 3"):
        freeze.train_all_but(llama(), FreezeSettings(layers="2-7"))


def test_freezing_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nothing but norms would be trained"):
        freeze.train_all_but(llama(), FreezeSettings(layers="0-3", embeddings=True))
    assert frozen_of(llama(tied=False), layers="0-3", embeddings=True) == {"0", "1", "2", "3", "embed_tokens"}  # its head is left


@pytest.mark.parametrize("layers", ["", "a", "3-1", "1-", "0;3", "-1", [-1], -1, [0.5]])
def test_what_is_no_range_is_refused_when_it_is_read(layers: Any) -> None:
    with pytest.raises(ValidationError):
        FreezeSettings.model_validate({"layers": layers})


def test_what_nothing_runs_back_through() -> None:
    def idle(**settings: Any) -> int:
        return FreezeSettings.model_validate(settings).idle_layers(4)

    assert idle(layers="0-1", embeddings=True) == 2
    assert idle(layers="0,2", embeddings=True) == 1
    assert idle(layers="1-2", embeddings=True) == 0
    assert idle(layers="0-1") == 0  # the embedding below them is trained
