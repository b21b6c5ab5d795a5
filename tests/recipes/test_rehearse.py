"""luthier verify --rehearse: the whole way of a config on a small model, in a folder that is never the newest run."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest_runs import Listener, Write, chat_row

from luthier import run_folder
from luthier.config.load import load_config
from luthier.errors import LuthierError
from luthier.models import catalog
from luthier.models.catalog import ModelCard
from luthier.recipes import rehearse as recipe
from luthier.recipes.proofs.bench import with_values
from luthier.recipes.rehearse import rehearse, rehearsed, sibling
from luthier.reporting import Silent


@pytest.fixture
def small(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCard:
    """The tiny model in the place of the smallest sibling."""
    card = catalog.card(recipe.DEFAULT)
    assert card is not None
    small = replace(card, name=str(tiny_model), facts=replace(card.facts, context=512))
    monkeypatch.setattr(recipe, "sibling", lambda model, reporter: small)
    return small


def test_the_whole_way_is_run_and_the_real_run_is_told(write: Write, small: ModelCard) -> None:
    config = write([chat_row(place) for place in range(60)], "data.eval=10%", "lora.r=4", "training.num_train_epochs=3")
    listener = Listener()
    done = rehearse(config, listener, rows=12)
    assert [stage.name for stage in done.stages] == ["train", "evaluate", "export", "chat", "serve"]
    chat, serve = (stage.said for stage in done.stages[-2:])
    assert serve == f"{chat}, over HTTP"  # in fp32 the server says what chat says
    assert done.run.path.parent == Path(config.beside(config.settings.output_dir)).resolve() / "rehearsals"
    assert len(done.run.read_metrics("train")) == 3  # 12 rows in updates of 4, once
    assert any(line.startswith("updates: ") for line in done.real)
    assert any(line.startswith(f"rehearsal: {small.name} in place of") for line in listener.lines)
    assert run_folder.list_runs(Path(config.beside(config.settings.output_dir))) == []  # `last` is never a rehearsal
    assert load_config(done.run.config).settings.lora.r == 4


def test_a_stage_that_fails_is_named(write: Write, small: ModelCard, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise LuthierError("no room", where="disk", next_step="free some")

    monkeypatch.setattr(recipe.handover, "export", refuse)
    with pytest.raises(LuthierError, match="the rehearsal stops at export: no room\n  Try: free some"):
        rehearse(write([chat_row(place) for place in range(8)]), rows=4)


def test_what_belongs_to_the_real_model_is_left_out(write: Write, small: ModelCard) -> None:
    config = write([chat_row(place) for place in range(8)], "data.max_length=4096", "init_from=earlier", "evaluation.max_new_tokens=300")
    changed, notes = rehearsed(config, 5, Silent())
    settings = changed.settings
    assert (settings.init_from, settings.data.max_length, settings.data.max_rows) == (None, 512, 5)
    assert settings.evaluation.max_new_tokens == recipe.LONGEST_ANSWER
    assert any("init_from is left out" in note for note in notes)


@pytest.mark.parametrize(("own", "found"), [(2000, 3), (2, 2)])
def test_max_steps_is_no_more_than_one_epoch(own: int, found: int, write: Write, small: ModelCard) -> None:
    config = write([chat_row(place) for place in range(30)], f"training.max_steps={own}")
    assert rehearsed(config, 12, Silent())[0].settings.training.max_steps == found  # 12 rows in updates of 4


def test_numbers_of_layers_that_the_sibling_may_not_have_are_left_out(write: Write, small: ModelCard) -> None:
    names = ["rank_pattern={fc1: 2, 'layers.30.mlp.up_proj': 8}", "target_modules='.*layers\\.(29|30)\\..*q_proj'", "layers_to_transform=[29, 30]"]
    rates = "training.learning_rates={'layers\\.[0-9]+\\.mlp': 2.0, 'layers\\.3[0-9]': 0.5}"
    config = write([chat_row(place) for place in range(8)], *(f"lora.{name}" for name in names), rates)
    changed, notes = rehearsed(config, 5, Silent())
    lora = changed.settings.lora
    assert (lora.layers_to_transform, lora.target_modules, lora.rank_pattern) == ([], "all-linear", {"fc1": 2})
    assert changed.settings.training.learning_rates == {"layers\\.[0-9]+\\.mlp": 2.0}
    assert f"lora.layers_to_transform: []: {small.name} has other layers than {config.settings.model}" in notes
    frozen, _ = rehearsed(with_values(config, {"freeze.layers": "0-29", "peft": {"type": "VERA", "layers_to_transform": [29]}}), 5, Silent())
    assert (frozen.settings.freeze.layers, frozen.settings.peft) == (None, {"type": "VERA"})


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ("smollm2-1.7b-instruct", "smollm2-135m-instruct"),
        ("smollm2-1.7b", "smollm2-135m"),
        ("google/gemma-3-4b-it", "gemma-3-270m-it"),
        ("Qwen/Qwen3-8B-Base", "qwen3-0.6b-base"),
        # None of the family is smaller than the model itself.
        ("llama-3.1-8b-instruct", recipe.DEFAULT),
        ("someone/Llama-3.1-8B-Instruct-abliterated", recipe.DEFAULT),
        ("./my-llama-3.1-model", recipe.DEFAULT),
    ],
)
def test_the_sibling_is_smaller_and_of_the_same_kind(model: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe.cache, "cached", list)
    monkeypatch.setattr(recipe.find, "find", lambda name, reporter: Path(name))
    assert sibling(model, Silent()).name == found


def test_the_sibling_is_the_smallest_of_the_family_or_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    default = catalog.card(recipe.DEFAULT)
    assert default is not None
    large = replace(default, name="smollm2-9b", facts=replace(default.facts, parameters=9 * 10**9))
    small = replace(default, name="smollm2-100m", facts=replace(default.facts, parameters=10**8))
    monkeypatch.setattr(catalog, "cards", lambda: [large, small, default])
    monkeypatch.setattr(recipe.cache, "cached", list)
    monkeypatch.setattr(recipe.find, "find", lambda name, reporter: Path(name))
    assert sibling("someone/SmolLM2-9B-Instruct", Silent()).name == "smollm2-100m"
    assert sibling("./my-model", Silent()).name == recipe.DEFAULT
