"""Serve through an engine in a process of its own (llama.cpp, vLLM): the same API, and the contract checked through the engine's."""

import logging
import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.load import load_config
from luthier.engine import opening
from luthier.errors import CallError, MachineError, ModelError, RunError
from luthier.models import adapters, control_tokens, facts, find, gguf_file, lora, weights
from luthier.rag.finding import Finder, open_finder
from luthier.rag.grounding import NOT_THERE, Grounder, Grounding, Reading
from luthier.rag.index import open_index
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder, is_run, open_run
from luthier.serve import contract as promises
from luthier.serve import listening
from luthier.serve.backends.llama_cpp import LlamaCpp
from luthier.serve.backends.vllm import Vllm, python_of, version_of
from luthier.serve.backends.vllm import Wanted as WantedOfVllm
from luthier.serve.dialects import DIALECTS, Body, Forwarded, Post
from luthier.serve.doors import Limits
from luthier.serve.faults import Fault, too_late
from luthier.serve.registry import Served, check_name
from luthier.serve.upstream import Backend, Upstream

INSTALL = 'pip install "luthier[serve]"'
# Where nothing else is asked for: keys and values of every slot take memory.
CONTEXT = 2048
# For one answer of an engine that has just begun.
CHECK_S = 600.0
OTHERWISE = "luthier serve --engine transformers takes it, or export it with --to merged and serve that"
VLLM_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "auto": None}


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a server over an engine is asked for."""

    engine: str  # gguf | vllm
    models: Sequence[str]  # the first decides the base, the others are adapters; NAME=... gives a name
    adapters: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 16
    queue: int = 256
    keys: Path | None = None
    allowed_hosts: Sequence[str] = ()
    precision: str = "auto"
    answer_s: float = 600.0
    context: int | None = None
    vllm_python: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    index: Path | None = None  # of documents that questions are answered from


@dataclass(slots=True)
class Plan:
    """What is to be served, before the engine runs: its names (the base first), the contract of each that has one, and how it is started."""

    names: dict[str, Forwarded]
    contracts: dict[str, Path]
    launch: Callable[[], Backend]
    control: list[str]
    context: int | None = None  # tokens of a prompt and its answer; None: nobody says
    knows_system: bool = True
    left: ExitStack = field(default_factory=ExitStack)  # what goes when the server ends


def serve(wanted: Wanted, reporter: Reporter | None = None) -> None:
    """Serve until a signal comes. Raises CallError, RunError, ModelError or MachineError for what cannot be served, before anything listens;
    the engine's own reason where it dies again and again."""
    reporter = reporter or Silent()
    try:
        import uvicorn  # noqa: F401

        from luthier.serve import forwarding
        from luthier.serve.counters import Counters
    except ImportError as error:
        raise CallError(f"needs {error.name}", where="luthier serve", next_step=INSTALL) from error
    # What is wrong with the documents is told before the engine is started.
    finder = open_finder(open_index(wanted.index), reporter) if wanted.index else None
    allowed, secured = listening.allowed_keys(wanted.host, wanted.keys), listening.tls(wanted.tls_certificate, wanted.tls_key)
    open_socket = listening.listen(wanted.host, wanted.port)
    listening.log_to_standard_error()
    dialect = DIALECTS[wanted.engine]
    with open_socket, ExitStack() as left:
        plan = PLANS[wanted.engine](wanted, reporter, left)
        reporter.say(f"starting {dialect.name}")
        upstream = Upstream(dialect.name, plan.launch, partial(_check, plan, wanted.engine), _end_this_process)
        left.callback(upstream.stop)
        upstream.begin()
        for name in plan.contracts:
            reporter.say(f"{name}: its contract holds in {dialect.name} (template, golden prompts, stop tokens)")
        server = forwarding.Forwarding(
            upstream=upstream,
            dialect=dialect,
            names=plan.names,
            counters=Counters(),
            limits=Limits(answer_s=wanted.answer_s),
            most=wanted.slots + wanted.queue,
            knows_system=plan.knows_system,
            control=plan.control,
            **(_documents(finder, plan, upstream, wanted, left) if finder else {}),
        )
        app = forwarding.application(server, allowed, listening.own_names(wanted.host, tuple(wanted.allowed_hosts)))
        names = [one.served for one in plan.names.values()]
        lines = listening.announcement(names, wanted.host, open_socket.getsockname()[1], bool(allowed.keys), secured)
        listening.answer(app, open_socket, secured, announced=lines, reporter=reporter)
    if upstream.why_ended:
        raise upstream.why_ended
    reporter.say(listening.farewell(server.in_flight))


