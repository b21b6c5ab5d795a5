"""Serve a run, a model or a folder, with adapters by name, through an API that OpenAI's clients speak."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.load import load_config
from luthier.config.methods import METHODS
from luthier.engine import Engine, opening, row_adapters
from luthier.engine.by_row import RowAdapter
from luthier.errors import CallError, RunError
from luthier.models import adapters, find
from luthier.plan import machine
from luthier.rag.finding import open_finder
from luthier.rag.grounding import NOT_THERE, Grounder, Grounding, reading_of
from luthier.rag.index import open_index, read_facts
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder, is_run, open_run
from luthier.serve import contract, keys, listening
from luthier.serve.doors import Doors, Limits
from luthier.serve.passages import look_up_with
from luthier.serve.registry import Served, check_name

LEAST_ROOM_BYTES = 64 << 20
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
    kept_bytes: int | None = None  # for keys and values of all requests; None: half of what the model leaves
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    index: Path | None = None  # of documents that questions are answered from


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
        import uvicorn  # noqa: F401

        from luthier.serve import http  # noqa: F401
    except ImportError as error:
        raise CallError(f"needs {error.name}", where="luthier serve", next_step=INSTALL) from error
    if wanted.index is not None:
        read_facts(wanted.index)  # what is wrong with it is told before the model is loaded
    allowed, secured = listening.allowed_keys(wanted.host, wanted.keys), listening.tls(wanted.tls_certificate, wanted.tls_key)
    with listening.listen(wanted.host, wanted.port) as open_socket:
        opened = _open(wanted, reporter)
        app: Any = application(wanted, opened, allowed)
        port = open_socket.getsockname()[1]
        names = [opened.base, *(one for one, _ in opened.adapters)]
        lines = listening.announcement(names, wanted.host, port, bool(allowed.keys), secured)
        listening.log_to_standard_error()
        listening.answer(app, open_socket, secured, announced=lines, reporter=reporter)
    reporter.say(listening.farewell(app.app.state.server.answering.in_flight))


@contextmanager
def running(wanted: Wanted, reporter: Reporter | None = None) -> Iterator[tuple[str, str]]:
    """Serve on a free port of this machine for as long as the block runs. Gives the URL, and the name of what was named last."""
    opened = _open(wanted, reporter or Silent())
    with listening.in_background(application(wanted, opened, keys.Keys([]))) as url:
        yield url, [opened.base, *(one for one, _ in opened.adapters)][-1].name


def application(wanted: Wanted, opened: Opened, allowed: keys.Keys) -> Doors:
    """The server as an ASGI application; nothing listens yet."""
    import torch

    from luthier.serve import bending, http
    from luthier.serve.answering import Answering
    from luthier.serve.counters import Counters
    from luthier.serve.registry import Registry

    engine, kept_bytes = opened.engine, wanted.kept_bytes or room_bytes(opened.engine)
    words = len(engine.head.weight)
    named = [served for served, _ in opened.adapters]

    def load(folder: Path) -> RowAdapter:
        return row_adapters.load(engine.model, folder)

    registry = Registry(opened.base, named, wanted.adapters, load, wanted.most_loaded, lambda folder: _promised(folder, engine))
    for served, adapter in opened.adapters:
        registry.keep(served.name, adapter)
    server = http.Server(
        answering=Answering(engine.model, wanted.slots, wanted.queue, torch.get_num_threads(), engine.context, kept_bytes),
        tokenizer=engine.tokenizer,
        stop_ids=frozenset(engine.stop_ids),
        context=engine.context,
        words=words,
        registry=registry,
        counters=Counters(),
        grammars=bending.Grammars(engine.tokenizer, words, engine.stop_ids),
        limits=Limits(answer_s=wanted.answer_s),
        **(_documents(wanted.index, engine) if wanted.index else {}),
    )
    return http.application(server, allowed, listening.own_names(wanted.host, tuple(wanted.allowed_hosts)))


def _documents(index: Path, engine: Engine) -> dict[str, Any]:
    """What a server with documents has beside its model: a look-up, and the embedder of the index."""
    finder = open_finder(open_index(index))
    grounder = Grounder(finder, Grounding(), reading_of(engine.tokenizer), engine.context, logging.getLogger("luthier.serve").warning)
    return {"look_up": look_up_with(lambda left: grounder, NOT_THERE), "embed": finder.embedder, "embed_name": finder.embedder.name}


def room_bytes(engine: Engine) -> int:
    """Bytes for the keys and values of requests: half of what the weights leave of the device's memory, which the other half works in."""
    import torch

    total = int(torch.cuda.get_device_properties(engine.device).total_memory) if engine.device.type == "cuda" else machine.memory_bytes()
    weights = sum(int(tensor.nbytes) for tensor in engine.model.parameters())
    return max(LEAST_ROOM_BYTES, (total - weights) // 2)


def _open(wanted: Wanted, reporter: Reporter) -> Opened:
    """The base that everything stands on, and the adapters that were named. Each run's contract is checked."""
    named = [_named(one) for one in wanted.models]
    first_name, first = named[0]
    run = _run_at(first)
    precision = None if wanted.precision == "auto" else wanted.precision
    folder = find.folder_of(first)
    if run is None and folder and find.holds_adapter(folder):
        engine = opening.open_beside(folder, reporter, precision)
        base = Served(_plain_name(adapters.base_name(folder)))
        others = named
    elif run is None:
        engine = opening.open_model(first, reporter, precision or "bf16")
        base = Served(first_name or _plain_name(first), system=_promised(folder, engine) if folder else None)
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
    return open_run(text) if text == "last" or is_run(text) else None


def _adapter(name: str, place: str, engine: Engine, reporter: Reporter) -> tuple[Served, RowAdapter]:
    run = _run_at(place)
    folder = (find.folder_of(place) or Path(place)) if run is None else run.adapter
    if not (folder / adapters.CONFIG).is_file():
        raise CallError("is no run with an adapter and no adapter's folder", where=place, next_step="name runs or folders with adapter_config.json")
    if run is None:
        return Served(name or _plain_name(place), folder, _promised(folder, engine)), row_adapters.load(engine.model, folder)
    settings = load_config(run.config).settings
    if not METHODS[settings.method].per_request:
        problem = f"method: {settings.method} cannot be chosen for each request"
        raise RunError(problem, where=str(run.path), next_step=row_adapters.MERGE)
    adapter = row_adapters.load(engine.model, folder)
    promised = _checked(run, engine)
    reporter.say(f"{run.name}: its contract holds (template, stop tokens, golden prompts)")
    return Served(name or _plain_name(run.name), folder, promised["system"], int(run.path.stat().st_mtime)), adapter


def _promised(folder: Path, engine: Engine) -> str | None:
    return contract.of(None, folder, engine.tokenizer, engine.stop_ids).get("system")


def _checked(run: RunFolder, engine: Engine) -> dict[str, Any]:
    return contract.read_checked(run, engine.tokenizer, engine.stop_ids)
