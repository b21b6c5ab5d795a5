"""Say what is wrong with a run: from its folder, from its rows, and from asking its model a few questions."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier import files, run_lock
from luthier.config.load import Config, load_config
from luthier.config.methods import METHODS
from luthier.data import ledger, prepare
from luthier.data.tokenize import How, Tokenized, prompt_ids, tokenize
from luthier.diagnose import answers as judged
from luthier.diagnose import evidence as known
from luthier.diagnose import finding, rows, table
from luthier.diagnose.evidence import Answered, Decoding, Noise, Probed, Rows
from luthier.diagnose.finding import Finding
from luthier.diagnose.report import write_report
from luthier.engine import Engine, generate, opening
from luthier.engine.sampling import GREEDY, Sampling
from luthier.errors import LuthierError, RunError
from luthier.evaluate.questions import spread
from luthier.models import load, run_tokenizer
from luthier.records import Conversation, TokenizedExample
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.serve import contract
from luthier.train import order

# Questions that are asked; training rows whose loss is measured; rows whose gradient is, one by one and in two halves.
ASKED, MEASURED, NOISE_ROWS = 20, 400, 32
# Ways of drawing words that are tried where greedy answers are poor (the second is what the guides name).
GRID = (
    {"temperature": 0.3},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.95},
)


def diagnose(run: RunFolder, reporter: Reporter | None = None, *, model: bool = True) -> tuple[list[Finding], dict[str, str]]:
    """All findings of a run, gravest first, and by its id each check that could not be made, with why.

    Without `model` from the folder and the rows alone. Writes findings.json, suspect_rows.jsonl where rows are suspect, and the report.
    """
    reporter = reporter or Silent()
    config = load_config(run.config)
    evidence = known.read(run)
    for line in evidence.damaged:
        reporter.say(line)
    holder = run_lock.holder(run.path)
    if holder:
        reporter.say(f"another process works in the run ({holder.doing}): its folder is looked at as it is, and its model is not asked")
    read = _rows(run, config, reporter)
    evidence = dataclasses.replace(evidence, rows=read)
    if model and not holder and run.trained.is_dir():
        evidence = dataclasses.replace(evidence, probed=_probe(run, config, read, reporter))
    found, not_looked = table.look(evidence)
    finding.keep(run, found, not_looked)
    suspects = rows.suspect_rows(run, found, read.train if read else ())
    if suspects or run.suspect_rows.exists():
        files.write_lines(run.suspect_rows, suspects)
    if not holder:
        write_report(run)
    return found, not_looked


def _rows(run: RunFolder, config: Config, reporter: Reporter) -> Rows | None:
    """The rows of the run, read again; None where their files are no longer what they were."""
    settings = config.settings
    try:
        read = prepare.load_rows(settings.data, config.file.parent, settings.seed)
        ledger.check_same_sources(run, read.sources)
        prepared = prepare.tokenize_rows(read, _tokenizer(run, config), int(settings.data.max_length), settings.data)
        held_out = ledger.read_held_out(run)
    except LuthierError as error:
        reporter.say(f"without the rows: {error.where}: {error.problem}")
        return None
    # Of an update all rows are told; a fault is looked for in the task's own.
    return Rows(prepare.own_rows(prepared.rows), held_out, _rows_of_update(run, config, prepared.train) if settings.objective == "sft" else None)


def _tokenizer(run: RunFolder, config: Config) -> Any:
    folder = Path(str(files.read_json(run.environment)["model_folder"]))
    if (run.trained / "tokenizer_config.json").is_file():
        return load.load_tokenizer(run.trained)
    return run_tokenizer.open_tokenizer(config, folder, lambda line: None, None)


def _rows_of_update(run: RunFolder, config: Config, examples: Sequence[TokenizedExample]) -> Callable[[int], list[str]]:
    """Which rows were in an update (counted from 1), by the run's own order."""
    training, count = config.settings.training, len(examples)
    batch = int(training.batch_size)
    seen = order.examples_of_run(count, batch, float(training.num_train_epochs), training.max_steps)

    def rows_of(step: int) -> list[str]:
        places = order.update_rows(count, batch, config.settings.seed, step - 1, seen, training.rows_together)
        return [run.named(examples[place].source) for place in places]

    return rows_of


