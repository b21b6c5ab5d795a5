"""From a method's settings to a model that is ready to be trained by it."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import ValidationError

from luthier.config.methods import METHODS
from luthier.config.settings import Settings
from luthier.errors import ConfigError
from luthier.models import bottleneck, freeze, initial, lora, peft_methods, virtual
from luthier.records import TokenizedExample

NO_SETTINGS = Settings.model_validate({"model": "-", "data": {"train": "-"}})


def add(model: Any, settings: Settings, trained_tokens: Sequence[int] = (), tokenizer: Any = None, examples: Iterable[TokenizedExample] = ()) -> Any:
    """The loaded model with a fresh adapter of `settings.method`, of which the seed decides every number; only it is trained.

    `trained_tokens` are ids of added tokens, whose rows are trained too where the method can. `tokenizer` reads the text
    that a learned prompt begins with; `examples` are training rows, for an adapter that starts from them (EVA).
    """
    with_lora = "lora" in METHODS[settings.method].blocks
    if trained_tokens and not with_lora and settings.method != "full":
        raise ConfigError(
            f"method: {settings.method} leaves the embedding as it is, and the rows of added tokens would stay as they were drawn",
            where="tokenizer.add_special_tokens",
            next_step="method: lora, which trains them too",
        )
    adapted = ADD[settings.method](model, settings, trained_tokens)
    if with_lora and settings.lora.init_lora_weights == "eva":
        initial.by_variance(adapted, examples, settings.seed)
    if settings.method == "prompt" and settings.prompt.prompt_tuning_init_text:
        return virtual.begin_with_text(adapted, settings.prompt.prompt_tuning_init_text, tokenizer)
    return adapted


def require(settings: Settings) -> None:
    """Raises ConfigError for a method that PEFT has not, before anything is loaded."""
    if settings.method == "peft":
        peft_methods.require(settings.peft)


def settings_of(model: str, method: str, given: dict[str, Any], precision: str, seed: int) -> Settings:
    """Settings for one method without rows; `given` are settings of its own sections. Raises ConfigError for one that it has not."""
    if method not in METHODS:
        raise ConfigError(f"there is no method {method}", where="method", next_step=f"one of: {', '.join(METHODS)}")
    kinds = {block: type(getattr(NO_SETTINGS, block)).model_fields for block in METHODS[method].blocks if block != "peft"}
    section_of = {name: block for block, fields in kinds.items() for name in fields}
    if unknown := sorted(given.keys() - section_of) if kinds else []:
        raise ConfigError(f"method: {method} has no setting {unknown[0]}", where="settings", next_step=f"known: {', '.join(section_of)}")
    sections = {block: {name: value for name, value in given.items() if section_of[name] == block} for block in kinds} or {"peft": given}
    run = {"model": model, "data": {"train": "-"}, "method": method, "training": {"precision": precision}, "seed": seed}
    try:
        return Settings.model_validate(run | sections)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ConfigError(f"{wrong['loc'][1]} is {wrong['input']!r}: {wrong['msg']}", where="settings", next_step="docs/methods.md") from error


# method -> puts it beside the model, or (full) says what of it is trained
ADD: dict[str, Callable[[Any, Settings, Sequence[int]], Any]] = {
    **dict.fromkeys(
        ("lora", "dora", "qlora"),
        lambda model, asked, tokens: lora.add(model, asked.lora, seed=asked.seed, trained_tokens=tokens, dora=asked.method == "dora"),
    ),
    "bottleneck": lambda model, asked, tokens: bottleneck.add(model, asked.bottleneck, seed=asked.seed),
    "prefix": lambda model, asked, tokens: virtual.add_prefix(model, asked.prefix, seed=asked.seed),
    "prompt": lambda model, asked, tokens: virtual.add_prompt(model, asked.prompt, seed=asked.seed),
    "p_tuning": lambda model, asked, tokens: virtual.add_p_tuning(model, asked.p_tuning, seed=asked.seed),
    "ia3": lambda model, asked, tokens: peft_methods.add_ia3(model, asked.ia3, seed=asked.seed),
    "peft": lambda model, asked, tokens: peft_methods.add(model, asked.peft, seed=asked.seed),
    "full": lambda model, asked, tokens: freeze.train_all_but(model, asked.freeze),
}
