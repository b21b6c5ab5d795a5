"""Which settings were read: by those who work with them, and not by those who check or write them."""

from pathlib import Path

from luthier.config import reads
from luthier.config.load import load_config, settings_to_yaml
from luthier.config.settings import Settings


def settings() -> Settings:
    return Settings.model_validate({"model": "m", "data": {"train": "rows.jsonl"}, "lora": {"r": 4}, "training": {"learning_rates": {"a": 0.5}}})


def test_a_setting_that_is_looked_at_is_read_and_another_is_not() -> None:
    some = settings()
    with reads.watched() as seen:
        assert some.lora.r == 4
        assert some.data.sources  # a property of the settings reads for its caller
    given = ["lora.r", "lora.lora_alpha", "data.train", "training.learning_rates.a", "seed"]
    assert reads.unread(given, seen) == ["lora.lora_alpha", "training.learning_rates.a", "seed"]
    assert some.seed == 0
    assert reads.unread(["seed"], seen) == ["seed"]  # the watch is over


def test_checking_and_writing_all_settings_is_no_read(tmp_path: Path) -> None:
    (tmp_path / "luthier.yaml").write_text("model: m\ndata: {train: rows.jsonl}\nseed: 3\n", encoding="utf-8")
    with reads.watched() as seen:
        some = load_config(tmp_path / "luthier.yaml").settings
        settings_to_yaml(some)
        some.model_copy(update={"seed": 4})
    assert reads.unread(["model", "data.train", "seed"], seen) == ["model", "data.train", "seed"]


def test_onlookers_do_not_count_and_a_whole_section_does() -> None:
    some = settings()
    with reads.watched((__name__,)) as seen:
        assert some.seed == 0
    assert seen == set()
    with reads.watched() as seen:
        some.preference.model_dump()
    assert reads.unread(["preference.beta", "seed"], seen) == ["seed"]
