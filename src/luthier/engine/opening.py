"""From settings or a run folder to an engine that is ready to train or to answer."""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from luthier import files
from luthier.config.load import Config, load_config
from luthier.config.methods import METHODS
from luthier.config.section import bytes_of
from luthier.config.settings import Settings
from luthier.engine import groups, heap, ranks, sharding, tensor, update
from luthier.engine.crew import Crew
from luthier.engine.engine import Engine
from luthier.engine.probe import best_device
from luthier.engine.sharding import Sharding
from luthier.errors import ConfigError, RunError
from luthier.models import adapters, find, initial, load, lora, methods, placement, quantized, run_tokenizer, virtual, vocabulary, weights
from luthier.models.earlier import earlier_adapter as earlier_adapter
from luthier.models.earlier import earlier_run as earlier_run
from luthier.models.earlier import earlier_trained as earlier_trained
from luthier.plan.machine import memory_bytes
from luthier.records import TokenizedExample
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder, is_run

# So many times the model's width in tokens, and a row's attention costs as much as its products: 12 D^2 against 2 T D a token and layer.
QUADRATIC_WIDTHS = 6


def tokenizer_of(config: Config, folder: Path, reporter: Reporter) -> Any:
    """The tokenizer that a run of `config` trains with, checked against the model in `folder`; with init_from, that of the earlier run."""
    earlier = earlier_trained(config) if config.settings.init_from else None
    return run_tokenizer.open_tokenizer(config, folder, reporter.say, earlier)


def start(
    config: Config, settings: Settings, folder: Path, tokenizer: Any, examples: Iterable[TokenizedExample] = (), kept: Path | None = None
) -> Engine:
    """The model of a run that begins: the base with a new adapter, or with the adapter of `init_from`; with method: full the base or
    the model of `init_from`, all of it to be trained. All settings are resolved.

    `examples` are training rows, which some adapters start from. In the folder `kept` lies what an adapter started at, where that is a
    part of the weights: it is written there, or read from there where the run goes on.
    """
    if settings.method == "full":
        return _start_full(config, settings, folder, tokenizer)
    model = _base(folder, settings, device="cpu" if sharded(settings) else None)
    own = settings.tokenizer.path is None and not settings.tokenizer.add_special_tokens and not settings.init_from
    change = vocabulary.fit_embeddings(model, tokenizer if own else load.load_tokenizer(folder), tokenizer)
    if settings.init_from:
        model = adapters.load_adapter(model, earlier_trained(config), trainable=True)
    else:
        trained = vocabulary.trained_ids(tokenizer, settings.tokenizer.add_special_tokens, change)
        goes_on = kept is not None and kept.is_dir()
        model = methods.add(model, _from_zero(settings) if goes_on else settings, trained, tokenizer, examples)
        if kept is not None:
            (initial.take if goes_on else initial.keep)(model, kept)
    return _engine(model, tokenizer, settings, trains=True)


def _from_zero(settings: Settings) -> Settings:
    """The same with adapters that start at zero."""
    return settings.model_copy(update={"lora": settings.lora.model_copy(update={"init_lora_weights": "default"})})


def _start_full(config: Config, settings: Settings, folder: Path, tokenizer: Any) -> Engine:
    if settings.init_from:
        require_same_base(earlier_run(config), folder)
    source = earlier_trained(config) if settings.init_from else folder
    device = "cpu" if sharded(settings) else device_of(settings)
    model = load.load_model(source, settings.training.precision, device)  # type: ignore[arg-type]
    vocabulary.fit_embeddings(model, load.load_tokenizer(source), tokenizer)
    return _engine(methods.add(model, settings), tokenizer, settings, trains=True)


