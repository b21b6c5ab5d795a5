"""Put LoRA adapters (Hu 2021, arXiv:2106.09685) beside a model's linear layers, and keep and load them in PEFT's own format.

Adapter weights are fp32, whatever the base is. A stored adapter loads with `PeftModel.from_pretrained` of any other tool.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import ModulesToSaveWrapper
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from luthier import files
from luthier.errors import ConfigError, ModelError
from luthier.models import vocabulary, weights
from luthier.models.load import save_tokenizer

# Layers that choose among experts; trained, they would send tokens elsewhere than the experts were made for.
ROUTER = re.compile(r"(^|\.)(gate|\w*router\w*|\w*expert_gate)(\.|$)")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def add_lora(
    model: Any,
    r: int,
    lora_alpha: float,
    lora_dropout: float,
    target_modules: str | list[str],
    use_rslora: bool,
    seed: int,
    *,
    layers_to_transform: Sequence[int] = (),
    modules_to_save: Sequence[str] = (),
    trained_tokens: Sequence[int] = (),
) -> peft.PeftModel:
    """The model with fresh adapters of rank `r`; only they are trained. The same seed gives the same adapters.

    `target_modules` is all-linear (every linear layer but the head and routers) or names of layers; `layers_to_transform` are the numbers of the
    decoder's layers that get one (none given: all). `modules_to_save` names the embedding and the head where they are trained whole, and
    `trained_tokens` the ids whose rows are. Raises ConfigError for unknown names.
    """
    saved = _saved_tables(model, modules_to_save)
    wanted = [target_modules] if isinstance(target_modules, str) else target_modules
    config = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM,
        r=r,
        lora_alpha=lora_alpha,  # type: ignore[arg-type]  # PEFT divides it by r; a fraction is as good
        lora_dropout=lora_dropout,
        target_modules=_targets(model, wanted),
        use_rslora=use_rslora,
        layers_to_transform=_layers(model, layers_to_transform),
        modules_to_save=saved or None,
        ensure_weight_tying=bool(saved) and vocabulary.tied(model),
        trainable_token_indices=vocabulary.trained_layers(model, trained_tokens) if trained_tokens and not saved else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _with_fp32_tables(peft.get_peft_model(model, config))


def _saved_tables(model: Any, wanted: Sequence[str]) -> list[str]:
    """The embedding and the head by their short names, where they are trained whole: both or none, since a token stands in both."""
    known = vocabulary.table_names(model)
    unknown = [name for name in wanted if name not in known]
    if unknown or (wanted and not vocabulary.tied(model) and set(wanted) != set(known)):
        problem = f"only the embedding and the head are saved whole, not {unknown[0]}" if unknown else "the embedding and the head go together"
        raise ConfigError(problem, where="lora.modules_to_save", next_step=f"lora.modules_to_save: [{', '.join(known)}]")
    return known if wanted else []


def _with_fp32_tables(model: peft.PeftModel) -> peft.PeftModel:
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


def _targets(model: Any, wanted: list[str]) -> list[str]:
    """The layers by the short names that other tools know too (q_proj, not model.layers.0.self_attn.q_proj)."""
    head = model.get_output_embeddings()
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D) and module is not head]
    known = sorted({name.rpartition(".")[2] for name in linear})
    if wanted == ["all-linear"]:
        routers = {name.rpartition(".")[2] for name in linear if ROUTER.search(name)}
        return [name for name in known if name not in routers and not _names_experts(model, name)]
    unknown = [target for target in wanted if not any(f".{name}".endswith(f".{target}") for name in linear)]
    if unknown or not wanted:
        raise ConfigError(
            f"this model has no linear layer {', '.join(unknown)}" if unknown else "no layer is named",
            where="lora.target_modules",
            next_step=f"all-linear, or some of: {', '.join(known)}",
        )
    if experts := [target for target in wanted if _names_experts(model, target)]:
        raise ConfigError(
            f"{', '.join(experts)}: PEFT would take the experts of this model for them, which stay as they are",
            where="lora.target_modules",
            next_step="all-linear, which leaves the experts and the router out",
        )
    return wanted


def _names_experts(model: Any, target: str) -> bool:
    """Whether PEFT takes this name of a layer for the experts that Transformers 5 keeps fused in one tensor."""
    config = peft.LoraConfig(target_modules=[target])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # one half of a fused tensor
        return True
    return target not in (config.target_modules or [])


def _layers(model: Any, wanted: Sequence[int]) -> list[int] | None:
    """The layers that get an adapter, by number; None stands for all, as PEFT has it."""
    layers = model.config.get_text_config().num_hidden_layers
    if wanted and max(wanted) >= layers:
        raise ConfigError(
            f"layer {max(wanted)} is not there: this model has {layers}",
            where="lora.layers_to_transform",
            next_step=f"numbers from 0 to {layers - 1}",
        )
    return sorted(set(wanted)) or None


def load_adapter(model: Any, folder: Path, trainable: bool) -> peft.PeftModel:
    """The model with the adapter stored in `folder`, to train on or (not `trainable`) to answer with.

    Strict: every tensor must be there, of the right shape and finite, else ModelError; the model is then as it was.
    """
    stored_config = weights.read_object(folder / CONFIG, "name a folder that holds an adapter (RUN/adapter)")
    tensors = _read_tensors(folder)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (TypeError, ValueError, KeyError) as error:
        raise ModelError(f"PEFT cannot read it ({error})", where=str(folder / CONFIG), next_step="save the adapter again") from error
    if not isinstance(config, peft.LoraConfig):
        raise ModelError(f"holds an adapter of kind {config.peft_type}", where=str(folder / CONFIG), next_step="use a LoRA adapter")
    # PEFT warns where the name is not this folder's path; it is ours to compare, and is put back below.
    base_name, config.base_model_name_or_path = config.base_model_name_or_path, None
    config.inference_mode = not trainable
    if surplus := _tokens_beyond(config, model):
        raise _mismatch(folder, stored_config, model, surplus)
    try:
        adapted = _with_fp32_tables(peft.get_peft_model(model, config))
    except ValueError as error:
        raise _mismatch(folder, stored_config, model, str(error)) from error
    config.base_model_name_or_path = base_name
    if difference := _difference(_tensors(adapted), tensors):
        adapted.unload()
        raise _mismatch(folder, stored_config, model, difference)
    peft.set_peft_model_state_dict(adapted, tensors)
    return adapted if trainable else adapted.eval()


def _tokens_beyond(config: peft.LoraConfig, model: Any) -> str:
    trained = config.trainable_token_indices or {}
    ids = [token for tokens in trained.values() for token in tokens] if isinstance(trained, dict) else trained
    rows = len(model.get_input_embeddings().weight)
    return f"it trains the row of token {max(ids)}, and the embedding has {rows} rows" if ids and max(ids) >= rows else ""


def _read_tensors(folder: Path) -> dict[str, Any]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError("is missing", where=str(path), next_step="save the adapter as safetensors; other formats are not loaded")
    weights.read_header(path)
    try:
        tensors: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"cut or damaged: {error}", where=str(path), next_step="use another checkpoint") from error
    _check_finite(tensors, str(path), "use an earlier checkpoint")
    return tensors


def _tensors(model: Any) -> dict[str, Any]:
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

    `base_name` is the model's name as a user would write it. Raises ModelError where a value is not finite: then nothing is written.
    """
    _check_finite(_tensors(model), str(folder), "lower training.learning_rate and resume from the last checkpoint")
    files.build_folder(folder, lambda staging: _write_adapter(model, staging, base_name, tokenizer))


def _write_adapter(model: Any, staging: Path, base_name: str, tokenizer: Any) -> None:
    model.save_pretrained(staging, save_embedding_layers=False)
    if tokenizer is not None:
        save_tokenizer(tokenizer, staging)
    # PEFT's card is a form to fill in, and names the base by its path on this machine.
    (staging / "README.md").unlink(missing_ok=True)
    config = files.read_json(staging / CONFIG)
    # A set in memory: sorted, so that the same adapter is the same bytes.
    targets = sorted(config["target_modules"])
    files.write_json(staging / CONFIG, {**config, "base_model_name_or_path": base_name, "target_modules": targets})


def _check_finite(tensors: dict[str, Any], where: str, next_step: str) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{name} holds values that are not finite", where=where, next_step=next_step)
