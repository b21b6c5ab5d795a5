"""What the frozen layers give is stored: the same loss and gradients, and nothing is left on the disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_engine import furthest, gradients, ragged

from luthier.config.adapters import LoraSettings
from luthier.engine import Engine, frozen
from luthier.errors import RunError
from luthier.models import load, lora
from luthier.records import TokenizedExample


@pytest.fixture(scope="module")
def four_layers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with four layers."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("four")
    config = AutoConfig.from_pretrained(tiny_model)
    config.num_hidden_layers = 4
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def open_upper(folder: Path, layers: list[int], dropout: float = 0.0, precision: Any = "fp32", **settings: Any) -> Engine:
    """An adapter that is not zero, on some of the layers."""
    model = lora.add(load.load_model(folder, precision, "cpu"), LoraSettings(r=4, lora_alpha=8.0, lora_dropout=dropout, layers_to_transform=layers))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return Engine(model, load.load_tokenizer(folder), **settings)


def layers_run(engine: Engine, work: Callable[[], object]) -> list[int]:
    """Tokens that went through the feed-forward part of each layer."""
    tokens = [0] * 4
    handles = []
    for place, layer in enumerate(frozen.decoder_layers(engine.model) or ()):

        def count(module: Any, inputs: tuple[torch.Tensor, ...], place: int = place) -> None:
            tokens[place] += inputs[0].shape[-2]

        handles.append(layer.get_submodule("mlp").register_forward_pre_hook(count))
    work()
    for handle in handles:
        handle.remove()
    return tokens


def quiet(line: str) -> None:
    return


@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
@pytest.mark.parametrize("budget", [4096, 40])
def test_loss_and_gradients_are_those_of_a_run_without(four_layers: Path, tmp_path: Path, share: bool, budget: int) -> None:
    examples = ragged(seed=2, rows=9, prefix=40)
    engine = open_upper(four_layers, [2, 3], share_prefixes=share, micro_batch_tokens=budget)
    plain = engine.forward_backward(examples)
    expected = gradients(engine)
    with frozen.cached(engine, examples, tmp_path, quiet) as store:
        assert store is not None
        spared = engine.forward_backward(examples)
        found = gradients(engine)
    assert spared.loss == pytest.approx(plain.loss, rel=1e-6)
    # The states of a shared part were made row by row: the same sums in another order.
    assert furthest(found, expected) < (5e-6 if share else 1e-6)
    assert sum(store.served) >= spared.executed_tokens


def test_the_frozen_layers_are_not_run_again_and_the_others_are(four_layers: Path, tmp_path: Path) -> None:
    examples = ragged(seed=2, rows=6)
    engine = open_upper(four_layers, [2, 3])
    with frozen.cached(engine, examples, tmp_path, quiet):
        run = layers_run(engine, lambda: engine.forward_backward(examples))
    assert run[0] == run[1] == 0
    assert run[2] == run[3] > 0


def test_rows_that_are_not_stored_run_through_all_layers(four_layers: Path, tmp_path: Path) -> None:
    engine = open_upper(four_layers, [3])
    unknown = ragged(seed=7, rows=3)
    expected = engine.held_out_loss(unknown)
    with frozen.cached(engine, ragged(seed=2, rows=6), tmp_path, quiet):
        assert layers_run(engine, lambda: engine.held_out_loss(unknown))[0] > 0
        assert engine.held_out_loss(unknown) == expected


def test_an_answer_is_the_same_while_rows_are_stored(four_layers: Path, tmp_path: Path) -> None:
    engine = open_upper(four_layers, [2, 3])
    examples = ragged(seed=2, rows=6, prefix=20)
    prompts = [example.token_ids[:12] for example in examples[:2]]
    expected = engine.answer(prompts, max_new_tokens=5)
    with frozen.cached(engine, examples, tmp_path, quiet):
        assert engine.answer(prompts, max_new_tokens=5) == expected


def test_nothing_is_left_behind(four_layers: Path, tmp_path: Path) -> None:
    examples = ragged(seed=2, rows=6)
    engine = open_upper(four_layers, [2, 3])
    sizes = []

    def stop() -> None:
        with frozen.cached(engine, examples, tmp_path, quiet):
            sizes.append((tmp_path / frozen.FILE).stat().st_size)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert sizes == [frozen.store_bytes(engine.model, examples)]
    assert list(tmp_path.iterdir()) == []
    assert not any("forward" in layer.__dict__ for layer in frozen.decoder_layers(engine.model) or ())
    assert layers_run(engine, lambda: engine.forward_backward(examples))[0] > 0


def test_the_size_is_told_and_what_was_spared(four_layers: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    examples = ragged(seed=2, rows=6)
    engine = open_upper(four_layers, [1, 3], dropout=0.1)
    with frozen.cached(engine, [*examples, examples[0]], tmp_path, lines.append):
        engine.forward_backward(examples)
    tokens = sum(len(example.token_ids) - 1 for example in examples)
    assert frozen.store_bytes(engine.model, examples) == tokens * 64 * 4
    assert lines[0].startswith("the lowest 1 of 4 layers are frozen and run once: what they give takes 0 MB in ")
    assert lines[1].endswith("tokens were spared the lowest 1 of 4 layers")


def test_bf16_states_are_stored_as_they_are(four_layers: Path, tmp_path: Path) -> None:
    examples = ragged(seed=4, rows=4)
    engine = open_upper(four_layers, [3], precision="bf16", share_prefixes=False)
    expected = engine.forward_backward(examples).loss
    with frozen.cached(engine, examples, tmp_path, quiet):
        assert engine.forward_backward(examples).loss == pytest.approx(expected, rel=1e-2)


def test_a_full_disk_is_named_before_anything_is_run(four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "LEAST_FREE_BYTES", 10**18)
    with (
        pytest.raises(RunError, match=r"takes 0 MB and [\d,]+ MB are free\n  Try: training.cache_frozen_layers: false"),
        frozen.cached(open_upper(four_layers, [3]), ragged(seed=2, rows=6), tmp_path, quiet),
    ):
        pass


def trains_the_embedding(engine: Engine) -> None:
    engine.model.get_input_embeddings().weight.requires_grad_(True)


def drops(engine: Engine) -> None:
    (frozen.decoder_layers(engine.model) or [])[0].get_submodule("mlp").add_module("dropped", torch.nn.Dropout(0.1))


HINDRANCES: dict[str, tuple[list[int], Callable[[Engine], None], str]] = {
    # what                 layers trained  change              what is said
    "the lowest layer": ([0, 3], lambda engine: None, "the lowest layer is trained"),
    "the embedding": ([3], trains_the_embedding, "the embedding is trained"),
    "dropout below": ([3], drops, "part of what they give is dropped while it trains"),
    "the plain path": ([3], lambda engine: engine.go_plain("of a test"), "of a test"),
}


@pytest.mark.parametrize(("layers", "change", "said"), HINDRANCES.values(), ids=HINDRANCES)
def test_where_nothing_can_be_spared_it_is_said(
    four_layers: Path, tmp_path: Path, layers: list[int], change: Callable[[Engine], None], said: str
) -> None:
    lines: list[str] = []
    engine = open_upper(four_layers, layers)
    change(engine)
    with frozen.cached(engine, ragged(seed=2, rows=2), tmp_path, lines.append) as store:
        assert store is None
    assert len(lines) == 1
    assert lines[0].startswith(f"cache_frozen_layers has no effect: {said}")


def test_states_that_are_not_those_of_the_layers_are_not_used(four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    examples: list[TokenizedExample] = ragged(seed=2, rows=3)
    engine = open_upper(four_layers, [3])
    expected = engine.held_out_loss(examples)
    honest = frozen._states
    monkeypatch.setattr(frozen, "_states", lambda engine, documents: honest(engine, documents) * 1.5)
    with frozen.cached(engine, examples, tmp_path, lines.append) as store:
        assert store is None
        assert engine.held_out_loss(examples) == expected
    assert "cache_frozen_layers has no effect: with stored states the loss of rows:1 differs by" in lines[-1]
