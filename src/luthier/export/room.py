"""How much disk an export needs while it is made, from the shapes of the model alone."""

from pathlib import Path

from luthier.export.targets import WHOLE, Target
from luthier.models import weights

# Bytes of a number, with the scales beside it where there are some.
NUMBER_BYTES = {
    "fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "f16": 2.0, "q8_0": 1.07, "q6_k": 0.83, "q5_k_m": 0.72, "q4_k_m": 0.62,
    "int4": 0.62, "int8": 1.05, "fp8": 1.05,
}  # fmt: skip
# What stands beside the weights: the tokenizer, configs, licenses.
BESIDE_BYTES = 20_000_000


def needed_bytes(model: Path, target: Target, stored: str) -> int:
    """Bytes of the artifact and of what it is made from, for the model in the folder `model`."""
    numbers = sum(weights.count(shape) for shape in weights.tensor_shapes(model).values())
    if target.name == "adapter":
        return BESIDE_BYTES
    parts = NUMBER_BYTES[target.made_from] if target.made_from else 0.0
    own = NUMBER_BYTES[stored] if target.of == WHOLE else 0.0
    # A k-quant is made of a whole file in bf16; an adapter for llama.cpp is tried on its base in f16.
    between = NUMBER_BYTES["bf16"] if stored.endswith(("_k", "_k_m")) or target.name == "gguf-lora" else 0.0
    return int(numbers * (parts + own + between)) + BESIDE_BYTES
