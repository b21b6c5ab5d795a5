"""Load a checked model folder: the tokenizer and the weights. Nothing is downloaded, unpickled or run from the folder."""

import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from luthier import files
from luthier.errors import ModelError
from luthier.models import facts, placement, templates, vocabulary, weights

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# What a saved tokenizer would say of where it was loaded from.
OF_THIS_MACHINE = {"name_or_path", "is_local", "local_files_only", "gguf_file"}


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep Transformers' progress bars off the screen; ours are shown by the reporter."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def load_tokenizer(
    folder: Path,
    template: str = "auto",
    beside: Path = Path(),
    say: Callable[[str], None] = lambda line: None,
    added_tokens: Sequence[str] = (),
) -> Any:
    """The folder's tokenizer, with a model_max_length (tokens) no longer than the model's context, a pad token and a chat template.

    A tokenizer without a pad token pads with its end-of-text token. `template` as in the settings (a file's path starts at `beside`);
    `say` gets a line where it is not the tokenizer's own. Raises ModelError where its files cannot be read, ConfigError for the template.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a cut file
        raise _unreadable("tokenizer", folder, error) from error
    context = facts.context_length(folder) if (folder / "config.json").is_file() else None  # beside an adapter there is none
    if context is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    vocabulary.add_tokens(tokenizer, added_tokens)
    own = tokenizer.chat_template is not None
    chosen = templates.install(tokenizer, template, beside, added_tokens)
    if template != "auto" or not own:
        say(f"template: {chosen.name} ({chosen.why})")
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files, with its chat template, as Transformers 4 and 5 read them."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    stored = {name: value for name, value in files.read_json(path).items() if name not in OF_THIS_MACHINE}
    if stored.get("tokenizer_class") == "TokenizersBackend":
        stored["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that both know
    files.write_json(path, stored)


def load_model(
    folder: Path, precision: Literal["bf16", "fp16", "fp32"], device: str, quantization: Any = None, places: dict[str, str] | None = None
) -> Any:
    """The folder's language model in evaluation mode, its weights in `precision` on `device`.

    `quantization` is a config of Transformers that says which layers are quantized as they are read, and how (quantized.py); `places` says
    where blocks lie that are not kept on the device (placement.py).
    Raises ModelError for files that are cut, weights that are missing or not finite, and kinds of model that are unknown.
    """
    weights.tensor_shapes(folder)  # a cut file is named here, before anything is allocated
    beside = {} if quantization is None else {"quantization_config": quantization, "device_map": {"": device}}
    if places is not None:
        check_finite_files(folder)
        beside = {"device_map": places, "offload_folder": str(placement.folder_for_disk())}
    compressed = _compressed(folder)
    try:
        # compressed-tensors' bars know no switch.
        with without_bars(), redirect_stderr(io.StringIO()) if compressed else nullcontext():
            model, loading = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=DTYPES[precision],
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # its own error names no weight
                **beside,
            )
    except Exception as error:  # what a wrong config raises has no common class
        raise _unreadable("model", folder, error) from error
    # Transformers would start them at random and only warn.
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(
            f"holds no values for {len(missing)} weights of the model, {missing[0]} first",
            where=str(folder),
            next_step="download the model again, or check that config.json belongs to these weights",
        )
    if mismatched := sorted(loading["mismatched_keys"]):
        name, found, wanted = mismatched[0]
        raise ModelError(
            f"the model cannot be loaded: {name} is {list(found)}, and config.json asks for {list(wanted)}",
            where=str(folder),
            next_step="put the config.json beside these weights that belongs to them",
        )
    if places is not None:
        return placement.install(model, device, Path(beside["offload_folder"])).eval()
    if quantization is not None:
        return model.eval()  # the files were checked before; it is on the device already
    if compressed:
        return _unpacked(model.to(device).eval(), folder)
    _check_finite(model.state_dict().items(), folder)
    return _of_its_own(model.to(device)).eval()


def _of_its_own(model: Any) -> Any:
    """The model with copies of the weights that lie in a mapped file: written over in place, that would change them, or end the process."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.untyped_storage().resizable():  # memory that torch did not take
            tensor.data = tensor.data.clone()
    return model


def _compressed(folder: Path) -> bool:
    """Whether the weights are stored as compressed-tensors has them. Raises ModelError where that library, which unpacks them, is missing."""
    asked = weights.read_config(folder).get("quantization_config") or {}
    if asked.get("quant_method") != "compressed-tensors":
        return False
    if importlib.util.find_spec("compressed_tensors") is None:
        raise ModelError(
            "its weights are packed, and compressed-tensors unpacks them", where=str(folder), next_step='pip install "luthier[compress]"'
        )
    return True


def _unpacked(model: Any, folder: Path) -> Any:
    """The model after its first token, which unpacks the weights."""
    with redirect_stderr(io.StringIO()), torch.no_grad():
        model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
    _check_finite(model.state_dict().items(), folder)
    return model


def check_finite_files(folder: Path) -> None:
    """Raises ModelError where a weight in the files of `folder` is not finite. One tensor is read at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        for name in weights.read_header(path):
            # Opened for each: what was read of an open file stays in memory.
            with safe_open(path, framework="pt") as file:
                _check_finite([(name, file.get_tensor(name))], folder)


def _check_finite(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path) -> None:
    for name, tensor in tensors:
        # A finite sum proves that all its addends are, in a fraction of the time; one that is not may merely be too large.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)) and not torch.isfinite(tensor).all():
            raise ModelError(f"{name} holds values that are not finite", where=str(folder), next_step="download the model again")


def _unreadable(what: str, folder: Path, error: Exception) -> ModelError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if isinstance(error, MemoryError) or "memory" in reason:
        return ModelError(f"there is not enough memory for the {what}: {reason}", where=str(folder), next_step="choose a smaller model")
    return ModelError(
        f"the {what} cannot be loaded: {reason}",
        where=str(folder),
        next_step="download the model again, or choose another (luthier models list)",
    )
