"""Take a run out of the workshop: the adapter, or one merged model, and the proof that it is the same thing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from luthier import files, run_lock
from luthier.config.load import Config, load_config
from luthier.config.methods import METHODS
from luthier.data import ledger, prepare
from luthier.data.tokenize import How, Tokenized, prompt_ids, tokenize
from luthier.diagnose.report import write_report
from luthier.engine import Engine, opening
from luthier.errors import CallError, RunError
from luthier.export import merged, parity
from luthier.models import audit, lora, notice
from luthier.records import Conversation, Parity, TokenizedExample
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder

TARGETS = ("adapter", "merged")
ONTO = ("trained", parity.ORIGINAL)
ROWS = 24
MOST_LOGITS = 64  # of a row: 24 rows of 64 times 49,152 words are 300 MB


def export(
    run: RunFolder, to: str, reporter: Reporter | None = None, *, folder: Path | None = None, precision: str = "bf16", onto: str | None = None
) -> tuple[Path, Parity]:
    """Write the artifact `to` (adapter or merged) and compare it, as read back from the disk, with the trained model.

    An adapter of method: qlora is merged `onto` the base as it was quantized (trained; None means this) or as it was before (original).
    Nothing that exists is overwritten but an earlier export of this run in its default place. The certificate goes to parity.json.
    """
    reporter = reporter or Silent()
    if to not in TARGETS:
        raise CallError(f"no such export: {to}", where="--to", next_step=f"one of: {', '.join(TARGETS)}")
    if precision not in merged.DTYPES:
        raise CallError(f"no such number format: {precision}", where="--precision", next_step=f"one of: {', '.join(merged.DTYPES)}")
    if to == "adapter" and run.model.is_dir():
        raise CallError("this run trained every weight and has no adapter", where="--to", next_step="--to merged gives its model")
    config = load_config(run.config)
    onto = _onto(config, to, onto)
    with run_lock.held(run.path, "export", reporter.say):
        return _export(run, config, to, _target(run, to, folder), precision, onto, reporter)


def _export(run: RunFolder, config: Config, to: str, target: Path, precision: str, onto: str, reporter: Reporter) -> tuple[Path, Parity]:
    trained = opening.open_trained(run, reporter, "fp32")
    rows = _rows(run, config, trained.tokenizer)
    asked = [prompt_ids(row.prompt, trained.tokenizer, row.tools) for row in rows if row.prompt]
    prompts = [prompt for prompt in asked if trained.has_room(prompt)]  # a chat that was split may be too long to be asked whole
    data = config.settings.data
    how = How(int(data.max_length) - data.reserve_for_generation, data.too_long, data.loss_on)
    examples = [_example(tokenize(row, trained.tokenizer, how)) for row in rows]
    length = int(config.settings.evaluation.max_new_tokens)

    with reporter.bar(f"comparing {to} with the trained model", 2) as bar:
        before = _answers(trained, prompts, examples, length)
        bar.advance(1)
        if to == "merged":
            whole = opening.open_for_merging(run, reporter, onto) if onto else trained
            del trained  # both at once may be more than there is room for
            merged.write_merged(whole, target, precision)
            del whole
            exported = opening.open_model(str(target.resolve()), reporter, "fp32", config.settings.device)
        else:
            merged.write_adapter(trained, target, config.settings.model)
            exported = opening.open_trained(run, reporter, "fp32", adapter=target)
            precision = "fp32"
        _write_notice(run, config, target, reporter)
        after = _answers(exported, prompts, examples, length)
        bar.advance(2)

    certificate = parity.compare(before, after, artifact=target.name, engine="luthier fp32", precision=precision, onto=onto)
    for line in [_readers(config), *lora.hindrances(target)] if to == "adapter" else []:
        reporter.say(line)
    run.add_parity(certificate)
    write_report(run)
    return target, certificate


def _write_notice(run: RunFolder, config: Config, target: Path, reporter: Reporter) -> None:
    """Put NOTICE beside what is exported, with the texts of its base's license as far as the base brings them."""
    environment = files.read_json(run.environment)
    base = Path(environment["model_folder"])
    # A run of an earlier version kept none.
    kept = environment.get("licenses") or audit.attribution(config.settings.model, base, audit.sources(config.settings.data), config.file.parent)
    files.write_text(target / notice.FILE, notice.notice(kept, target.name))
    for name, text in audit.texts(base).items():
        files.write_text(target / name, text)
    begins = notice.wrong_name(kept, target.name)
    rule = f"; where it is made available, its name has to begin with {begins!r}" if begins else ""
    reporter.say(f"{notice.FILE} says what its licenses ask for (model: {kept['model']['license']}{rule})")


