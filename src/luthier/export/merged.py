"""Base and adapter as one ordinary model: merged in fp32 onto the unquantized base, then stored in the number format asked for."""

import json
from pathlib import Path
from typing import Any

import torch

from luthier import files
from luthier.engine import Engine
from luthier.models.load import save_tokenizer, without_bars

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def write_merged(engine: Engine, folder: Path, precision: str) -> Path:
    """Write the merged model of `engine` (opened in fp32) as Transformers reads it. The engine's model is used up.

    In bf16 the sum is rounded once, when it is stored; merging in bf16 would round the adapter away (1.4 against 7e-5 in a logit).
    """
    merged = engine.model.merge_and_unload().to(DTYPES[precision])
    merged.set_attn_implementation("sdpa")
    if merged.generation_config is not None:  # other programs stop where this one does
        stops = sorted(engine.stop_ids)
        merged.generation_config.eos_token_id = stops[0] if len(stops) == 1 else stops

    def fill(staging: Path) -> None:
        with without_bars():
            merged.save_pretrained(staging)
        save_tokenizer(engine.tokenizer, staging)
        _readable_by_older_releases(staging, precision)

    return files.build_folder(folder, fill)


def write_adapter(engine: Engine, folder: Path, base_name: str) -> Path:
    """Write the adapter in PEFT's own format."""
    return engine.save_state(folder, base_name)


def _readable_by_older_releases(folder: Path, precision: str) -> None:
    """Transformers 4 reads other names than 5, and is silently wrong where it finds none (rope_theta becomes 10,000)."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope: dict[str, Any] = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["torch_dtype"] = config["dtype"] = NAMES[precision]
    files.write_json(path, config)
