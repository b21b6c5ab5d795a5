"""IA3 (Liu 2022, arXiv:2205.05638), and every other method of PEFT that trains, by its type's name. A new type needs no code here."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)

from luthier.config.adapters import Ia3Settings
from luthier.errors import ConfigError, ModelError
from luthier.models import peft_types, targets, vocabulary
from luthier.models.adapters import with_fp32_tables
from luthier.models.blocks import known_blocks, sublayers

TYPES = {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
# type                  settings that it needs, with an example, and that PEFT has no value for
NEEDED = {
    "ADAPTION_PROMPT":  {"adapter_len": "10", "adapter_layers": "2"},
    "TRAINABLE_TOKENS": {"token_indices": "[0, 1]"},
}  # fmt: skip
# What PEFT and Luthier decide.
DECIDED = {field.name for field in dataclasses.fields(peft.PeftConfig)}
# The keys and values among the projections of attention, alone or in one matrix with the queries.
KEYS_AND_VALUES = re.compile(r"(k|v|q?kv|key|value|query_key_value|c_attn|wqkv|in_proj)(_\w+)?", re.IGNORECASE)


def require(asked: dict[str, Any]) -> type[peft.PeftConfig]:
    """The class of PEFT's config for the section `peft`. Raises ConfigError for a type or a setting that PEFT has not, with the nearest."""
    name = peft_types.type_of(asked.get("type"))
    config = TYPES[name]
    settings = _settings_of(config)
    for setting in asked.keys() - {"type"}:
        if setting in DECIDED:
            raise ConfigError(f"{setting} is decided by the run", where=f"peft.{setting}", next_step="take it out")
        if setting not in settings:
            near = difflib.get_close_matches(setting, settings, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{name} has: {', '.join(settings)}"
            raise ConfigError(f"{name} has no setting {setting}", where=f"peft.{setting}", next_step=hint)
    _check_values(name, asked)
    return config


def _check_values(name: str, asked: dict[str, Any]) -> None:
    """Raises ConfigError for what PEFT would let pass and fail at later, or not at all."""
    needed = NEEDED.get(name, {})
    if missing := [setting for setting in needed if asked.get(setting) in (None, [])]:
        example = ", ".join(f"{setting}: {value}" for setting, value in needed.items())
        raise ConfigError(f"{name} needs {' and '.join(missing)}", where=f"peft.{missing[0]}", next_step=f"peft: {{type: {name}, {example}}}")
    if name == "OFT" and asked.get("r") and asked.get("oft_block_size") != 0:
        raise ConfigError("OFT takes r or oft_block_size, which is 32 where it is not given", where="peft.r", next_step="oft_block_size: 0 beside r")
    for setting, value in asked.items():
        if setting.endswith("dropout") and not (_is_number(value) and 0 <= value < 1):
            raise ConfigError(f"{setting} is {value!r}", where=f"peft.{setting}", next_step="a share: 0 or more, and below 1")
        if setting.endswith("_pattern") and isinstance(value, dict):
            for pattern in value:
                _check_expression(pattern, f"peft.{setting}")
    if name == "TRAINABLE_TOKENS" and not _are_ids(asked["token_indices"]):
        problem = f"token_indices is {asked['token_indices']!r}"
        raise ConfigError(problem, where="peft.token_indices", next_step="ids of tokens, whole numbers from 0: [0, 1]")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in value)


def _check_expression(pattern: str, where: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression ({error})", where=where, next_step="a name, such as q_proj") from error


def _settings_of(config: type[peft.PeftConfig]) -> list[str]:
    return [field.name for field in dataclasses.fields(config) if field.name not in DECIDED]


def known_types() -> list[str]:
    """The types that `method: peft` runs."""
    return sorted(TYPES.keys() - peft_types.ELSEWHERE.keys())


def add(model: Any, asked: dict[str, Any], *, seed: int = 0) -> peft.PeftModel:
    """The model with a fresh adapter of PEFT's type `asked["type"]`; the rest of `asked` are settings of that type's config.

    Without target_modules every linear layer gets one (of LN_TUNING every norm). Only the adapter is trained; the same seed gives the same.
    Raises ConfigError for what PEFT refuses.
    """
    config_class = require(asked)
    settings = {name: value for name, value in asked.items() if name != "type"}
    name = next(name for name, known in TYPES.items() if known is config_class)
    if settings.get("target_modules", targets.ALL) == targets.ALL and name in TARGETS:
        settings = {key: value for key, value in settings.items() if key != "target_modules"} | TARGETS[name](model)
    elif name not in TARGETS and "target_modules" in _settings_of(config_class):
        settings["target_modules"] = targets.resolve(model, settings.get("target_modules", targets.ALL), where="peft.target_modules")
    _check_places(model, settings)
    adapted = _add(model, lambda: config_class(task_type=peft.TaskType.CAUSAL_LM, **settings), seed, f"peft: {name}")
    _check_patterns(adapted, settings)
    return adapted


def _check_places(model: Any, settings: dict[str, Any]) -> None:
    """Raises ConfigError for modules and tokens that the model has not: PEFT would pass over the modules."""
    names = [name for name, _ in model.named_modules()]
    saved = settings.get("modules_to_save") or []
    if unknown := [wanted for wanted in ([saved] if isinstance(saved, str) else saved) if not _is_there(wanted, names)]:
        tables = ", ".join(vocabulary.table_names(model))
        raise ConfigError(f"this model has no module {unknown[0]}", where="peft.modules_to_save", next_step=f"for example some of: {tables}")
    rows, tokens = len(model.get_input_embeddings().weight), settings.get("token_indices") or [0]
    if max(tokens) >= rows:
        problem = f"token {max(tokens)} is not there: the embedding has {rows} rows"
        raise ConfigError(problem, where="peft.token_indices", next_step=f"ids from 0 to {rows - 1}")


def _check_patterns(adapted: Any, settings: dict[str, Any]) -> None:
    """Raises ConfigError for a pattern that no adapted layer's name ends with: PEFT would pass over it."""
    names = [name for name, module in adapted.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)]
    for setting, patterns in settings.items():
        for pattern in patterns if setting.endswith("_pattern") and isinstance(patterns, dict) else ():
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
                raise ConfigError(f"{pattern!r} matches no adapted layer", where=f"peft.{setting}", next_step=f"adapted are: {known}")


