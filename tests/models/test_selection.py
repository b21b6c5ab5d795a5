"""The catalog narrowed by size, license, language, context, family and kind."""

import pytest

from luthier.errors import CallError
from luthier.models import catalog
from luthier.models.selection import Wanted, select


def names(**wanted: object) -> set[str]:
    return {card.name for card in select(catalog.cards(), Wanted(**wanted))}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "inside", "outside"),
    [
        ("7B", {"llama-2-7b", "mistral-7b-v0.3", "qwen2.5-7b", "llama-3.1-8b"}, {"gemma-2-9b", "qwen3-4b", "gemma-7b"}),
        ("1B-3B", {"llama-3.2-1b", "phi-2", "qwen2.5-1.5b"}, {"llama-3.2-3b", "qwen3-0.6b"}),
        ("-500M", {"smollm2-135m", "qwen2.5-0.5b", "gemma-3-270m"}, {"qwen3-0.6b"}),
        ("30B-", {"llama-3.1-70b", "qwen3-32b", "mixtral-8x7b"}, {"gemma-3-27b"}),
        ("0.5-1", {"qwen3-0.6b", "gemma-3-1b"}, {"qwen2.5-0.5b", "tinyllama-1.1b"}),
    ],
)
def test_a_size_or_a_range(size: str, inside: set[str], outside: set[str]):
    found = names(size=size)
    assert inside <= found
    assert not outside & found


@pytest.mark.parametrize("size", ["large", "7X", "-", "1B8B", "1.2.3B", "7B-1.2.3B"])
def test_a_size_that_is_none_is_named(size: str):
    with pytest.raises(CallError, match="--size"):
        names(size=size)


def test_licenses_languages_contexts_families_and_kinds():
    assert names(license="gemma") == {card.name for card in catalog.cards() if card.family.startswith("Gemma")}
    assert "llama-3.1-8b" in names(language="TH")
    assert "gemma-3-4b" in names(language="sw"), "it claims over 140 languages"
    assert "phi-4" not in names(language="de")
    assert "qwen2.5-7b" in names(context=100_000), "with YaRN"
    assert "phi-3-mini-4k-instruct" not in names(context=8192)
    assert names(family="olmo-2") == {f"olmo-2-{size}{kind}" for size in ("1b", "7b", "13b", "32b") for kind in ("", "-instruct")}
    assert "phi-4" in names(kind="instruct")
    assert "phi-4" not in names(kind="base")


def test_nothing_wanted_is_everything():
    assert len(names()) == len(catalog.cards())
