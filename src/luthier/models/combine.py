"""Several LoRA adapters of one base as one adapter: weighted sums, TIES (Yadav 2023, arXiv:2306.01708), DARE (Yu 2023, arXiv:2311.03099)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.errors import ModelError
from luthier.models import adapters, weights

# PEFT's names. `cat` sums the products, exactly, and the ranks add up. `linear` sums A and B by themselves, each times the root of its weight,
# so that their product also holds what each A does to another's B: half and half of one adapter with itself is twice that adapter.
HOW = ("cat", "linear", "ties", "dare_linear", "dare_ties")
SPARSE = ("ties", "dare_linear", "dare_ties")
NAME = "default"  # what PEFT calls the adapter of a folder
# What an adapter may train beside two low-rank matrices for each layer.
BESIDE = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias")


def combine(base: Path, parts: Sequence[tuple[Path, float]], how: str, density: float = 0.5) -> Any:
    """The adapters in the folders of `parts`, each times its weight, as one adapter beside an empty model of the shape of `base`.

    `how` is one of HOW; `density` is the share of the numbers that TIES and DARE keep, which DARE draws alike every time. Raises
    ModelError for adapters that cannot be one.
    """
    loaded = [_load(base, folder) for folder, _ in parts]
    _check_alike([folder for folder, _ in parts], [config for config, _ in loaded], how)
    names = [f"part{place}" for place in range(len(parts))]
    combined: Any = peft.get_peft_model(_skeleton(base), loaded[0][0], adapter_name=names[0])
    for name, (config, tensors) in zip(names, loaded, strict=True):
        if name != names[0]:
            combined.add_adapter(name, config)
        peft.set_peft_model_state_dict(combined, tensors, adapter_name=name)
        # The part's own scale is known by now; left on, it would scale the sum once more.
        combined.peft_config[name].use_rslora = False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight_of_parts = [weight for _, weight in parts]
        sparse = {"density": density} if how in SPARSE else {}
        combined.add_weighted_adapter(names, weight_of_parts, NAME, combination_type=how, **sparse)
    combined.set_adapter(NAME)
    for name in names:
        combined.delete_adapter(name)
    return combined


def _load(base: Path, folder: Path) -> tuple[peft.LoraConfig, dict[str, Any]]:
    """The config and the numbers of a stored adapter that fits the base."""
    stored = weights.read_object(folder / adapters.CONFIG, "name a run, or a folder that holds an adapter (RUN/adapter)")
    if stored.get("peft_type") != "LORA":
        kind = stored.get("peft_type")
        raise ModelError(f"is an adapter of kind {kind}, and LoRA adapters are combined", where=str(folder), next_step="leave it out")
    if beside := [name for name in BESIDE if stored.get(name)]:
        raise ModelError(
            f"the adapter is more than two low-rank matrices for each layer ({', '.join(beside)}), and cannot be combined with others",
            where=str(folder),
            next_step="luthier export RUN --to merged takes such an adapter into its base",
        )
    adapted = adapters.load_adapter(_skeleton(base), folder, trainable=False)
    return adapted.peft_config[NAME], peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)


def _check_alike(folders: Sequence[Path], configs: Sequence[Any], how: str) -> None:
    where = " and ".join(str(folder) for folder in folders)
    if how != "cat" and (len({config.r for config in configs}) > 1 or any(config.rank_pattern for config in configs)):
        ranks = " and ".join(f"{config.r}{' with a rank_pattern' if config.rank_pattern else ''}" for config in configs)
        raise ModelError(f"{how} takes adapters of one rank, and these have {ranks}", where=where, next_step="--how cat takes any")
    if len({str(config.layers_to_transform) for config in configs}) > 1:
        raise ModelError("the adapters stand in different layers (layers_to_transform)", where=where, next_step="train them in the same layers")


def _skeleton(base: Path) -> Any:
    """The base with no numbers in it: an adapter's own are all that is read here."""
    config = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    return model.to_empty(device="cpu").requires_grad_(False)