def open_trained(run: RunFolder, reporter: Reporter, precision: str | None = None, adapter: Path | None = None, *, placed: bool = True) -> Engine:
    """The trained model of a run: its base and its adapter (or the one in the folder `adapter`), or the model that it trained whole.

    In the number format it was trained in, unless told otherwise; where the run says that its blocks lie, or all on the device (not `placed`).
    """
    config = load_config(run.config)
    if not placed:
        config = dataclasses.replace(config, settings=config.settings.model_copy(update={"device_map": None}))
    if not run.trained.is_dir():
        what = "model" if config.settings.method == "full" else "adapter"
        raise RunError(f"has no {what}: the run has not ended", where=str(run.path), next_step=f"luthier train --resume {run.path}")
    precision = precision or str(config.settings.training.precision)
    if run.model.is_dir():
        whole = load.load_model(run.model, precision, device_of(config.settings))  # type: ignore[arg-type]
        return _engine(whole.requires_grad_(False), load.load_tokenizer(run.model), config.settings)
    folder = find.find(config.settings.model, reporter, config.file.parent)
    return _with_adapter(_base(folder, config.settings, precision), folder, run, config, adapter or run.adapter)


def open_for_merging(run: RunFolder, reporter: Reporter, onto: str = "trained") -> Engine:
    """The trained model of a run in fp32 on a base that is not quantized: the one that its adapter was trained beside, or
    (onto: original) the one that was quantized for it."""
    config = load_config(run.config)
    if config.settings.method != "qlora":
        return open_trained(run, reporter, "fp32", placed=False)
    folder = find.find(config.settings.model, reporter, config.file.parent)
    if onto == "original":
        base = load.load_model(folder, "fp32", device_of(config.settings))
    else:
        base = quantized.unquantized(_base(folder, config.settings, "fp32"))
    return _with_adapter(base, folder, run, config, run.adapter)


def _with_adapter(model: Any, folder: Path, run: RunFolder, config: Config, adapter: Path) -> Engine:
    tokenizer = _trained_tokenizer(run, folder, config)
    vocabulary.fit_embeddings(model, load.load_tokenizer(folder), tokenizer)
    return _engine(adapters.load_adapter(model, adapter, trainable=False), tokenizer, config.settings)


def open_model(name: str, reporter: Reporter, precision: str = "bf16", device: str = "auto") -> Engine:
    """A model by itself, by its catalog name, hub id or folder; or an adapter's folder, with the run that it lies in or the base that it names."""
    adapter = find.folder_of(name)
    if adapter is None or not find.holds_adapter(adapter):
        return Engine(*_by_itself(find.find(name, reporter), precision, device))
    if is_run(str(adapter.parent)):
        return open_trained(RunFolder(adapter.parent), reporter, adapter=adapter)
    model, tokenizer = _beside(adapter, reporter, precision, device)
    return Engine(adapters.load_adapter(model, adapter, trainable=False), tokenizer)


def open_beside(adapter: Path, reporter: Reporter, precision: str | None = None) -> Engine:
    """The base of an adapter's folder (that of the run it lies in, or the one it names) by itself, with the tokenizer of the adapter.

    In the number format of that run, or bf16, unless told otherwise.
    """
    if is_run(str(adapter.parent)):
        return open_base_of(RunFolder(adapter.parent), reporter, precision)
    return Engine(*_beside(adapter, reporter, precision or "bf16", "auto"))


def _by_itself(folder: Path, precision: str, device: str) -> tuple[Any, Any]:
    model = load.load_model(folder, precision, best_device() if device == "auto" else device)  # type: ignore[arg-type]
    return model.requires_grad_(False), load.load_tokenizer(folder)


def _beside(adapter: Path, reporter: Reporter, precision: str, device: str) -> tuple[Any, Any]:
    reporter.say(f"{adapter}: an adapter of {adapters.base_name(adapter)}")
    model, own = _by_itself(adapters.base_folder(adapter, reporter), precision, device)
    tokenizer = load.load_tokenizer(adapter) if (adapter / "tokenizer_config.json").is_file() else own
    vocabulary.fit_embeddings(model, own, tokenizer)
    return model.requires_grad_(False), tokenizer