def _probe(run: RunFolder, config: Config, read: Rows | None, reporter: Reporter) -> Probed:
    """What the model says and how sure it is, measured on a few rows."""
    try:
        engine = opening.open_trained(run, reporter)
    except LuthierError as error:
        reporter.say(f"without the model: {error}")
        return Probed()
    template = _template(run, config, engine)
    held_out = read.held_out if read else ledger.read_held_out(run)
    questions = [row for row in held_out if row.prompt and row.label is not False]
    from_held_out = bool(questions)
    if not questions and read:
        questions = [row for row in spread(read.train, ASKED) if row.prompt and row.label is not False]
    questions = [row for row in questions[:ASKED] if engine.has_room(_asked(row, engine))]
    with reporter.bar("asking the tuned model", len(questions)) as bar:
        greedy = _answers(engine, questions, config, GREEDY, bar.advance)
    examples = [example for row in questions for example in _examples(row, config, engine)]
    base, tuned = _losses(engine, run, examples)
    probed = Probed(
        answers=greedy,
        held_out=from_held_out,
        grid=_grid(engine, questions, config, greedy, reporter),
        end_of_turn=_ends(engine, examples),
        base_loss=base,
        tuned_loss=tuned,
        row_losses=_row_losses(engine, config, read),
        template=template,
    )
    del engine
    return dataclasses.replace(probed, noise=_noise(run, config, read, reporter))


def _asked(row: Conversation, engine: Engine) -> list[int]:
    return prompt_ids(row.prompt, engine.tokenizer, row.tools)


def _answers(
    engine: Engine, questions: Sequence[Conversation], config: Config, sampling: Sampling, on_answers: Callable[[int], None] = lambda done: None
) -> list[Answered]:
    """Twice as long as an answer may usually be, or is expected to be here: what has not ended by then does not end."""
    expected = [len(engine.tokenizer(row.answer, add_special_tokens=False)["input_ids"]) for row in questions]
    limit = 2 * max(int(config.settings.evaluation.max_new_tokens), *expected, 0)
    prompts = [_asked(row, engine) for row in questions]
    limits = [min(limit, engine.context - len(prompt)) if engine.context else limit for prompt in prompts]
    engine.model.eval()
    how = generate.How(frozenset(engine.stop_ids), sampling, plain=bool(engine.plain_reason))
    answers = generate.answer(engine.model, prompts, how, limits, on_answers)
    return [
        Answered(row.source, row.prompt[-1].content, row.answer, engine.tokenizer.decode(ids, skip_special_tokens=True), len(ids) < most)
        for row, ids, most in zip(questions, answers, limits, strict=True)
    ]


def _grid(engine: Engine, questions: Sequence[Conversation], config: Config, greedy: Sequence[Answered], reporter: Reporter) -> list[Decoding]:
    """Greedy and, where enough of its answers are flawed, other ways of drawing words on the same questions."""
    first = _decoding({}, greedy)
    if len(greedy) < judged.LEAST_ASKED or first.flawed < judged.LEAST_SHARE:
        return []
    found = [first]
    with reporter.bar("trying other ways of decoding", len(GRID)) as bar:
        for done, way in enumerate(GRID, start=1):
            found.append(_decoding(way, _answers(engine, questions, config, Sampling(**way, seed=config.settings.seed))))  # type: ignore[arg-type]
            bar.advance(done)
    return found


def _decoding(way: dict[str, float], answers: Sequence[Answered]) -> Decoding:
    flawed = statistics.fmean(judged.is_flawed(one) for one in answers) if answers else 0.0
    right = statistics.fmean(one.answer.strip() == one.expected.strip() for one in answers) if answers else 0.0
    return Decoding(way, flawed, right)