def _documents(finder: Finder, plan: Plan, upstream: Upstream, wanted: Wanted, open_files: ExitStack) -> dict[str, Any]:
    """What a server with documents has beside its engine: a look-up that counts by the engine's own tokenizer, and the embedder of the index."""
    import httpx

    from luthier.serve import dialects, messages, passages

    dialect, client = DIALECTS[wanted.engine], open_files.enter_context(httpx.Client(trust_env=False))

    def tokens(left: passages.Left, asked: Sequence[Body] | str, tools: str = "") -> int:
        try:
            return len(dialect.tokens(_posting(client, upstream.there, dialect.name, left), asked, dialects.tools_of(tools)))
        except httpx.TimeoutException as error:
            raise too_late() from error
        except httpx.TransportError as error:
            raise upstream.down() from error

    def reading(left: passages.Left) -> Reading:
        count = partial(tokens, left)
        return Reading(count, lambda turns, tools: count(messages.all_written(turns, plan.knows_system), tools), plan.control)

    def count(text: str, left: passages.Left) -> int:
        return tokens(left, text)

    grounder = Grounder(finder, Grounding(), reading(lambda: CHECK_S), plan.context, logging.getLogger("luthier.serve").warning)
    look_up = passages.look_up_with(lambda left: replace(grounder, reading=reading(left)), NOT_THERE)
    return {"look_up": look_up, "embed": finder.embedder, "embed_name": finder.embedder.name, "count": count}


def _posting(client: Any, there: Callable[[], Backend], name: str, left: Callable[[], float] = lambda: CHECK_S) -> Post:
    """Posts to the engine that is there, for as many seconds as are left. Raises a Fault with its own words where it refuses."""
    from luthier.serve import dialects

    def post(path: str, body: Body) -> Body:
        backend = there()
        answer = client.post(backend.url + path, json=body, headers=dict(backend.headers), timeout=left())
        if answer.status_code != 200:
            raise dialects.fault_of(name, answer.status_code, answer.json())
        found: Body = answer.json()
        return found

    return post


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)  # the server ends as on any other wish


def _check(plan: Plan, engine: str, backend: Backend) -> None:
    """Raises RunError where the engine keeps no contract, MachineError where it cannot be asked: whoever starts it again looks for these."""
    import httpx

    try:
        _keep_contracts(plan, engine, backend)
    except (httpx.HTTPError, Fault, ValueError, KeyError) as error:
        problem = f"{DIALECTS[engine].name} does not answer what the contract is checked by ({type(error).__name__}: {error})"
        raise MachineError(problem, where=f"luthier serve --engine {engine}", next_step="see whether the memory is enough, and try again") from error


def _keep_contracts(plan: Plan, engine: str, backend: Backend) -> None:
    import httpx

    from luthier.serve import agreement

    dialect = DIALECTS[engine]
    with httpx.Client(base_url=backend.url, headers=dict(backend.headers), timeout=CHECK_S, trust_env=False) as client:
        base = next(iter(plan.names.values()))
        template = (lambda: client.get("/props").json().get("chat_template")) if engine == "gguf" else (lambda: None)
        asking = agreement.Asking(dialect, _posting(client, lambda: backend, dialect.name), base, len(plan.names) - 1, template)
        plan.knows_system = agreement.knows_system(asking)
        for name, path in plan.contracts.items():
            stop_ids = agreement.check(asking, promises.read(path), str(path))
            plan.names[name] = replace(plan.names[name], stop_ids=stop_ids)


def _system(path: Path | None) -> str | None:
    system: str | None = promises.read(path)["system"] if path else None
    return system


