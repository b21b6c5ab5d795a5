"""Serve a run, a model or a folder, with adapters by name, through an API that OpenAI's clients speak."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.load import load_config
from luthier.config.methods import METHODS
from luthier.engine import Engine, opening, row_adapters
from luthier.engine.by_row import RowAdapter
from luthier.errors import CallError, MachineError, RunError
from luthier.models import adapters
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder, is_run, open_run
from luthier.serve import contract, keys
from luthier.serve.doors import Doors, Limits
from luthier.serve.registry import Served, check_name

LOOPBACK = ("127.0.0.1", "localhost", "::1")
INSTALL = 'pip install "luthier[serve]"'


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a server is asked for."""

    models: Sequence[str]  # RUN, MODEL or FOLDER; the first decides the base, the others are adapters; NAME=... gives a name
    adapters: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 16
    queue: int = 256
    most_loaded: int = 32
    keys: Path | None = None
    allowed_hosts: Sequence[str] = ()
    precision: str = "auto"
    answer_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Opened:
    """The base that is served, and the adapters that were named."""

    engine: Engine
    base: Served
    adapters: list[tuple[Served, RowAdapter]]


def serve(wanted: Wanted, reporter: Reporter | None = None) -> None:
    """Serve until a signal comes; then what is being answered is answered, and the call returns.

    Raises CallError, RunError or ModelError for what cannot be served, before anything listens.
    """
    reporter = reporter or Silent()
    try:
        import uvicorn

        from luthier.serve import http  # noqa: F401
    except ImportError as error:
        raise CallError(f"needs {error.name}", where="luthier serve", next_step=INSTALL) from error
    allowed = keys.read(wanted.keys, os.environ.get(keys.ENVIRONMENT))
    if wanted.host not in LOOPBACK and not allowed.keys:
        raise CallError(
            f"would answer everyone who reaches {wanted.host}",
            where="luthier serve --host",
            next_step="--keys FILE (luthier serve --new-key NAME --keys FILE makes one), or leave --host out",
        )
    listening = _listen(wanted.host, wanted.port)
    try:
        opened = _open(wanted, reporter)
        app: Any = application(wanted, opened, allowed)
    except BaseException:
        listening.close()
        raise
    port = listening.getsockname()[1]
    _say(wanted, opened, port, bool(allowed.keys), reporter)
    _log_to_standard_error()
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        limit_concurrency=1024,
        h11_max_incomplete_event_size=16 << 10,
        timeout_graceful_shutdown=30,
        lifespan="on",
        http="h11",
    )
    # uvicorn sends itself the signal again that ended it; a signal is how a server ends, and no fault.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    left = app.app.state.server.answering.in_flight
    reporter.say(f"ended with {left} requests unanswered" if left else "ended; every request was answered")


def application(wanted: Wanted, opened: Opened, allowed: keys.Keys) -> Doors:
    """The server as an ASGI application; nothing listens yet."""
    import torch

    from luthier.serve import bending, http
    from luthier.serve.answering import Answering
    from luthier.serve.counters import Counters
    from luthier.serve.registry import Registry

    engine = opened.engine
    words = len(engine.head.weight)
    named = [served for served, _ in opened.adapters]
    registry = Registry(opened.base, named, wanted.adapters, lambda folder: row_adapters.load(engine.model, folder), wanted.most_loaded)
    for served, adapter in opened.adapters:
        registry.keep(served.name, adapter)
    server = http.Server(
        answering=Answering(engine.model, wanted.slots, wanted.queue, torch.get_num_threads(), engine.context),
        tokenizer=engine.tokenizer,
        stop_ids=frozenset(engine.stop_ids),
        context=engine.context,
        words=words,
        registry=registry,
        counters=Counters(),
        grammars=bending.Grammars(engine.tokenizer, words, engine.stop_ids),
        limits=Limits(answer_s=wanted.answer_s),
    )
    own_names = {*wanted.allowed_hosts, *(LOOPBACK if wanted.host in LOOPBACK else ()), *(("[::1]",) if wanted.host in LOOPBACK else ())}
    return http.application(server, allowed, frozenset(name.lower() for name in own_names))