def _readers(config: Config) -> str:
    """Which programs read an adapter of the run's method."""
    settings = config.settings
    method = METHODS["dora" if settings.lora.use_dora else settings.method]
    others = "; for others: export --to merged" if method.merges else ""
    return f"adapters of method: {method.name} are read by {', '.join(('luthier', *method.engines))}{others}"


def _onto(config: Config, to: str, onto: str | None) -> str:
    """The base that the adapter is merged onto, "" where there is no choice. Raises CallError for what cannot be."""
    method = METHODS[config.settings.method]
    if to == "merged" and method.leaves == "adapter" and not method.merges:
        raise CallError(
            f"method: {method.name} cannot be merged into its base: it trains {method.what}",
            where="--to",
            next_step="--to adapter" + ("" if method.engines else " (Luthier serves it)"),
        )
    if onto is not None and onto not in ONTO:
        raise CallError(f"no such base: {onto}", where="--onto", next_step=f"one of: {', '.join(ONTO)}")
    if to != "merged" or not method.quantized_base:
        if onto:
            raise CallError("only a merged adapter of method: qlora has a choice of its base", where="--onto", next_step="leave it out")
        return ""
    return onto or "trained"


def _target(run: RunFolder, to: str, folder: Path | None) -> Path:
    target = folder or run.path / ("merged" if to == "merged" else "adapter-export")
    if folder and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError("is there already, and nothing is overwritten", where=str(folder), next_step="choose a folder that does not exist")
    files.make_folder(target.parent)
    return target


def _rows(run: RunFolder, config: Config, tokenizer: Any) -> Sequence[Conversation]:
    """Rows to compare on: held out where there are some, else those that were trained."""
    rows: Sequence[Conversation] = ledger.read_held_out(run)
    if not rows:
        rows = prepare.trained_rows(run, config.settings.data, config.file.parent, config.settings.seed, tokenizer)
    return rows[: min(ROWS, config.settings.evaluation.max_rows or ROWS)]


def _example(tokenized: object) -> TokenizedExample:
    assert isinstance(tokenized, Tokenized)  # the run has used this row already
    return tokenized.examples[0]


def _answers(engine: Engine, prompts: Sequence[list[int]], rows: Sequence[TokenizedExample], max_new_tokens: int) -> parity.Answers:
    @torch.no_grad()
    def logits(row: TokenizedExample) -> torch.Tensor:
        # Only those that predict the answer: 40 whole rows of a vocabulary of 49,152 would be gigabytes. From the end, as PEFT's forward
        # may give logits for virtual tokens before the row.
        predicting = min(len(row.token_ids) - row.trained.index(True), MOST_LOGITS)
        logits_TV = engine.model(input_ids=torch.tensor([row.token_ids], device=engine.device), use_cache=False).logits[0]
        found: torch.Tensor = logits_TV[-1 - predicting : -1]
        # A copy: a slice would keep the logits of the whole row alive.
        return found.to("cpu", torch.float32, copy=True)

    return parity.answers_of(logits, lambda asked: engine.answer(list(asked), max_new_tokens=max_new_tokens), prompts, rows)