def _named(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not equals:
        return "", text
    check_name(name)
    return name, place


def _all_named(wanted: Wanted) -> list[tuple[str, str]]:
    """What the command line names, and what lies in the registry folder now: such engines have the adapters that they are started with."""
    found = [_named(one) for one in wanted.models]
    if wanted.adapters is not None:
        places = [
            place for place in sorted(wanted.adapters.iterdir()) if not place.name.startswith(".") and (place.is_dir() or place.suffix == ".gguf")
        ]
        found += [(place.stem if place.is_file() else place.name, str(place)) for place in places]
    return found


def _plain_name(text: str) -> str:
    name = Path(text).name.removesuffix(".gguf") or text
    check_name(name)
    return name


def _run_at(text: str) -> RunFolder | None:
    return open_run(text) if text == "last" or is_run(text) else None


def _add(plan: Plan, forwarded: Forwarded, contract: Path | None) -> None:
    name = forwarded.served.name
    check_name(name)
    if name in plan.names:
        raise CallError(f"two models would be called {name}", where="serve", next_step="name them: NAME=FOLDER")
    plan.names[name] = forwarded
    if contract is not None:
        plan.contracts[name] = contract


def _say_unchecked(plan: Plan, reporter: Reporter) -> None:
    """An export that lies outside of its run has left its contract there: nobody should think that it was checked."""
    for name in plan.names.keys() - plan.contracts.keys():
        reporter.say(f"{name}: there is no contract.json beside it or in the folder above: nothing is checked, and it has no system message")


# --- llama.cpp -------------------------------------------------------------------------------------------------------------------------


def _plan_gguf(wanted: Wanted, reporter: Reporter, left: ExitStack) -> Plan:
    (first_name, first), *others = _all_named(wanted)
    model = _gguf(first, "model")
    name = first_name or _plain_name(_run_name(first))
    context = wanted.context or min(gguf_file.read(model).context or CONTEXT, CONTEXT)
    places: dict[str, Path] = {}
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def launch() -> Backend:
        # Its port is open to every program of this machine, and our keys stand before ours alone.
        engine = LlamaCpp(model, places, threads=threads, slots=wanted.slots, context=context, key=secrets.token_urlsafe(24))
        engine.begin()
        return Backend(engine, engine.headers)

    plan = Plan({}, {}, launch, control_tokens.of_gguf(model), context)
    contract = promises.beside(model.parent)
    _add(plan, Forwarded(Served(name, model, _system(contract), int(model.stat().st_mtime))), contract)
    for given, place in others:
        path = _gguf(place, "adapter")
        own = given or _plain_name(_run_name(place))
        contract = promises.beside(path.parent)
        served = Served(own, path, _system(contract), int(path.stat().st_mtime))
        _add(plan, Forwarded(served, len(places), files.sha256(path)), contract)
        places[own] = path
    _say_unchecked(plan, reporter)
    return plan


def _run_name(text: str) -> str:
    run = _run_at(text)
    return run.name if run else text


def _gguf(place: str, kind: str) -> Path:
    """The one GGUF file of a kind (model, adapter) that `place` is, or that lies below it. Raises CallError where there is none, or several."""
    run = _run_at(place)
    path = run.path if run else Path(place).expanduser()
    if not path.exists():
        raise CallError("is no .gguf file, no folder with one and no run", where=place, next_step=_gguf_step("RUN", kind))
    # Inside: a run may itself lie below a hidden folder. What an export has put aside is called NAME.failed, or NAME.failed-2.
    inside = [one for one in sorted(path.rglob("*.gguf")) if not any(".failed" in part or part[0] == "." for part in one.relative_to(path).parts)]
    found = [one for one in ([path] if path.is_file() else inside) if gguf_file.read(one).kind == kind]
    if not found and run is None and _adapter_at(place):
        step = f"luthier serve {place} takes it as it is; luthier export RUN --to gguf (of the run that trained it) makes one"
        raise CallError(f"holds an adapter in PEFT's format, and llama.cpp reads a GGUF {kind}", where=place, next_step=step)
    if not found:
        raise CallError(f"holds no GGUF {kind}", where=place, next_step=_gguf_step(place, kind))
    if len(found) > 1:
        names = ", ".join(str(one) for one in found[:4])
        raise CallError(f"holds several GGUF files of that kind ({names})", where=place, next_step="name one of them")
    return found[0]


def _gguf_step(place: str, kind: str) -> str:
    return f"luthier export {place} --to gguf{' --lora' if kind == 'adapter' else ''} makes one"


# --- vLLM ------------------------------------------------------------------------------------------------------------------------------


def _plan_vllm(wanted: Wanted, reporter: Reporter, left: ExitStack) -> Plan:
    python = python_of(wanted.vllm_python)
    version = version_of(python)
    reporter.say(f"vLLM {version} of {python}")
    named = _all_named(wanted)
    first_name, first = named[0]
    run = _run_at(first)
    whole = run is not None and run.model.is_dir()
    adapter_first = _adapter_at(first) if run is None else None
    by_itself = whole or (run is None and adapter_first is None)
    folder = adapters.base_folder(adapter_first, reporter).resolve() if adapter_first else _base_folder(first, run, reporter)
    base_name = adapters.base_name(adapter_first) if adapter_first else _base_name(first, run)
    name = first_name if first_name and by_itself else _plain_name(base_name)
    others = named[1:] if by_itself else named
    contract = promises.beside(folder) if by_itself else None
    places: dict[str, Path] = {}
    ranks: list[int] = []
    request = WantedOfVllm(folder, name, places, (), None, VLLM_DTYPES[_precision(wanted, run)], wanted.context, wanted.slots)

    def launch() -> Backend:
        engine = Vllm(request, python, version)
        return Backend(engine, {"Authorization": f"Bearer {engine.key}"})

    plan = Plan({}, {}, launch, control_tokens.of_folder(folder), wanted.context or facts.context_length(folder))
    _add(plan, Forwarded(Served(name, folder, _system(contract))), contract)
    for given, place in others:
        own_run = _run_at(place)
        own = given or _plain_name(_run_name(place))
        adapter, rank = _lora(place, own_run, folder)
        contract = own_run.contract if own_run else promises.beside(adapter)
        served = Served(own, adapter, _system(contract), int(adapter.stat().st_mtime))
        _add(plan, Forwarded(served, len(places), files.sha256(adapter / adapters.WEIGHTS)), contract)
        places[own] = adapter.resolve()
        ranks.append(rank)
    request = replace(request, ranks=tuple(ranks), template=_template(plan, left))
    return plan


def _adapter_at(place: str) -> Path | None:
    folder = find.folder_of(place)
    return folder if folder and find.holds_adapter(folder) else None


def _base_folder(first: str, run: RunFolder | None, reporter: Reporter) -> Path:
    if run is None:
        return find.find(first, reporter).resolve()
    if run.model.is_dir():
        return run.model.resolve()
    config = load_config(run.config)
    return find.find(config.settings.model, reporter, config.file.parent).resolve()


def _base_name(first: str, run: RunFolder | None) -> str:
    if run is None:
        return first
    return run.name if run.model.is_dir() else str(load_config(run.config).settings.model)


def _precision(wanted: Wanted, run: RunFolder | None) -> str:
    if wanted.precision != "auto" or run is None:
        return wanted.precision
    return str(load_config(run.config).settings.training.precision)


def _template(plan: Plan, left: ExitStack) -> Path | None:
    """The chat template of the runs as a file, where they have one: the base's own may have changed since."""
    found = {str(template) for path in plan.contracts.values() if (template := promises.read(path).get("template"))}
    if len(found) > 1:
        problem = "the runs were trained with different chat templates, and vLLM has one for all"
        raise RunError(problem, where="luthier serve --engine vllm", next_step="serve them apart, or luthier serve --engine transformers")
    if not found:
        return None
    path = Path(left.enter_context(tempfile.TemporaryDirectory(prefix="luthier-"))) / "chat_template.jinja"
    files.write_text(path, found.pop())
    return path


def _lora(place: str, run: RunFolder | None, base: Path) -> tuple[Path, int]:
    """An adapter that vLLM reads as it was trained, and its largest rank. Raises ModelError or RunError for one that it would not."""
    folder = (find.folder_of(place) or Path(place)) if run is None else run.adapter
    if not (folder / adapters.CONFIG).is_file():
        raise CallError("is no run with an adapter and no adapter's folder", where=place, next_step="name runs or folders with adapter_config.json")
    if run is not None:
        opening.require_same_base(run, base)
    config = weights.read_object(folder / adapters.CONFIG, "name a folder that holds an adapter")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"vLLM reads LoRA adapters, and this one is {config.get('peft_type')}", where=str(folder), next_step=OTHERWISE)
    # Lines of other programs are no hindrance here.
    if found := next((line for line in lora.hindrances(folder) if "vLLM" in line), None):
        raise ModelError(found.partition(":")[0], where=str(folder), next_step=OTHERWISE)
    origin = folder / adapters.ORIGIN
    made_for = weights.read_object(origin, "save the adapter again").get("base_sha256") if origin.is_file() else None
    if made_for and made_for != (there := weights.fingerprint(base)):
        problem = f"was made for another base (hash {made_for[:12]}) than {base} (hash {there[:12]})"
        raise ModelError(problem, where=str(folder), next_step="name the base that it was trained on")
    return folder, max([int(config.get("r") or 1), *map(int, (config.get("rank_pattern") or {}).values())])


PLANS: dict[str, Callable[[Wanted, Reporter, ExitStack], Plan]] = {
    # --engine
    "gguf": _plan_gguf,
    "vllm": _plan_vllm,
}
