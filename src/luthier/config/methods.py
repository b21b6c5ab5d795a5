"""The table of methods: which sections of settings each reads, and what can be done with what it leaves.

A section that a run's method does not read is refused when the settings are read; what a method cannot be is refused where it is asked for.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """One way to fine-tune."""

    name: str
    blocks: tuple[str, ...]  # sections of settings that it reads and others do not
    begins_as_base: bool  # whether the model answers as the base does before the first update
    merges: bool  # whether the base takes it in, so that an ordinary model remains
    per_request: bool  # whether a server can choose it for each request
    engines: tuple[str, ...]  # what reads its adapter as it is: peft, vllm, sglang, lorax, llama.cpp
    quantized_base: bool  # whether the frozen base may be in 4 or 8 bits
    what: str  # what it trains

    @property
    def leaves(self) -> str:
        """What a run leaves: an adapter, or the whole model."""
        return "model" if self.name == "full" else "adapter"


_LORA_ENGINES = ("peft", "vllm", "sglang", "lorax", "llama.cpp")
METHODS = {
    method.name: method
    for method in (
        # name         sections              begins as base, merges, per request, engines, quantized base, what it trains
        Method("lora", ("lora",), True, True, True, _LORA_ENGINES, False, "low-rank adapters beside the frozen linear layers"),
        Method("dora", ("lora",), True, True, False, ("peft",), False, "low-rank adapters and the length of each weight column"),
        Method("qlora", ("lora", "qlora"), True, True, True, _LORA_ENGINES, True, "low-rank adapters beside a base in 4 or 8 bits"),
        Method("bottleneck", ("bottleneck",), True, False, True, (), False, "small layers behind attention and MLP"),
        Method("prefix", ("prefix",), False, False, True, ("peft",), False, "keys and values before each row, in every layer"),
        Method("prompt", ("prompt",), False, False, True, ("peft",), False, "embeddings before each row"),
        Method("p_tuning", ("p_tuning",), False, False, True, ("peft",), False, "embeddings before each row, made by a small network"),
        Method("ia3", ("ia3",), True, True, False, ("peft",), False, "one factor for each key, value and MLP channel"),
        Method("peft", ("peft",), False, False, False, ("peft",), False, "what a method of PEFT trains"),
        Method("full", ("freeze",), True, False, False, (), False, "every weight of the model, or those that are not frozen"),
    )
}
BLOCKS = {block for method in METHODS.values() for block in method.blocks}
