"""The trained model as one ordinary model: an adapter is merged in fp32 onto the unquantized base, then stored in the number format asked for."""

from pathlib import Path

import torch

from luthier.engine import Engine
from luthier.models.save import SHARD_BYTES, save_model

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def write_merged(engine: Engine, folder: Path, precision: str, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write the model of `engine` (opened in fp32) as Transformers reads it, in files of at most `shard_bytes`. The engine's model is used up.

    In bf16 the sum is rounded once, when it is stored; merging in bf16 would round the adapter away (1.4 against 7e-5 in a logit).
    """
    whole = engine.model.merge_and_unload() if engine.adapted else engine.model
    whole.set_attn_implementation(engine.plain_attention)
    return save_model(whole.to(DTYPES[precision]), folder, engine.tokenizer, engine.stop_ids, shard_bytes)


def write_adapter(engine: Engine, folder: Path, base_name: str) -> Path:
    """Write the adapter in PEFT's own format."""
    return engine.save_state(folder, base_name)
