"""Load a checked model folder: the tokenizer and the weights. Nothing is downloaded, unpickled or run from the folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from luthier.errors import ModelError
from luthier.models import facts, weights

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


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


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, with a model_max_length (tokens) no longer than the model's context and with a pad token.

    A tokenizer without a pad token pads with its end-of-text token. Raises ModelError where its files cannot be read.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a cut file
        raise _unreadable("tokenizer", folder, error) from error
    context = facts.context_length(folder)
    if context is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: Path, precision: Literal["bf16", "fp32"], device: str) -> Any:
    """The folder's language model in evaluation mode, its weights in `precision` on `device`.

    Raises ModelError for files that are cut, weights that are missing or not finite, and kinds of model that are unknown.
    """
    weights.tensor_shapes(folder)  # a cut file is named here, before anything is allocated
    try:
        with without_bars():
            model, loading = AutoModelForCausalLM.from_pretrained(
                str(folder),
                dtype=DTYPES[precision],
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
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
    _check_finite(model, folder)
    return model.to(device).eval()


def _check_finite(model: Any, folder: Path) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
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