def _base(folder: Path, settings: Settings, precision: str | None = None, device: str | None = None) -> Any:
    """The model that a run begins with, quantized where its method does that, in the run's number format or in another."""
    precision = precision or str(settings.training.precision)
    where = device or device_of(settings)
    if settings.device_map in (None, "cpu"):
        asked = quantized.quantization_of(settings, precision)
        # Ranks that share the weights load them in main memory, and cut them from there.
        return quantized.load_model(folder, precision, where, asked and dataclasses.replace(asked, shared=device is not None))
    there = bytes_of(settings.max_memory) if settings.max_memory else memory_bytes()
    places = placement.place_of_parts(folder, settings.device_map, load.DTYPES[precision], where, there)
    return load.load_model(folder, precision, where, places=places)  # type: ignore[arg-type]


def sharded(settings: Settings) -> bool:
    """Whether the ranks that train share the weights (wrapping, resolved)."""
    return ranks.world() > 1 and settings.wrapping in ("fsdp", "hsdp", "tp")


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


def open_base_of(run: RunFolder, reporter: Reporter, precision: str | None = None) -> Engine:
    """The model that a run began with, by itself, with the tokenizer that the run was trained with."""
    config = load_config(run.config)
    return open_base(run, _trained_tokenizer(run, find.find(config.settings.model, reporter, config.file.parent), config), precision)


def open_base(run: RunFolder, tokenizer: Any, precision: str | None = None) -> Engine:
    """The model that a run began with, by itself, answering through the run's tokenizer."""
    config = load_config(run.config)
    folder = find.find(config.settings.model, Silent(), config.file.parent)
    require_same_base(run, folder)
    model = _base(folder, config.settings, precision)
    vocabulary.fit_embeddings(model, load.load_tokenizer(folder), tokenizer)
    return _engine(model.requires_grad_(False), tokenizer, config.settings)


def require_same_base(run: RunFolder, folder: Path) -> None:
    """Raises RunError where the model in `folder` is not the one that the run began with."""
    environment = files.read_json(run.environment) if run.environment.is_file() else {}
    stored, found = environment.get("base_sha256"), weights.fingerprint(folder)
    if stored and stored != found:
        raise RunError(
            f"{run.name} began with {environment['model_folder']} (hash {stored[:12]}), and the model in {folder} is another (hash {found[:12]})",
            where=str(run.path),
            next_step="set model: to the one that the run began with, or put its files back",
        )


def earlier_settings(config: Config) -> dict[str, Any]:
    """What the adapter that `init_from` names was made with, by section of the settings. Raises ConfigError for one of another method."""
    asked = config.settings
    run = None if earlier_adapter(config) else load_config(earlier_run(config).config).settings
    both_lora = "lora" in METHODS[asked.method].blocks and (run is None or "lora" in METHODS[run.method].blocks)
    if run is not None and run.method != asked.method and not both_lora:
        raise ConfigError(
            f"init_from: {asked.init_from} was trained with method: {run.method}, and method: {asked.method} goes on with another kind",
            where=config.given.get("init_from", str(config.file)),
            next_step=f"method: {run.method}, or take init_from out",
        )
    if not both_lora:
        kept_blocks = {block: getattr(run, block) for block in METHODS[asked.method].blocks}
        for settings in kept_blocks.values():
            virtual.check_goes_on(settings, str(earlier_trained(config)))
        return kept_blocks
    kept = lora.settings_of(earlier_trained(config))
    if asked.method == "dora" and not kept.use_dora:
        raise ConfigError(
            f"init_from: {asked.init_from} is a LoRA adapter without column lengths, and goes on as it is",
            where=config.given.get("method", str(config.file)),
            next_step="method: lora, or take init_from out",
        )
    if run is not None:
        # A run says which layers it asked for (all-linear), its adapter's file which these are.
        kept = kept.model_copy(update={"target_modules": run.lora.target_modules, "layers_to_transform": run.lora.layers_to_transform})
    # How fast B is trained is not the adapter's.
    return {"lora": kept.model_copy(update={"loraplus_lr_ratio": asked.lora.loraplus_lr_ratio})}


