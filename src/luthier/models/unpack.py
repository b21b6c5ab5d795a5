"""Turn a quantized GGUF file into an ordinary model folder that Transformers 4 and 5 load: bfloat16, safetensors, JSON.

The bfloat16 weights are the model from then on: training starts from them and parity is measured against them.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from luthier import files
from luthier.models.load import without_bars
from luthier.models.weights import WHOLE


def unpack(gguf: Path, folder: Path, *, pad_token: str, split_digits: bool, context: int) -> None:
    """Write weights, configs, tokenizer and chat template of `gguf` into `folder`; `context` is in tokens."""
    # The bar of the dequantization knows no switch of its own.
    with without_bars(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = _tokenizer(gguf, pad_token, split_digits, context)
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
    _write_weights(model, folder)
    _write_configs(model, tokenizer, folder)
    _write_tokenizer(tokenizer, folder)


def _tokenizer(gguf: Path, pad_token: str, split_digits: bool, context: int) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if split_digits:
        # "  12" is two spaces and then digits; without this split it would be a space and " 12".
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, tokenizer.backend_tokenizer.pre_tokenizer])
    if pad_token not in tokenizer.get_vocab():
        raise SystemExit(f"pad_token {pad_token!r} is not in the vocabulary: choose a special token that is")
    tokenizer.pad_token = pad_token
    # The file gives no limit, which Transformers writes as 1e30.
    tokenizer.model_max_length = context
    return tokenizer


def _write_weights(model: Any, folder: Path) -> None:
    tied = set(model._tied_weights_keys or []) if model.config.tie_word_embeddings else set()
    kept = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(kept, folder / WHOLE, metadata={"format": "pt"})


def _write_configs(model: Any, tokenizer: Any, folder: Path) -> None:
    config: dict[str, Any] = model.config.to_dict()
    for name in ("_name_or_path", "_model_name_or_path", "quantization_config"):
        config.pop(name, None)
    ends = {name: config.get(name) for name in ("bos_token_id", "eos_token_id")} | {"pad_token_id": tokenizer.pad_token_id}
    both = {
        # Transformers 5            Transformers 4
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "rope_theta": config["rope_parameters"]["rope_theta"],
    }
    files.write_json(folder / "config.json", {**config, **ends, **both, "architectures": [type(model).__name__]})
    files.write_json(folder / "generation_config.json", ends)


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    stored = files.read_json(path)
    for name in ("name_or_path", "is_local", "local_files_only", "gguf_file"):
        stored.pop(name, None)
    # The name that both major versions of Transformers know.
    files.write_json(path, {**stored, "tokenizer_class": "PreTrainedTokenizerFast"})


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))
