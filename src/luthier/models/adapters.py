"""Keep and load adapters of any kind in PEFT's own format.

Adapter weights are fp32, whatever the base is. A stored adapter loads with `PeftModel.from_pretrained` of any other tool; a bottleneck
adapter, which PEFT does not know, stands in files of the same names.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file

from luthier import files
from luthier.config.adapters import BottleneckSettings
from luthier.errors import ModelError
from luthier.models import bottleneck, find, initial, virtual, weights
from luthier.models.bottleneck import BottleneckModel
from luthier.models.load import save_tokenizer
from luthier.models.save import write_tensors
from luthier.reporting import Reporter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Ours, beside PEFT's files: the base by what it holds, since its name may come to mean another.
ORIGIN = "luthier.json"


def with_fp32_tables(model: peft.PeftModel) -> peft.PeftModel:
    """Keep tables that are trained whole in fp32 (an update of 1e-5 is lost in bf16), and let them take and give the base's format."""
    base: Any = model.get_base_model()
    for wrapper in (base.get_input_embeddings(), base.get_output_embeddings()):
        if not isinstance(wrapper, ModulesToSaveWrapper):
            continue
        dtype = wrapper.original_module.weight.dtype
        for module in wrapper.modules_to_save.values():
            module.weight.data = module.weight.data.float()
            module.forward = _forward_in(module, dtype)
    return model


def _forward_in(module: Any, dtype: torch.dtype) -> Any:
    plain = type(module).forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = plain(module, x.to(module.weight.dtype) if x.is_floating_point() else x)
        return output.to(dtype)

    return forward


def load_adapter(model: Any, folder: Path, trainable: bool) -> Any:
    """The model with the adapter stored in `folder`, of any kind, to train on or (not `trainable`) to answer with.

    Strict: every tensor must be there, of the right shape and finite, else ModelError; the model is then as it was.
    """
    stored_config, tensors = read_stored(folder, model)
    if stored_config.get("peft_type") == bottleneck.TYPE:
        return _load_bottleneck(model, folder, stored_config, tensors, trainable)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"PEFT cannot read it ({error})", where=str(folder / CONFIG), next_step="save the adapter again") from error
    if trainable:
        virtual.check_goes_on(config, str(folder / CONFIG))
    # PEFT warns where the name is not this folder's path; it is ours to compare, and is put back below.
    base_name, config.base_model_name_or_path = config.base_model_name_or_path, None
    config.inference_mode = not trainable
    if surplus := _tokens_beyond(config, model):
        raise _mismatch(folder, stored_config, model, surplus)
    try:
        adapted = with_fp32_tables(peft.get_peft_model(model, config))
    except (ValueError, TypeError) as error:
        raise _mismatch(folder, stored_config, model, str(error)) from error
    config.base_model_name_or_path = base_name
    if difference := _difference(_tensors(adapted), tensors):
        if hasattr(adapted.base_model, "unload"):
            adapted.unload()
        raise _mismatch(folder, stored_config, model, difference)
    peft.set_peft_model_state_dict(adapted, tensors)
    return adapted if trainable else adapted.requires_grad_(False).eval()


