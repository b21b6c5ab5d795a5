"""What a run that goes on from an earlier one begins with (`init_from`): found and read without torch."""

from pathlib import Path

from pydantic import ValidationError

from luthier.config.adapters import LoraSettings
from luthier.config.load import Config
from luthier.config.methods import METHODS
from luthier.errors import ConfigError, ModelError, RunError
from luthier.models import weights
from luthier.run_folder import RunFolder, is_run, open_run

ADAPTER_CONFIG = "adapter_config.json"
# What PEFT takes where a file does not say it.
PEFTS_OWN = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}


def earlier_trained(config: Config) -> Path:
    """The folder of the adapter or the model that `init_from` names: what a run left, or an adapter that PEFT wrote."""
    return earlier_adapter(config) or earlier_run(config).trained


def earlier_adapter(config: Config) -> Path | None:
    """The folder that `init_from` names, where it holds an adapter itself and is no run."""
    folder = Path(config.beside(str(config.settings.init_from)))
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    if "lora" not in METHODS[config.settings.method].blocks:
        raise ConfigError(
            f"init_from: {folder} holds an adapter, and method: {config.settings.method} goes on from a run",
            where=config.given.get("init_from", str(config.file)),
            next_step="init_from: RUN, the run that trained it" + (f" ({folder.parent})" if is_run(str(folder.parent)) else ""),
        )
    return folder


def earlier_run(config: Config) -> RunFolder:
    """The run that `init_from` names."""
    name = config.settings.init_from or ""
    where = config.given.get("init_from", str(config.file))
    try:
        run = open_run(config.beside(name) if is_run(config.beside(name)) else name, Path(config.beside(config.settings.output_dir)))
    except RunError as error:
        raise ConfigError(f"init_from: {name} is not a run", where=where, next_step="luthier runs list") from error
    if not run.trained.is_dir():
        raise ConfigError(f"init_from: {name} has no adapter (it has not ended)", where=where, next_step=f"luthier train --resume {run.path}")
    if run.model.is_dir() and config.settings.method != "full":
        raise ConfigError(
            f"init_from: {name} trained a whole model, and method: {config.settings.method} goes on with an adapter",
            where=where,
            next_step=f"method: full, or model: {run.model} in place of init_from",
        )
    if config.settings.method == "full" and not run.model.is_dir():
        raise ConfigError(
            f"init_from: {name} trained an adapter, and method: full goes on with a whole model",
            where=where,
            next_step=f"luthier export {run.path} --to merged, then model: {run.path / 'merged'} in place of init_from",
        )
    return run


def settings_of(folder: Path) -> LoraSettings:
    """The settings of a LoRA adapter that PEFT or a run wrote into `folder`. Raises ModelError where it is none, or does what ours cannot."""
    config = weights.read_object(folder / ADAPTER_CONFIG, "name a run, or a folder that holds adapter_config.json")
    where = str(folder / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"holds an adapter of kind {config.get('peft_type')}", where=where, next_step="use a LoRA adapter, or init_from: a run")
    stored = PEFTS_OWN | {name: config[name] for name in LoraSettings.model_fields if config.get(name) is not None and name != "init_lora_weights"}
    if isinstance(stored.get("target_modules"), list):
        stored["target_modules"] = sorted(stored["target_modules"])  # PEFT writes them in any order
    if isinstance(stored.get("layers_to_transform"), int):
        stored["layers_to_transform"] = [stored["layers_to_transform"]]
    if other := [name for name in ("lora_bias", "layer_replication", "target_parameters", "alora_invocation_tokens") if config.get(name)]:
        raise ModelError(f"sets {other[0]}, which is not trained here", where=where, next_step="use an adapter without it")
    if "target_modules" not in stored:
        raise ModelError("names no target_modules", where=where, next_step="save the adapter again with PEFT, which writes them")
    try:
        return LoraSettings.model_validate(stored)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ModelError(f"{wrong['loc'][0]} is {wrong['input']!r}: {wrong['msg']}", where=where, next_step="use another adapter") from error
