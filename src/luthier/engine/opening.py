"""From settings or a run folder to an engine that is ready to train or to answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from luthier.config.load import Config, load_config
from luthier.config.settings import Settings
from luthier.engine.engine import Engine
from luthier.engine.probe import best_device
from luthier.errors import ConfigError, RunError
from luthier.models import adapters, find, load, run_tokenizer, vocabulary
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder, is_run, open_run


def tokenizer_of(config: Config, folder: Path, reporter: Reporter) -> Any:
    """The tokenizer that a run of `config` trains with, checked against the model in `folder`; with init_from, that of the earlier run."""
    earlier = earlier_run(config).trained if config.settings.init_from else None
    return run_tokenizer.open_tokenizer(config, folder, reporter.say, earlier)


def start(config: Config, settings: Settings, folder: Path, tokenizer: Any) -> Engine:
    """The model of a run that begins: the base with a new adapter, or with the adapter of `init_from`; with method: full the base or
    the model of `init_from`, all of it to be trained. All settings are resolved."""
    if settings.method == "full":
        return _start_full(config, settings, folder, tokenizer)
    model = load.load_model(folder, settings.training.precision, device_of(settings))  # type: ignore[arg-type]
    own = settings.tokenizer.path is None and not settings.tokenizer.add_special_tokens and not settings.init_from
    change = vocabulary.fit_embeddings(model, tokenizer if own else load.load_tokenizer(folder), tokenizer)
    if settings.init_from:
        model = adapters.load_adapter(model, earlier_run(config).adapter, trainable=True)
    else:
        trained = vocabulary.trained_ids(tokenizer, settings.tokenizer.add_special_tokens, change)
        model = adapters.add_lora(model, **settings.lora.model_dump(), seed=settings.seed, trained_tokens=trained)
    return _engine(model, tokenizer, settings, trains=True)


def _start_full(config: Config, settings: Settings, folder: Path, tokenizer: Any) -> Engine:
    source = earlier_run(config).model if settings.init_from else folder
    model = load.load_model(source, settings.training.precision, device_of(settings))  # type: ignore[arg-type]
    vocabulary.fit_embeddings(model, load.load_tokenizer(source), tokenizer)
    return _engine(model.requires_grad_(True), tokenizer, settings, trains=True)


def open_trained(run: RunFolder, reporter: Reporter, precision: str | None = None, adapter: Path | None = None) -> Engine:
    """The trained model of a run: its base and its adapter (or the one in the folder `adapter`), or the model that it trained whole.

    In the number format it was trained in, unless told otherwise.
    """
    config = load_config(run.config)
    if not run.trained.is_dir():
        what = "model" if config.settings.method == "full" else "adapter"
        raise RunError(f"has no {what}: the run has not ended", where=str(run.path), next_step=f"luthier train --resume {run.path}")
    precision = precision or str(config.settings.training.precision)
    if run.model.is_dir():
        whole = load.load_model(run.model, precision, device_of(config.settings))  # type: ignore[arg-type]
        return _engine(whole.requires_grad_(False), load.load_tokenizer(run.model), config.settings)
    folder = find.find(config.settings.model, reporter, config.file.parent)
    model = load.load_model(folder, precision, device_of(config.settings))  # type: ignore[arg-type]
    tokenizer = _trained_tokenizer(run, folder, config)
    vocabulary.fit_embeddings(model, load.load_tokenizer(folder), tokenizer)
    model = adapters.load_adapter(model, adapter or run.adapter, trainable=False)
    return _engine(model, tokenizer, config.settings)


def open_model(name: str, reporter: Reporter, precision: str = "bf16", device: str = "auto") -> Engine:
    """A model by itself, by its catalog name, hub id or folder."""
    folder = find.find(name, reporter)
    model = load.load_model(folder, precision, best_device() if device == "auto" else device)  # type: ignore[arg-type]
    return Engine(model.requires_grad_(False), load.load_tokenizer(folder))


def _trained_tokenizer(run: RunFolder, folder: Path, config: Config) -> Any:
    """The tokenizer and the chat template that the run was trained with; for a run that keeps none, the base's."""
    if (run.adapter / "tokenizer_config.json").is_file():
        return load.load_tokenizer(run.adapter)
    return load.load_tokenizer(folder, config.settings.template, config.file.parent)


@contextmanager
def as_base(engine: Engine, run: RunFolder) -> Iterator[Engine]:
    """The base of a run that `engine` holds: the same engine with its adapter switched off, without loading anything again; where
    every weight was trained, the base loaded beside it, with the tokenizer of the run."""
    if engine.adapted:
        with engine.model.disable_adapter():
            yield engine
        return
    yield open_base(run, engine.tokenizer)


def open_base(run: RunFolder, tokenizer: Any) -> Engine:
    """The model that a run began with, by itself, answering through the run's tokenizer."""
    config = load_config(run.config)
    folder = find.find(config.settings.model, Silent(), config.file.parent)
    model = load.load_model(folder, config.settings.training.precision, device_of(config.settings))  # type: ignore[arg-type]
    vocabulary.fit_embeddings(model, load.load_tokenizer(folder), tokenizer)
    return _engine(model.requires_grad_(False), tokenizer, config.settings)


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


def device_of(settings: Settings) -> str:
    """The device that the settings ask for. Raises ConfigError for one that is not there."""
    if settings.device == "auto":
        return best_device()
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[settings.device]
    if not there:
        raise ConfigError(f"{settings.device} is not on this machine, or this torch cannot see it", where="device", next_step="luthier doctor")
    return settings.device


def _engine(model: Any, tokenizer: Any, settings: Settings, *, trains: bool = False) -> Engine:
    training = settings.training
    return Engine(
        model,
        tokenizer,
        share_prefixes=training.share_prefixes,
        micro_batch_tokens=training.micro_batch_tokens,
        adam={"betas": (training.adam_beta1, training.adam_beta2), "eps": training.adam_epsilon, "weight_decay": training.weight_decay},
        max_grad_norm=training.max_grad_norm,
        optim=training.optim,
        gradient_checkpointing=training.gradient_checkpointing,  # type: ignore[arg-type]  # resolved
        attn_implementation=training.attn_implementation if trains else "auto",
        compile=trains and training.compile == "on",
    )