def earlier_own_settings(config: Config) -> dict[str, Any]:
    """What the run that `init_from` names was asked for under lora, where its adapter's file says another thing (a start that was saved as
    plain LoRA); {} where it names no run, or another method."""
    if "lora" not in METHODS[config.settings.method].blocks or earlier_adapter(config):
        return {}
    run = load_config(earlier_run(config).config).settings
    return {**dict(run.lora), "use_dora": run.lora.use_dora or run.method == "dora"}


def earlier_notes(config: Config, kept: dict[str, Any]) -> list[str]:
    """What is no longer as it was for the adapter of the run that `init_from` names, a line each; `kept` is what the adapter was made with."""
    if earlier_adapter(config):
        return []
    name, run = config.settings.init_from, load_config(earlier_run(config).config).settings
    notes = []
    if "lora" in kept and kept["lora"].r != run.lora.r:
        how, rank = run.lora.init_lora_weights, kept["lora"].r
        notes.append(f"init_from: {name} began at {how} and is plain LoRA now: the adapter has twice the rank ({rank}), and all of it is trained")
    was, now = quantized.base_of(run), quantized.base_of(config.settings)
    if was != now:
        notes.append(f"init_from: {name} was trained beside {was} and goes on beside {now}: the model does not begin quite where it ended")
    return notes


def device_of(settings: Settings) -> str:
    """The device that the settings ask for. Raises ConfigError for one that is not there."""
    if settings.device_map == "cpu":
        return "cpu"
    if settings.device == "auto":
        return best_device()
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[settings.device]
    if not there:
        raise ConfigError(f"{settings.device} is not on this machine, or this torch cannot see it", where="device", next_step="luthier doctor")
    return settings.device


def _engine(model: Any, tokenizer: Any, settings: Settings, *, trains: bool = False) -> Engine:
    training = settings.training
    shares = trains and sharded(settings)
    team = settings.sequence_parallel if trains else 1
    cut = _cut(model, settings) if shares else None
    in_step = shares or team > 1  # each pass is one of several ranks
    if trains and (settings.max_memory is not None or training.gradient_checkpointing != "off"):
        heap.give_back_at_once()
    engine = Engine(
        model,
        tokenizer,
        share_prefixes=training.share_prefixes and not in_step,
        side_by_side=training.side_by_side and settings.max_memory is None and settings.device_map is None and not in_step,  # a quarter more memory
        micro_batch_tokens=int(training.micro_batch_tokens),  # resolved
        adam={"betas": (training.adam_beta1, training.adam_beta2), "eps": training.adam_epsilon, "weight_decay": training.weight_decay},
        max_grad_norm=training.max_grad_norm,
        optim=training.optim,
        rates=_rates(settings),
        neftune_noise_alpha=training.neftune_noise_alpha if trains else 0.0,
        label_smoothing=training.label_smoothing_factor,
        gradient_checkpointing=training.gradient_checkpointing,  # type: ignore[arg-type]  # resolved
        attn_implementation=training.attn_implementation if trains else "auto",
        compile=trains and training.compile == "on",
        plain_reason="wrapping: tp cuts its layers as Transformers does" if cut and cut.same_rows else "",
    )
    if trains:
        engine.require_optimizer()
    if trains and ranks.world() > 1:
        engine.crew = Crew(QUADRATIC_WIDTHS * int(update.causal_model(model).config.get_text_config().hidden_size), cut, team)
    if cut:
        (tensor.follow_leader if cut.same_rows else sharding.lend_to_leader)(model, cut)
    if in_step:
        why = "sharded weights" if shares else f"sequence_parallel: {team}"
        engine.notes.append(f"{why}: rows share no beginnings, and micro-batches run one after the other")
    return engine


def _cut(model: Any, settings: Settings) -> Sharding:
    device = device_of(settings)
    if settings.wrapping == "tp":
        return tensor.cut(model, device)
    return sharding.shard(model, device, hosts=settings.wrapping == "hsdp", offload=settings.launch.cpu_offload is True)


def _rates(settings: Settings) -> dict[str, float]:
    """Factors on the rate, by regular expression of the weights' names; LoRA+ is one for every B."""
    ratio = settings.lora.loraplus_lr_ratio
    return settings.training.learning_rates | ({groups.LORA_B: ratio} if ratio else {})
