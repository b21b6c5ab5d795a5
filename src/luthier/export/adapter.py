"""Which programs read an adapter as it is, by what its files say: vLLM, SGLang and LoRAX each take less than PEFT writes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.export.commands import RANKS, max_rank
from luthier.models import weights
from luthier.models.adapters import CONFIG, WEIGHTS

SERVERS = ("vllm", "sglang", "lorax")
# What all three pass over or refuse (vLLM: vllm/lora/peft_helper.py), by its name in adapter_config.json.
UNREAD = {
    "use_dora":                "the column lengths of DoRA",
    "modules_to_save":         "an embedding or a head that was trained whole",
    "trainable_token_indices": "the rows of added tokens",
    "rank_pattern":            "layers of other ranks",
    "alpha_pattern":           "layers of another alpha",
    "lora_bias":               "trained biases",
    "layer_replication":       "repeated layers",
    "target_parameters":       "parameters that are no layers",
}  # fmt: skip
LORA_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class Reading:
    """Whether a program takes an adapter, and what is to be known about it."""

    engine: str
    takes: bool
    why: str

    def __str__(self) -> str:
        return f"{self.engine}: {'takes it' if self.takes else 'does not take it'}{f' ({self.why})' if self.why else ''}"


def readers(folder: Path, engines: Sequence[str]) -> list[Reading]:
    """What each of `engines` (those that read the run's method at all) makes of the adapter in `folder`."""
    config = weights.read_object(folder / CONFIG, "name a folder that holds an adapter")
    refused = _unread(config) + _names(folder, config)
    return [_judge(engine, config, refused) for engine in engines if engine in SERVERS]


def _judge(engine: str, config: Mapping[str, Any], refused: list[str]) -> Reading:
    if refused:
        return Reading(engine, False, f"{'; '.join(refused)}; export --to merged holds all of it")
    rank, base = int(config["r"]), config["base_model_name_or_path"]
    if rank > RANKS[-1]:
        return Reading(engine, False, f"its rank is {rank}, and {RANKS[-1]} is the most")
    needs = f"rank {rank}" + (f" is none of {', '.join(map(str, RANKS[:4]))}, ...:" if rank not in RANKS else "")
    if engine == "lorax":
        # It compares the two strings, and takes no other spelling of the same model.
        return Reading(engine, True, f"started with --model-id {base}, which it compares letter by letter")
    return Reading(engine, True, f"{needs} needs --max-lora-rank {max_rank(rank)}")


def _unread(config: Mapping[str, Any]) -> list[str]:
    found = [f"it passes over {what}" for name, what in UNREAD.items() if config.get(name)]
    if config.get("bias", "none") != "none":
        found.append("it passes over trained biases")
    if not isinstance(config.get("base_model_name_or_path"), str) or not config["base_model_name_or_path"]:
        found.append("base_model_name_or_path names no model")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        found.append("target_modules is no list of names")
    return found


def _names(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the tensors: their names, the layers that they belong to, their rank."""
    targets = {str(name).rpartition(".")[2] for name in config.get("target_modules") or []}
    for name, entry in sorted(weights.read_header(folder / WEIGHTS).items()):
        found = LORA_TENSOR.fullmatch(name)
        if found is None:
            return [f"it has no place for {name}"]
        if found["layer"].rpartition(".")[2] not in targets:
            return [f"{name} is of a layer that target_modules does not name"]
        if entry["shape"][0 if found["side"] == "A" else 1] != config.get("r") and not config.get("rank_pattern"):
            return [f"{name} is {entry['shape']}, and r is {config.get('r')}"]
    return []
