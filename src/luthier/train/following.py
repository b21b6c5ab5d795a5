"""What the ranks do that do not lead: each opens the same engine, and follows the leader's orders until that ends.

An order names what the leader does, with the rows themselves. Everything else of a run (rows, measurements, checkpoints, the log) is the
leader's alone.
"""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from luthier.config.load import load_config
from luthier.config.settings import Settings
from luthier.engine import Engine, determinism, fp8, opening, orders, ranks, sharding, tensor, update
from luthier.errors import ConfigError
from luthier.models import find
from luthier.reporting import Silent
from luthier.run_folder import RunFolder
from luthier.stopping import Stop, stopping_on_signals
from luthier.train import checkpoint
from luthier.train.objectives import Update, Weights


def lead(run: RunFolder, settings: Settings) -> None:
    """Let the others open the engine of `run` too. Called before the leader opens its own: sharded weights are cut by all at once."""
    if opening.sharded(settings):
        sharding.require(settings)
    if (there := ranks.local_world()) % settings.sequence_parallel:
        problem = f"{there} ranks of a host cannot be cut into teams of sequence_parallel: {settings.sequence_parallel}"
        raise ConfigError(problem, where="sequence_parallel", next_step=f"devices: {settings.sequence_parallel}, or sequence_parallel: 1")
    at_once = settings.lora.init_lora_weights == "default"
    ranks.say({"do": "open", "run": str(run.path.resolve()), "wrapping": settings.wrapping, "at_once": at_once})


def level(engine: Engine) -> None:
    """Let all ranks begin at the leader's trained weights, and run as it does: after its engine was opened and checked."""
    if engine.crew is None:
        return
    engine.crew.require_fast(engine)
    engine.crew.order("level", plain=engine.plain_reason, micro_batch_tokens=engine.micro_batch_tokens)
    engine.crew.form_team()
    _take_weights(engine)


def follow() -> RunFolder | None:
    """Follow the leader until it ends. Gives the run that was trained, where one was begun."""
    engine: Any = None
    run, wrapping = None, ""
    with stopping_on_signals() as stop:
        while (order := ranks.hear())["do"] != "end":
            if order["do"] == "open":
                run, wrapping = RunFolder(Path(order["run"])), order["wrapping"]
            if run and engine is None and order.get("at_once", True):
                engine = _open(run, wrapping, stop)
            if order["do"] != "open":
                ORDERS[order["do"]](engine, order)
    return run


def _open(run: RunFolder, wrapping: str, stop: Stop) -> Engine:
    config = load_config(run.config)
    settings = config.settings.model_copy(update={"wrapping": wrapping})
    device = opening.device_of(settings)
    determinism.enter(settings.training.deterministic, device)
    folder = find.find(settings.model, Silent(), config.file.parent)
    # What an adapter begins at beside zero is the leader's to find; the next order comes when it lies in the run folder.
    engine = opening.start(config, settings, folder, opening.tokenizer_of(config, folder, Silent()), kept=run.start)
    assert engine.crew is not None
    engine.crew.stop = stop
    run.say(f"rank {ranks.rank()} of {ranks.world()}: ready on {device} (pid {os.getpid()} on {platform.node()})")
    return engine


def _take_weights(engine: Engine) -> None:
    if engine.crew and engine.crew.sharding is None:
        ranks.take_over([weight.detach() for weight in engine.masters.weights.values()])
        engine.masters.copy_back()


def _level(engine: Engine, order: dict[str, Any]) -> None:
    if order["plain"] and not engine.plain_reason:
        engine.go_plain(order["plain"])
    engine.micro_batch_tokens = min(engine.micro_batch_tokens, order["micro_batch_tokens"])
    if engine.crew:
        engine.crew.form_team()
    _take_weights(engine)


def _learn(engine: Engine, order: dict[str, Any]) -> None:
    assert engine.crew is not None
    engine.crew.draw = order["draw"]
    engine.forward_backward(orders.examples_of(order["rows"]), row_losses=order["row_losses"])


def _judge(engine: Engine, order: dict[str, Any]) -> None:
    assert engine.crew is not None
    engine.crew.draw = order["draw"]
    asked = Update(orders.judged_of(order["rows"]), order["objective"], Weights(**order["weights"]), order["drift"])
    engine.forward_backward_judged(asked.examples, asked.together, asked.loss)


@torch.no_grad()
def _lend(engine: Engine, order: dict[str, Any]) -> None:
    update.trace(engine.model)


ORDERS: dict[str, Callable[[Engine, dict[str, Any]], object]] = {
    # order             what the others do
    "level":            _level,
    "forward_backward": _learn,
    "judge":            _judge,
    "step":             lambda engine, order: engine.optimizer_step(order["learning_rate"]),
    "forget":           lambda engine, order: engine.forget_gradients(),
    "fp8":              lambda engine, order: fp8.install(engine.model),
    "lend":             _lend,
    "join":             lambda engine, order: tensor.join(engine.model, order["tokens"], bare=order["bare"]),
    "gather":           lambda engine, order: sharding.give_parts(engine.model, trained=order["trained"]),
    "load":             lambda engine, order: checkpoint.load(Path(order["path"]), engine),
    "write":            lambda engine, order: checkpoint.write_part(engine, Path(order["folder"]), order["step"]),
}  # fmt: skip
