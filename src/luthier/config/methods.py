"""The table of methods: which block of settings each reads. A block that its method does not read is refused."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Method:
    """One way to fine-tune. `block` is the section of settings that it alone reads, "" where there is none."""

    name: str
    block: str
    what: str


METHODS = {
    # name          block    what it trains
    "lora": Method("lora", "lora", "low-rank adapters beside the frozen linear layers"),
    "full": Method("full", "", "every weight of the model"),
}
BLOCKS = {"lora"}