def _examples(row: Conversation, config: Config, engine: Engine) -> list[TokenizedExample]:
    """The row as it was trained; nothing where it cannot be."""
    data = config.settings.data
    found = tokenize(row, engine.tokenizer, How(int(data.max_length), data.too_long, data.loss_on))
    return list(found.examples[:1]) if isinstance(found, Tokenized) else []


def _ends(engine: Engine, examples: Sequence[TokenizedExample]) -> list[float]:
    """The probability of the token that ends each answer, after all of the answer: 0 to 1."""
    last = []
    for example in examples:
        place = max(place for place, on in enumerate(example.trained) if on)
        if example.token_ids[place] in engine.stop_ids:
            marks = [at == place for at in range(place + 1)]
            last.append(TokenizedExample(example.token_ids[: place + 1], marks, example.source))
    return [float(2.718281828459045**value) for value in engine.log_probabilities(last)] if last else []


def _losses(engine: Engine, run: RunFolder, examples: Sequence[TokenizedExample]) -> tuple[float | None, float | None]:
    """The mean loss of the expected answers, of the base and of the tuned model."""
    if not examples:
        return None, None
    tuned = engine.held_out_loss(examples)
    with opening.as_base(engine, run) as base:
        return base.held_out_loss(examples), tuned


def _row_losses(engine: Engine, config: Config, read: Rows | None) -> list[tuple[Any, float]]:
    """The mean loss of training rows under the trained model, in nats a token."""
    if read is None:
        return []
    some = spread(read.train, MEASURED) if len(read.train) > MEASURED else read.train
    examples = [example for row in some if row.label is not False for example in _examples(row, config, engine)]
    values = engine.log_probabilities(examples) if examples else []
    return [(example.source, -value / example.trained_tokens) for example, value in zip(examples, values, strict=True)]


def _noise(run: RunFolder, config: Config, read: Rows | None, reporter: Reporter) -> Noise | None:
    """The gradient's noise at the end of the run; None where that needs more than an adapter's gradients, or more rows."""
    settings = config.settings
    if read is None or settings.objective != "sft" or "lora" not in METHODS[settings.method].blocks or len(read.train) < NOISE_ROWS:
        return None
    goes_on = settings.model_copy(update={"init_from": str(run.path)})
    folder = Path(str(files.read_json(run.environment)["model_folder"]))
    try:
        again = dataclasses.replace(config, settings=goes_on)
        engine = opening.start(again, goes_on, folder, opening.tokenizer_of(again, folder, Silent()))
    except LuthierError as error:
        reporter.say(f"without the gradient's noise: {error}")
        return None
    examples = [example for row in spread(read.train, NOISE_ROWS) for example in _examples(row, config, engine)]
    if len(examples) < NOISE_ROWS:
        return None
    half = NOISE_ROWS // 2

    def squared(batch: list[TokenizedExample]) -> float:
        engine.forward_backward(batch)
        return engine.optimizer_step(0.0) ** 2  # at a rate of 0 nothing is learned, and the norm is given

    with reporter.bar("measuring the gradient's noise", NOISE_ROWS) as bar:
        small = []
        for done, example in enumerate(examples[:NOISE_ROWS], start=1):
            small.append(squared([example]))
            bar.advance(done)
        big = [squared(examples[:half]), squared(examples[half:NOISE_ROWS])]
    return Noise(1, statistics.fmean(small), half, statistics.fmean(big))


def _template(run: RunFolder, config: Config, engine: Engine) -> list[str]:
    """In what the run's prompts are not those that its model knows."""
    found = []
    if run.contract.is_file():
        try:
            contract.read_checked(run, engine.tokenizer, engine.stop_ids)
        except RunError as error:
            found.append(error.problem)
    folder = Path(str(files.read_json(run.environment)["model_folder"]))
    own = load.load_tokenizer(folder).chat_template if folder.is_dir() else None
    template = config.settings.template
    if own and engine.tokenizer.chat_template and own != engine.tokenizer.chat_template:
        found.append(f"the run was trained with template: {template}, and its model has a chat template of its own")
    return found