def read_stored(folder: Path, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config and the tensors of a stored adapter that was made for `model`, as far as its hash says; all tensors are finite.

    Raises ModelError for another base, a config that PEFT would not take as it is written, and files that are cut or missing.
    """
    stored_config = weights.read_object(folder / CONFIG, "name a folder that holds an adapter (RUN/adapter)")
    _check_base(folder, stored_config, model)
    tensors = _read_tensors(folder)
    if stored_config.get("peft_type") != bottleneck.TYPE:
        _check_config(folder, stored_config)
    return stored_config, tensors


def _check_config(folder: Path, stored_config: dict[str, Any]) -> None:
    """Raises ModelError for what PEFT would take in silence: another task, a switch that it does not know, a factor that is no number."""

    def refuse(name: str, problem: str) -> ModelError:
        return ModelError(f"{name} is {stored_config[name]!r}: {problem}", where=str(folder / CONFIG), next_step="save the adapter again")

    if stored_config.get("task_type") not in (None, "CAUSAL_LM"):
        raise refuse("task_type", "only adapters of models that write text (CAUSAL_LM) are loaded")
    kinds: dict[Any, Any] = dict(peft.PEFT_TYPE_TO_CONFIG_MAPPING)
    kind = kinds.get(str(stored_config.get("peft_type")))
    fields = {field.name: field.default for field in dataclasses.fields(kind)} if kind else dict(stored_config)
    for name, value in stored_config.items():
        if name not in fields and value:
            raise refuse(name, f"PEFT {peft.__version__} does not know it, and would leave it out")
        if isinstance(fields.get(name), bool) and name.startswith("use_") and not isinstance(value, bool):
            raise refuse(name, "true or false is expected")
    alpha = stored_config.get("lora_alpha")
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha)):
        raise refuse("lora_alpha", "a number is expected")


def _check_base(folder: Path, stored_config: dict[str, Any], model: Any) -> None:
    """Raises ModelError where the adapter says by its hash that it was made for another base than `model` was loaded from."""
    path = folder / ORIGIN
    made_for = weights.read_object(path, "save the adapter again").get("base_sha256") if path.is_file() else None
    found = base_sha256(model)
    if made_for and found and made_for != found:
        raise _mismatch(folder, stored_config, model, f"that base's weights have the hash {made_for[:12]}, and these {found[:12]}")


def base_name(folder: Path) -> str:
    """The base that the adapter in `folder` was made for, as its file names it. Raises ModelError where it names none."""
    name = weights.read_object(folder / CONFIG, "name a folder that holds an adapter").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ModelError("base_model_name_or_path names no model", where=str(folder / CONFIG), next_step="write the name of its base there")
    return name


def base_folder(folder: Path, reporter: Reporter) -> Path:
    """The folder of the base that the adapter in `folder` names; a relative one is looked up from there, and then from here."""
    name = base_name(folder)
    for place in (folder, Path()):
        if find.folder_of(name, place):
            return find.find(name, reporter, place)
    try:
        return find.find(name, reporter)
    except ModelError as error:
        next_step = "write the path or the hub id of its base in base_model_name_or_path"
        if find.HUB_ID.fullmatch(name):
            next_step = f"{error.next_step}; or {next_step}"
        raise ModelError(f"its base, {name}: {error.problem}", where=str(folder / CONFIG), next_step=next_step) from error


def base_sha256(model: Any) -> str | None:
    """The hash of the folder that the model was loaded from; None for one that was not loaded from a folder."""
    folder = Path(str(model.config._name_or_path))
    return weights.fingerprint(folder) if (folder / "config.json").is_file() else None


def _load_bottleneck(model: Any, folder: Path, stored_config: dict[str, Any], tensors: dict[str, Any], trainable: bool) -> BottleneckModel:
    given = {name: value for name, value in stored_config.items() if name in BottleneckSettings.model_fields}
    try:
        settings = BottleneckSettings.model_validate(given)
    except ValueError as error:
        raise ModelError(f"is not a bottleneck adapter ({error})", where=str(folder / CONFIG), next_step="save the adapter again") from error
    adapted = bottleneck.add(model, settings)
    if difference := _difference(_tensors(adapted), tensors):
        adapted.unload()
        raise _mismatch(folder, stored_config, model, difference)
    adapted.load_tensors(tensors)
    return adapted if trainable else adapted.requires_grad_(False).eval()


def _tokens_beyond(config: peft.PeftConfig, model: Any) -> str:
    trained = getattr(config, "trainable_token_indices", None) or {}
    ids = [token for tokens in trained.values() for token in tokens] if isinstance(trained, dict) else trained
    rows = len(model.get_input_embeddings().weight)
    return f"it trains the row of token {max(ids)}, and the embedding has {rows} rows" if ids and max(ids) >= rows else ""


def _read_tensors(folder: Path) -> dict[str, Any]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError("is missing", where=str(path), next_step="save the adapter as safetensors; other formats are not loaded")
    weights.read_header(path)
    try:
        # Copies: what is mapped changes, or ends the process, where somebody writes over the file in place.
        tensors: dict[str, Any] = {name: tensor.clone() for name, tensor in load_file(path).items()}
    except SafetensorError as error:
        raise ModelError(f"cut or damaged: {error}", where=str(path), next_step="use another checkpoint") from error
    _check_finite(tensors, str(path), "use an earlier checkpoint")
    return tensors


def _tensors(model: Any) -> dict[str, Any]:
    if isinstance(model, BottleneckModel):
        return model.adapter_tensors()
    # PEFT's default would ask the hub whether the base's vocabulary has grown.
    tensors: dict[str, Any] = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    return tensors


def _difference(expected: dict[str, Any], found: dict[str, Any]) -> str:
    if missing := sorted(expected.keys() - found.keys()):
        return f"it lacks {len(missing)} tensors, {missing[0]} first"
    if surplus := sorted(found.keys() - expected.keys()):
        return f"it holds {len(surplus)} tensors that the model has no place for, {surplus[0]} first"
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            return f"{name} is {list(found[name].shape)} and the model needs {list(tensor.shape)}"
    return ""


def _mismatch(folder: Path, stored_config: dict[str, Any], model: Any, difference: str) -> ModelError:
    made_for = stored_config.get("base_model_name_or_path") or "a model it does not name"
    return ModelError(
        f"the adapter was made for {made_for} and does not fit {model.name_or_path or 'this model'}: {difference}",
        where=str(folder),
        next_step=f"load it on {made_for}",
    )


def save_adapter(model: Any, folder: Path, base_name: str, tokenizer: Any = None) -> None:
    """Write the adapter into `folder`, whole or not at all, with the tokenizer beside it where one is given.

    `base_name` is the model's name as a user would write it; where that is the catalog's for a model on the hub, adapter_config.json names
    the hub id, which other tools know. Raises ModelError where a value is not finite: then nothing is written.
    """
    _check_finite(_tensors(model), str(folder), "lower training.learning_rate and resume from the last checkpoint")
    files.build_folder(folder, lambda staging: _write_adapter(model, staging, base_name, tokenizer))


def _write_adapter(model: Any, staging: Path, base_name: str, tokenizer: Any) -> None:
    if isinstance(model, BottleneckModel):
        write_tensors(staging / WEIGHTS, model.adapter_tensors())
        files.write_json(staging / CONFIG, model.config_to_save())
    else:
        model.save_pretrained(staging, save_embedding_layers=False)
        if initial.frozen(model):
            _take_start_off(model, staging)
    if digest := base_sha256(model):
        files.write_json(staging / ORIGIN, {"base": base_name, "base_sha256": digest})
    if tokenizer is not None:
        save_tokenizer(tokenizer, staging)
    # PEFT's card is a form to fill in, and names the base by its path on this machine.
    (staging / "README.md").unlink(missing_ok=True)
    config = files.read_json(staging / CONFIG)
    # Lists of names are sets in memory: sorted, so that the same adapter is the same bytes.
    names = {name: sorted(value) for name, value in config.items() if name.endswith("_modules") and isinstance(value, list)}
    files.write_json(staging / CONFIG, {**config, **names, "base_model_name_or_path": find.hub_name(base_name)})


def _take_start_off(model: Any, staging: Path) -> None:
    """Make a stored adapter that did not start at zero one that the unchanged base can be given."""
    tensors, config = initial.as_plain(model, load_file(staging / WEIGHTS), files.read_json(staging / CONFIG))
    write_tensors(staging / WEIGHTS, tensors)
    files.write_json(staging / CONFIG, config)


def _check_finite(tensors: dict[str, Any], where: str, next_step: str) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name} holds values that are not finite", where=where, next_step=next_step)