def _open(wanted: Wanted, reporter: Reporter) -> Opened:
    """The base that everything stands on, and the adapters that were named. Each run's contract is checked."""
    named = [_named(one) for one in wanted.models]
    first_name, first = named[0]
    run = _run_at(first)
    precision = (
        wanted.precision if wanted.precision != "auto" else ("bf16" if run is None else str(load_config(run.config).settings.training.precision))
    )
    if run is None:
        engine = opening.open_model(first, reporter, precision)
        base = Served(first_name or _plain_name(first), system=None)
        others = named[1:]
    elif run.model.is_dir():
        engine = opening.open_trained(run, reporter, precision)
        base = Served(first_name or _plain_name(run.name), system=_checked(run, engine)["system"])
        others = named[1:]
    else:
        engine = opening.open_base_of(run, reporter, precision)
        base = Served(_plain_name(str(load_config(run.config).settings.model)))
        others = named
    if engine.plain_reason:
        problem = f"the model answers one request at a time only ({engine.plain_reason})"
        raise RunError(problem, where=first, next_step="luthier chat speaks to it; a server of another model answers many at once")
    served = [_adapter(name, place, engine, reporter) for name, place in others]
    return Opened(engine, base, served)


def _named(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not equals:
        return "", text
    check_name(name)
    return name, place


def _plain_name(text: str) -> str:
    """A name that can stand in a request, from a path or a hub id."""
    name = Path(text).name or text
    check_name(name)
    return name


def _run_at(text: str) -> RunFolder | None:
    """The run that `text` names ("last" too), or None for a model or an adapter's folder."""
    path = Path(text)
    return open_run(text) if text == "last" or (path.is_dir() and is_run(text)) else None


def _adapter(name: str, place: str, engine: Engine, reporter: Reporter) -> tuple[Served, RowAdapter]:
    run = _run_at(place)
    folder = Path(place) if run is None else run.adapter
    if not (folder / adapters.CONFIG).is_file():
        raise CallError("is no run with an adapter and no adapter's folder", where=place, next_step="name runs or folders with adapter_config.json")
    if run is None:
        return Served(name or _plain_name(place), folder), row_adapters.load(engine.model, folder)
    settings = load_config(run.config).settings
    if not METHODS[settings.method].per_request:
        problem = f"method: {settings.method} cannot be chosen for each request"
        raise RunError(problem, where=str(run.path), next_step=row_adapters.MERGE)
    adapter = row_adapters.load(engine.model, folder)
    promised = _checked(run, engine)
    reporter.say(f"{run.name}: its contract holds (template, stop tokens, golden prompts)")
    return Served(name or _plain_name(run.name), folder, promised["system"], int(run.path.stat().st_mtime)), adapter


def _checked(run: RunFolder, engine: Engine) -> dict[str, Any]:
    return contract.read_checked(run, engine.tokenizer, engine.stop_ids)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any free one. Before the model is loaded, so that a port in use is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise MachineError(f"cannot listen there ({error.strerror})", where=f"{host}:{port}", next_step="--port 0 takes a free one") from error
    return listening


def _say(wanted: Wanted, opened: Opened, port: int, with_keys: bool, reporter: Reporter) -> None:
    host = f"[{wanted.host}]" if ":" in wanted.host else wanted.host
    for one in [opened.base, *(served for served, _ in opened.adapters)]:
        system = f", with its system message where a request has none: {one.system}" if one.system else ""
        reporter.say(f"model {one.name}{' (the base)' if one is opened.base else ''}{system}")
    reporter.say(f"keys: {'asked for' if with_keys else 'none, as only this machine can ask'}")
    reporter.say(f"serving on http://{host}:{port}/v1 (Ctrl-C ends it after what is being answered)")


def _log_to_standard_error() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("luthier.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("luthier.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
