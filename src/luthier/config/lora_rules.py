"""Settings of LoRA that cannot stand beside others."""

from collections.abc import Iterator, Mapping

from luthier.config.settings import Settings

# Starts that are a part of the weights, which saving takes off again.
STARTS_ELSEWHERE = ("pissa", "olora", "loftq")


def clashes(settings: Settings, given: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """What cannot stand together: the setting's dotted name, the problem, the next step. `given` has the names that were written."""
    lora, dora = settings.lora, settings.lora.use_dora or settings.method == "dora"
    if settings.method == "dora" and "lora.use_dora" in given and not lora.use_dora:
        yield "lora.use_dora", "method: dora is lora with use_dora: true", "take use_dora out, or set method: lora"
    if dora and lora.init_lora_weights in STARTS_ELSEWHERE:
        problem = f"what begins at {lora.init_lora_weights} is saved as plain LoRA, and use_dora adapters cannot be"
        yield "lora.init_lora_weights", problem, "init_lora_weights: default, or method: lora"
    if lora.init_lora_weights == "eva" and lora.rank_pattern:
        yield "lora.rank_pattern", "eva gives layers with one input one rank", "take rank_pattern or init_lora_weights out"
