"""Take a run out of the workshop: as an adapter, as one merged model, or as what other engines run; with the proof that it is the same thing."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier import files, run_lock
from luthier.config.load import Config, load_config
from luthier.config.methods import METHODS, Method
from luthier.data import ledger, prepare
from luthier.data.tokenize import How, Tokenized, prompt_ids, tokenize
from luthier.diagnose.model_card import card_text
from luthier.diagnose.report import write_report
from luthier.engine import Engine, opening
from luthier.errors import CallError, ParityError
from luthier.evaluate import metrics
from luthier.export import adapter, asking, bundle, commands, hub, layers, merged, parity, room, staging, targets
from luthier.export.asking import Questions
from luthier.export.parity import Answers
from luthier.export.targets import Parts, Target
from luthier.models import audit, find, lora, notice
from luthier.models.facts import context_length
from luthier.models.save import SHARD_BYTES
from luthier.records import Conversation, Parity, TokenizedExample
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder, stored_parity

ONTO = ("trained", parity.ORIGINAL)
ROWS = 24
# Training rows by which GPTQ, AWQ and int8 see what the weights are multiplied with.
CALIBRATION_ROWS = 64
THREADS = 2


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for beyond the target; None: the usual."""

    folder: Path | None = None
    stored: str | None = None  # the number format
    onto: str | None = None
    shard_bytes: int = SHARD_BYTES
    allow_loss: float | None = None
    push: "Push | None" = None


@dataclass(frozen=True, slots=True)
class Push:
    """Where a hub target goes, and of what it is."""

    repo: str | None = None
    of: str | None = None  # adapter or merged; None: the adapter, where there is one
    private: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class Trained:
    """What a run's trained model says to the questions of a certificate, asked once for all exports that are given this."""

    run: Path | None = None
    asked: Questions = field(default_factory=lambda: Questions([], [], [], 0))
    answers: Answers = field(default_factory=lambda: Answers([]))
    inside: dict[str, Any] = field(default_factory=dict)

    def of(self, run: RunFolder, config: Config, engine: Engine) -> tuple[Questions, Answers]:
        """The questions and its answers."""
        if self.run != run.path:
            self.asked = _questions(run, config, engine)
            self.answers = asking.of_engine(engine, self.asked)
            self.inside = layers.outputs(engine.model, self.asked.rows[0].token_ids)
            self.run = run.path
        return self.asked, self.answers


def check(run: RunFolder, wanted: Sequence[tuple[str, str | None]], onto: str | None) -> None:
    """Raises for the first artifact, given with its number format, that cannot be made of the run: before any of several is made."""
    for to, precision in wanted:
        _chosen(load_config(run.config), to, precision, onto, None)


def export(
    run: RunFolder,
    to: str,
    reporter: Reporter | None = None,
    *,
    folder: Path | None = None,
    precision: str | None = None,
    onto: str | None = None,
    shard_bytes: int | None = None,
    allow_loss: float | None = None,
    push: Push | None = None,
    trained: Trained | None = None,
) -> tuple[Path, Parity]:
    """Write the artifact `to` (a name of targets.ALL) and compare it, as the engine reads it that will run it, with the trained model.

    `precision` is its number format (None: the usual one). An adapter of method: qlora is merged `onto` the base as it was quantized (trained;
    None means this) or as it was before (original). What answers otherwise than it may is kept as NAME.failed, whose path is given, with
    passed: false in its certificate; `allow_loss` is what its metrics may lose. Several exports of a run share `trained`.
    Nothing that exists is overwritten but an earlier export of this run in its default place. The certificate goes to parity.json, of the
    run and of the artifact.
    """
    reporter = reporter or Silent()
    config = load_config(run.config)
    method, target, stored, base = _chosen(config, to, precision, onto, push)
    wish = Wish(folder, stored, base, shard_bytes or SHARD_BYTES, allow_loss, push)
    if to == "hub":
        wish = replace(wish, push=replace(push or Push(), repo=hub.check_repo(push.repo if push else None, dry_run=bool(push and push.dry_run))))
    place = folder or run.path / targets.default_folder(to, target, wish.stored or "")
    with run_lock.held(run.path, "export", reporter.say):
        staging.check_free(place, own=folder is None)
        staging.check_room(place, room.needed_bytes(_whole_model(run, config), target, wish.stored or ""))
        return _export(_Work(run, config, method, target, to, place, wish, reporter, trained or Trained()))


