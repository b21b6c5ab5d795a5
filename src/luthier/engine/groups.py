"""Which trained weights share a rate and a decay: torch's parameter groups, by the weights' names and shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from luthier.errors import ConfigError

# What Transformers leaves out of weight decay (Trainer.get_decay_parameter_names); vectors are left out here whatever they are called.
NOT_DECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
# The B of LoRA+ (Hayou 2024, arXiv:2402.12354).
LORA_B = r"\.lora_(B|embedding_B)\b"


def decays(name: str, weight: Tensor) -> bool:
    """Whether weight decay is for this weight: not for norms, biases and other vectors."""
    return weight.ndim > 1 and not NOT_DECAYED.search(name.lower())


def table_names(model: Any, causal_model: Any) -> set[str]:
    """The names that the parameters of the embedding and the head have in `model`, which stands around `causal_model` or is it."""
    tables = (causal_model.get_input_embeddings(), causal_model.get_output_embeddings())
    inside = {id(parameter) for table in tables if table is not None for parameter in table.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in inside}


def groups(weights: Mapping[str, Tensor], tables: set[str], weight_decay: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """The groups: `params`, their `weight_decay`, `rate_factor` (rate over the learning rate) and whether they are a `table`.

    `tables` are the names of the embedding and the head. `rates` has factors by regular expression; of those that are found in a name
    the product counts. Raises ConfigError for an expression that is found in none.
    """
    for pattern in rates:
        try:
            matches = any(re.search(pattern, name) for name in weights)
        except re.error as error:
            problem = f"{pattern!r} is no regular expression ({error})"
            raise ConfigError(problem, where="training.learning_rates", next_step="a part of a name, such as q_proj") from error
        if not matches:
            raise ConfigError(
                f"{pattern!r} is found in no name of a trained weight",
                where="training.learning_rates",
                next_step=f"a part of a name, such as {next(iter(weights), '')}",
            )
    found: dict[tuple[bool, float, bool], dict[str, Any]] = {}
    for name, weight in weights.items():
        factor = math.prod(value for pattern, value in rates.items() if re.search(pattern, name))
        kind = (decays(name, weight), factor, name in tables)
        empty = {"params": [], "weight_decay": weight_decay if kind[0] else 0.0, "rate_factor": factor, "table": kind[2]}
        found.setdefault(kind, empty)["params"].append(weight)
    return list(found.values())