def add_ia3(model: Any, settings: Ia3Settings, *, seed: int = 0) -> peft.PeftModel:
    """The model with factors at one beside its keys, values and MLPs, which change nothing yet; only they are trained.

    Raises ConfigError for names that the model has not.
    """
    auto = _of_ia3(model)
    layers, inner = auto["target_modules"], settings.feedforward_modules
    if settings.target_modules != "auto":
        layers = targets.resolve(model, settings.target_modules, where="ia3.target_modules")
    if inner == "auto":
        inner = [name for name in layers if name in auto["feedforward_modules"]]
    else:
        inner = targets.resolve(model, inner, where="ia3.feedforward_modules")
    if outside := [name for name in inner if name not in layers]:
        raise ConfigError(
            f"{', '.join(outside)} is not among ia3.target_modules",
            where="ia3.feedforward_modules",
            next_step=f"ia3.target_modules: [{', '.join([*layers, *outside])}]",
        )
    config = peft.IA3Config(task_type=peft.TaskType.CAUSAL_LM, target_modules=layers, feedforward_modules=inner)
    return _add(model, lambda: config, seed, "ia3")


def _add(model: Any, make: Callable[[], peft.PeftConfig], seed: int, where: str) -> peft.PeftModel:
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return with_fp32_tables(peft.get_peft_model(model, make()))
    except ImportError as error:
        raise ConfigError(str(error), where=where, next_step="install it, or choose another type") from error
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError, AssertionError) as error:
        said = str(error).strip().splitlines()
        raise ConfigError(f"PEFT refuses it: {said[0] if said else type(error).__name__}", where=where, next_step="mend its settings") from error


def _is_there(target: str, names: Sequence[str]) -> bool:
    return any(f".{name}".endswith(f".{target}") for name in names)


def _of_ia3(model: Any) -> dict[str, list[str]]:
    """Keys, values and the MLP's last layer: as PEFT has them for this kind of model, else as they are found in a block."""
    kind, linear = model.config.get_text_config().model_type, targets.linear_layers(model)
    known = list(TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind, []))
    if known and all(_is_there(name, linear) for name in known):
        return {"target_modules": known, "feedforward_modules": list(TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind])}
    usable = targets.resolve(model, targets.ALL)
    try:
        block = known_blocks(model, "ia3.target_modules: auto")[0]
        attention, mlp = sublayers(block, "the first block")
    except ModelError as error:
        raise ConfigError(
            f"keys, values and MLP are not found ({error.problem})", where="ia3.target_modules", next_step=f"name them: {', '.join(usable)}"
        ) from error
    projections, inner = _linear_children(block.get_submodule(attention), usable), _linear_children(block.get_submodule(mlp), usable)
    chosen = [name for name in projections if KEYS_AND_VALUES.fullmatch(name)] or projections
    return {"target_modules": [*chosen, *inner[-1:]], "feedforward_modules": inner[-1:]}


def _linear_children(part: torch.nn.Module, usable: Sequence[str]) -> list[str]:
    short = dict.fromkeys(name.rpartition(".")[2] for name, _ in part.named_modules())
    return [name for name in short if name in usable]


def _norms(model: Any) -> dict[str, Any]:
    """The short names of the layers that are a vector and whose class is called a norm."""
    norms = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower() and hasattr(module, "weight")]
    return {"target_modules": sorted({name.rpartition(".")[2] for name in norms})}


# What a type gets where no layers are named; {} leaves it to PEFT, and a type that is not here gets every linear layer.
TARGETS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "IA3": _of_ia3,
    "LN_TUNING": _norms,
    "ADAPTION_PROMPT": lambda model: {},
    "TRAINABLE_TOKENS": lambda model: {},
}