def _chosen(config: Config, to: str, precision: str | None, onto: str | None, push: Push | None) -> tuple[Method, Target, str, str]:
    """The run's method, the target, its number format and the base below it. Raises for what does not go together, or is not installed."""
    settings = config.settings
    method = METHODS["dora" if settings.lora.use_dora else settings.method]
    target = targets.find(to, method, push.of if push else None)
    stored, base = targets.stored(target, precision), _onto(method, target, onto)
    targets.check_method(target, method)
    targets.check_libraries(target)
    return method, target, stored, base


def require(path: Path, certificate: Parity) -> Path:
    """The path of an artifact that answers as the trained model does. Raises ParityError for another."""
    if certificate.passed:
        return path
    if certificate.onto == parity.ORIGINAL:
        next_step = "--onto trained is exact"
    elif certificate.engine == "llama.cpp" or "loss_of_metric" in certificate.threshold:
        next_step = "more bits (--quantize q8_0 or f16, --to merged), or --allow-loss, where that is good enough"
    elif certificate.stored in ("bf16", "fp16"):
        next_step = "--precision fp32 keeps every digit"
    else:
        next_step = "luthier verify shows which step differs"
    found = "; ".join([*parity.broken(certificate), certificate.differs]).rstrip("; ")
    raise ParityError(
        f"what was written does not answer as the trained model does: {found}",
        where=str(path),
        next_step=next_step,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """One export: of what, what, where to, and how."""

    run: RunFolder
    config: Config
    method: Method
    target: Target
    to: str
    place: Path
    wish: Wish
    reporter: Reporter
    trained: Trained

    @property
    def stored(self) -> str:
        return self.wish.stored or ""

    @property
    def onto(self) -> str:
        return self.wish.onto or ""


def _export(work: _Work) -> tuple[Path, Parity]:
    with staging.staged(work.place) as staged, work.reporter.bar(f"comparing {work.to} with the trained model", 3) as bar:
        trained = opening.open_trained(work.run, work.reporter, "fp32")
        asked, before = work.trained.of(work.run, work.config, trained)
        bar.advance(1)
        folder = staged / work.target.name if work.to == "bundle" else staged
        if work.onto:
            del trained  # both at once may be more than there is room for
            trained = opening.open_for_merging(work.run, work.reporter, work.onto)
        held = [trained]
        del trained
        main = _written(work, held, folder)
        bar.advance(2)
        with _reading(work, main, asked.longest) as (read, engine, look):
            after = read(asked)
            certificate = parity.compare(
                before, after, artifact=work.place.name, engine=engine, stored=work.stored, onto=work.onto,
                limits=parity.threshold(work.stored, work.onto, work.wish.allow_loss), metrics=_metrics(work.config, asked, before, after),
            )  # fmt: skip
            if not certificate.passed:
                found = layers.first_difference(work.trained.inside, look(asked.rows[0].token_ids), work.stored) if look else ""
                certificate = replace(certificate, differs="; ".join(filter(None, [found, _token(asked, before, after)])))
        bar.advance(3)
        work.run.add_parity(certificate)
        write_report(work.run)  # a bundle takes it along
        _furnish(work, staged, folder, certificate)
        path = staging.accept(staged, work.place) if certificate.passed else staging.put_aside(staged, work.place)
    if work.to == "hub" and certificate.passed:
        _send(work, path)
    return path, certificate


# --- writing ---------------------------------------------------------------------------------------------------------------------------


def _written(work: _Work, held: list[Engine], to: Path) -> Path:
    """Write the artifact into `to`; gives its main file or folder. The engine is taken out of `held`, so that its memory can be used again."""
    trained = held.pop()
    if work.target.name == "adapter":
        return merged.write_adapter(trained, to, work.config.settings.model)
    if work.target.name == "merged":
        return merged.write_merged(trained, to, work.stored, work.wish.shard_bytes)
    with staging.staged(work.place.with_name(f"{work.place.name}-parts")) as parts_folder:
        whole = adapter_folder = None
        if work.target.of == targets.WHOLE:
            whole = merged.write_merged(trained, parts_folder / "whole", work.target.made_from, work.wish.shard_bytes)
        else:
            adapter_folder = merged.write_adapter(trained, parts_folder / "adapter", work.config.settings.model)
        calibration = _calibration(work, trained.tokenizer) if work.target.calibrates else []
        del trained
        gc.collect()
        return work.target.write(Parts(whole, adapter_folder, _whole_model(work.run, work.config), work.run.contract, work.stored, calibration), to)


def _calibration(work: _Work, tokenizer: Any) -> list[list[int]]:
    """Token ids of training rows, evenly over all of them."""
    settings = work.config.settings
    rows = prepare.trained_rows(work.run, settings.data, work.config.file.parent, settings.seed, tokenizer)
    step = max(len(rows) // CALIBRATION_ROWS, 1)
    return [_example(tokenize(row, tokenizer, _how(work.config))).token_ids for row in rows[: step * CALIBRATION_ROWS : step]]


def _whole_model(run: RunFolder, config: Config) -> Path:
    """The model that the run trained whole, or the one that its adapter stands beside."""
    return run.model if run.model.is_dir() else find.find(config.settings.model, Silent(), config.file.parent)


def _furnish(work: _Work, staged: Path, folder: Path, certificate: Parity) -> None:
    """Put beside the artifact its certificate, the lines that start it, NOTICE and the licenses, and what the target has more of."""
    files.write_json(staged / staging.CERTIFICATE, [stored_parity(certificate)])
    _write_notice(work.run, work.config, staged, work.place.name, work.reporter)
    notes = []
    if work.target.name == "adapter":
        found = adapter.readers(folder, work.method.engines)
        notes = [str(reading) for reading in found]
        for line in [_readers(work.method), *lora.hindrances(folder), *(str(reading) for reading in found if reading.takes)]:
            work.reporter.say(line)
    files.write_text(staged / commands.NAME, commands.text(_artifact(work, folder), notes))
    if work.to == "hub":
        files.write_text(staged / bundle.CARD, card_text(work.run))
    if work.to == "bundle":
        bundle.fill(staged, work.run, card_text(work.run))


def _artifact(work: _Work, folder: Path) -> commands.Artifact:
    config_file = folder / "adapter_config.json"
    config = files.read_json(config_file) if config_file.is_file() else {}
    name = work.place.name
    return commands.Artifact(
        name=f"{name}/{work.target.name}" if work.to == "bundle" else name,
        kind=work.target.name,
        base=str(config.get("base_model_name_or_path") or work.config.settings.model),
        file=commands.main_file(folder),
        rank=int(config.get("r") or 0),
        context=int(work.config.settings.data.max_length),
        engines=work.method.engines,
    )


def _write_notice(run: RunFolder, config: Config, target: Path, name: str, reporter: Reporter) -> None:
    """Put NOTICE beside what is exported, with the texts of its base's license as far as the base brings them."""
    environment = files.read_json(run.environment)
    base = Path(environment["model_folder"])
    # A run of an earlier version kept none.
    kept = environment.get("licenses") or audit.attribution(config.settings.model, base, audit.sources(config.settings.data), config.file.parent)
    files.write_text(target / notice.FILE, notice.notice(kept, name))
    for file, text in audit.texts(base).items():
        files.write_text(target / file, text)
    begins = notice.wrong_name(kept, name)
    rule = f"; where it is made available, its name has to begin with {begins!r}" if begins else ""
    reporter.say(f"{notice.FILE} says what its licenses ask for (model: {kept['model']['license']}{rule})")


def _readers(method: Method) -> str:
    """Which programs read an adapter of the run's method."""
    others = "; for others: export --to merged" if method.merges else ""
    return f"adapters of method: {method.name} are read by {', '.join(('luthier', *method.engines))}{others}"


def _send(work: _Work, path: Path) -> None:
    push = work.wish.push or Push()
    if push.dry_run:
        for line in [f"a push to {push.repo} would send:", *(f"  {line}" for line in hub.listed(path))]:
            work.reporter.say(line)
        return
    work.reporter.say(f"sent: {hub.push(path, str(push.repo), private=push.private, say=work.reporter.say)}")


def _onto(method: Method, target: Target, onto: str | None) -> str:
    """The base that the adapter is merged onto, "" where there is no choice. Raises CallError for what cannot be."""
    if onto is not None and onto not in ONTO:
        raise CallError(f"no such base: {onto}", where="--onto", next_step=f"one of: {', '.join(ONTO)}")
    if target.of != targets.WHOLE or not method.quantized_base:
        if onto:
            raise CallError("only a merged adapter of method: qlora has a choice of its base", where="--onto", next_step="leave it out")
        return ""
    return onto or "trained"


# --- comparing -------------------------------------------------------------------------------------------------------------------------

Read = Callable[[Questions], Answers]
Look = Callable[[list[int]], dict[str, Any]] | None


@contextmanager
def _reading(work: _Work, main: Path, tokens: int) -> Iterator[tuple[Read, str, Look]]:
    """What asks the artifact up to so many tokens, the engine's name, and what looks at its layers (None where they cannot be seen)."""
    if work.target.read_by == "llama.cpp":
        with _llama_cpp(work, main, tokens) as (engine, name):
            yield lambda asked: asking.of_llama_cpp(engine, asked, name), "llama.cpp", None
        return
    if work.target.name == "adapter":
        exported = opening.open_trained(work.run, work.reporter, "fp32", adapter=main)
    else:
        exported = opening.open_model(str(main.resolve()), work.reporter, "fp32", work.config.settings.device)
    yield lambda asked: asking.of_engine(exported, asked), "luthier fp32", lambda ids: layers.outputs(exported.model, ids)


@contextmanager
def _llama_cpp(work: _Work, main: Path, tokens: int) -> Iterator[tuple[asking.LlamaCpp, str | None]]:
    """llama.cpp with the artifact; an adapter stands beside its base, which is converted for it."""
    from luthier.serve.backends.llama_cpp import LlamaCpp

    context = min(context_length(_whole_model(work.run, work.config)) or tokens, tokens)
    if work.target.of == targets.WHOLE:
        with LlamaCpp(main, {}, threads=THREADS, context=context) as engine:
            yield engine, None
        return
    from luthier.export import gguf

    with staging.staged(work.place.with_name(f"{work.place.name}-base")) as folder:
        base = opening.open_base_of(work.run, work.reporter, "fp32")
        merged.write_merged(base, folder / "whole", "fp32", work.wish.shard_bytes)
        del base
        with LlamaCpp(gguf.write_gguf(folder / "whole", folder, quantize="f16"), {"tuned": main}, threads=THREADS, context=context) as engine:
            yield engine, "tuned"


def _questions(run: RunFolder, config: Config, trained: Engine) -> Questions:
    rows = _rows(run, config, trained.tokenizer)
    asked = [(prompt_ids(row.prompt, trained.tokenizer, row.tools), row.answer) for row in rows if row.prompt]
    length = int(config.settings.evaluation.max_new_tokens)
    # A chat that was split may be too long to be asked whole.
    fitting = [(prompt, answer) for prompt, answer in asked if trained.has_room(prompt)]
    examples = [_example(tokenize(row, trained.tokenizer, _how(config))) for row in rows]
    return Questions([prompt for prompt, _ in fitting], [answer for _, answer in fitting], examples, length)


def _how(config: Config) -> How:
    data = config.settings.data
    return How(int(data.max_length) - data.reserve_for_generation, data.too_long, data.loss_on)


def _rows(run: RunFolder, config: Config, tokenizer: Any) -> Sequence[Conversation]:
    """Rows to compare on: held out where there are some, else those that were trained."""
    rows: Sequence[Conversation] = ledger.read_held_out(run)
    if not rows:
        rows = prepare.trained_rows(run, config.settings.data, config.file.parent, config.settings.seed, tokenizer)
    return rows[: min(ROWS, config.settings.evaluation.max_rows or ROWS)]


def _example(tokenized: object) -> TokenizedExample:
    assert isinstance(tokenized, Tokenized)  # the run has used this row already
    return tokenized.examples[0]


def _metrics(config: Config, asked: Questions, before: Answers, after: Answers) -> dict[str, dict[str, float]]:
    """The run's own metrics of texts, of both models' answers."""
    wanted = [name for name in config.settings.evaluation.metrics if metrics.of_texts(name)] if asked.prompts else []
    both = {"trained": before.texts, "artifact": after.texts}
    return {name: {of: metrics.score(name, asked.expecteds, texts).value for of, texts in both.items()} for name in wanted}


def _token(asked: Questions, before: Answers, after: Answers) -> str:
    """The token of an answer at which the two are furthest apart, in words."""
    place, from_end = parity.furthest(before, after)
    if place < 0:
        return ""
    row = asked.rows[place]
    number = len(row.token_ids) - from_end
    ours, theirs = (answers.likeliest[place][-from_end] for answers in (before, after))
    return f"furthest apart at token {number + 1} of {row.tokens} of {row.source}: likeliest are {ours} (trained) and {theirs} (exported)"
