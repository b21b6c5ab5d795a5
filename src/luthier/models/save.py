"""Write a whole model with its tokenizer as Transformers reads it, releases before 5 too."""

import json
from pathlib import Path
from typing import Any

import torch

from luthier import files
from luthier.errors import ModelError
from luthier.models.load import save_tokenizer, without_bars


def save_model(model: Any, folder: Path, tokenizer: Any, stop_ids: set[int]) -> Path:
    """Write `model` in its own number format into `folder`, whole or not at all. Other programs stop where this one does (`stop_ids`).

    Raises ModelError where a weight is not finite: then nothing is written.
    """
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            next_step = "lower training.learning_rate and resume from the last checkpoint"
            raise ModelError(f"{name} holds values that are not finite", where=str(folder), next_step=next_step)
    if model.generation_config is not None:
        stops = sorted(stop_ids)
        model.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops

    def fill(staging: Path) -> None:
        with without_bars():
            model.save_pretrained(staging)
        save_tokenizer(tokenizer, staging)
        _readable_by_older_releases(staging, model.dtype)

    return files.build_folder(folder, fill)


def _readable_by_older_releases(folder: Path, dtype: torch.dtype) -> None:
    """Transformers 4 reads other names than 5, and is silently wrong where it finds none (rope_theta becomes 10,000)."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope: dict[str, Any] = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["torch_dtype"] = config["dtype"] = str(dtype).removeprefix("torch.")
    files.write_json(path, config)
