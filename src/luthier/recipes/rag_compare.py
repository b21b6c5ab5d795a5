"""`luthier rag compare`: base, base + RAG, tuned and tuned + RAG on the same questions, and one sentence that says which to ship."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier import files, run_lock
from luthier import run_folder as folders
from luthier.diagnose.report import write_report
from luthier.engine import Engine, opening
from luthier.errors import CallError, DataError
from luthier.evaluate import asking, metrics, scoring, shipping, sums, targets
from luthier.evaluate.asking import Column, Decoding
from luthier.evaluate.kept import Kept
from luthier.evaluate.scoring import Counts
from luthier.evaluate.sums import Counted
from luthier.rag import grounding
from luthier.rag.finding import Finder, Retrieved, open_finder
from luthier.rag.golden import golden
from luthier.rag.grounding import Grounded, Grounder, Grounding, reading_of
from luthier.rag.index import FACTS, open_index
from luthier.rag.questions import Asked, fellows, read_questions
from luthier.rag.support import ESTIMATOR, SUPPORTED, support
from luthier.rag.words import words_of
from luthier.records import Answer, Conversation, Metric, Sample, Scorecard, Turn
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder, open_run
from luthier.serve import contract

SAMPLES = 20
# The folder of a run's own evaluation (`luthier eval RUN`), which is none for a comparison.
OWN = "held-out"
FAITHFUL, REFUSED, REFUSED_WITHOUT = "faithfulness", "refused", "refused_without"
LESS_IS_BETTER = [REFUSED]
ROLES = {True: ("user", "assistant"), False: ("prompt", "completion")}  # of a question and its answer in a chat template, and as plain text


@dataclass(frozen=True, slots=True)
class Call:
    """What is compared. `without` questions are asked again when the documents that answer them are missing."""

    data: str
    index: Path
    metrics: tuple[str, ...] = ("squad_f1",)
    how: Grounding = field(default_factory=Grounding)
    reranker: str | None = None
    max_rows: int | None = None
    max_new_tokens: int = 128
    without: int = 50
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """The scorecard, how well passages were found, and which to ship."""

    scorecard: Scorecard
    retrieval: dict[str, Any]
    ship: str
    verdict: str
    folder: Path
    report: Path


@dataclass(frozen=True, slots=True)
class _Question:
    """A question, the rows of the index that answer it (none: not known), and what was found."""

    asked: Asked
    plain: Conversation
    gold: tuple[int, ...]
    retrieved: Retrieved
    grounded: Grounded


@dataclass(slots=True)
class _Bench:
    """What one comparison is made with."""

    run: RunFolder
    engine: Engine
    call: Call
    finder: Finder
    kept: Kept
    how: Decoding
    reporter: Reporter
    search_s: float = 0.0  # of one question


def compare(run_name: str, call: Call, reporter: Reporter | None = None) -> Compared:
    """Ask every question four times and write what came of it to a folder in the run's evals/, and into its report.

    The same call again asks only for what is missing. Raises CallError for a call that cannot be answered, DataError without questions.
    """
    reporter = reporter or Silent()
    call.how.check()
    run = open_run(run_name)
    finder = open_finder(open_index(call.index), reporter, reranker=call.reranker)
    asked = _asked(call, reporter)
    metrics.check(call.metrics, [one.answer for one in asked])
    _check_metrics(call.metrics)
    folder = _folder(run, call)
    with run_lock.held(run.path, "rag compare", reporter.say):
        files.make_folder(folder)
        files.sweep(folder)
        files.write_json(folder / "call.json", _spelled(call))
        engine = opening.open_trained(run, reporter)
        bench = _Bench(run, engine, call, finder, Kept(folder / "answers.jsonl"), Decoding(call.max_new_tokens), reporter)
        found = _questions(bench, asked)
        without = _without(bench, found)
        columns, refusals = _ask_all(bench, found, without)
        compared = _told(bench, folder, found, columns, refusals)
        _write(folder, compared, found, columns)
        return replace(compared, report=write_report(run))


def _folder(run: RunFolder, call: Call) -> Path:
    """Where a comparison is kept: one of the same call is gone on with, one of another call is never written over."""
    title = call.name or f"rag-{Path(call.data).stem}"
    if Path(title).name != title:
        raise CallError("is no name of a folder", where=f"--name {call.name}", next_step="a name without / in it")
    if title == OWN:
        raise CallError("is the run's own evaluation", where=f"--name {call.name}", next_step="another --name, or leave it out")
    for number in range(1, 1000):
        folder = run.evals / (title if number == 1 else f"{title}-{number}")
        if not folder.exists() or ((folder / "call.json").exists() and files.read_json(folder / "call.json") == _spelled(call)):
            return folder
        if call.name:
            raise CallError(f"{folder} holds another evaluation, which is kept", where=f"--name {call.name}", next_step="another --name")
    raise CallError("a thousand comparisons of this name are there", where=str(run.evals / title), next_step="--name NAME")


def _spelled(call: Call) -> dict[str, Any]:
    """A call as JSON, with the contents of its file and of its index."""
    told: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(call), default=str))
    hashes = {"data_sha256": files.sha256(Path(call.data)) if Path(call.data).is_file() else ""}
    return {**told, **hashes, "index_sha256": files.sha256(call.index / FACTS)}


def _asked(call: Call, reporter: Reporter) -> list[Asked]:
    asked, rejected = read_questions(call.data, reporter)
    if rejected:
        reporter.say(f"{call.data}: {len(rejected):,} rows are no questions with a good answer, and are not asked")
    asked = asked[: call.max_rows]
    if len(asked) < 2:
        raise DataError("one question compares nothing", where=call.data, next_step="give more of them; a few hundred tell small differences")
    return asked


def _check_metrics(names: Sequence[str]) -> None:
    for name in names:
        if metrics.needs_model(name) or metrics.runs_code(name):
            raise CallError("is not counted of texts alone", where=f"--metric {name}", next_step="squad_f1, exact_match, rougeL ...")


# --- before anything is asked ----------------------------------------------------------------------------------------------------------


def _questions(bench: _Bench, asked: Sequence[Asked]) -> list[_Question]:
    """Every question with what was found for it; those that leave no room for passages are said and left out."""
    promised = contract.read_checked(bench.run, bench.engine.tokenizer, bench.engine.stop_ids)
    grounder = Grounder(bench.finder, bench.call.how, reading_of(bench.engine.tokenizer), bench.engine.context, bench.reporter.say)
    found, left_out, seconds = [], 0, 0.0
    with bench.reporter.bar("finding passages", len(asked)) as bar:
        for number, one in enumerate(asked, start=1):
            begun = time.perf_counter()
            retrieved = bench.finder.find(one.question, bench.call.how.passages)
            seconds += time.perf_counter() - begun
            plain = _as_trained(one.conversation, promised)
            try:
                grounded = grounder(plain.prompt, bench.call.max_new_tokens, retrieved)
            except DataError:
                left_out += 1
                continue
            gold = golden(one.row, one.question, one.answer, bench.finder)
            found.append(_Question(one, plain, tuple(gold), retrieved, grounded))
            bar.advance(number)
    bench.search_s = seconds / len(asked)
    if left_out:
        bench.reporter.say(f"not asked: {left_out} of {len(asked)} questions, which leave no room for passages in {bench.engine.context} tokens")
    if len(found) < 2:
        raise DataError("fewer than two questions can be asked", where=bench.call.data, next_step="shorter questions, or --max-new-tokens")
    return found


def _as_trained(conversation: Conversation, promised: Mapping[str, Any]) -> Conversation:
    """A question asked as the run was: in its chat template or as plain text, and with its system message where the row has none."""
    templated = bool(promised.get("templated", conversation.templated))
    turns = conversation.turns
    if [turn.role for turn in turns] == list(ROLES[not templated]):
        turns = tuple(replace(turn, role=role) for turn, role in zip(turns, ROLES[templated], strict=True))
    system = promised.get("system")
    if system and templated and turns[0].role not in ("system", "prompt"):
        turns = (Turn("system", str(system)), *turns)
    return replace(conversation, turns=turns, templated=turns[0].role != "prompt")


def _without(bench: _Bench, found: Sequence[_Question]) -> list[tuple[_Question, Grounded]]:
    """The first questions whose passage is known, with what is found when the documents that answer them are not there."""
    known = [one for one in found if one.gold][: bench.call.without]
    grounder = Grounder(bench.finder, bench.call.how, reading_of(bench.engine.tokenizer), bench.engine.context, bench.reporter.say)
    made = []
    for one in known:
        missing = fellows(bench.finder.index, one.gold)
        retrieved = bench.finder.find(one.asked.question, bench.call.how.passages, without=missing)
        made.append((one, grounder(one.plain.prompt, bench.call.max_new_tokens, retrieved)))
    return made


# --- asking ----------------------------------------------------------------------------------------------------------------------------


def _ask_all(
    bench: _Bench, found: Sequence[_Question], without: Sequence[tuple[_Question, Grounded]]
) -> tuple[dict[str, Column], dict[str, list[float]]]:
    """The four columns, and for both with RAG whether each question was refused when nothing answered it."""
    columns: dict[str, Column] = {}
    refusals: dict[str, list[float]] = {}

    def ask_both(name: str, engine: Engine, identity: str) -> None:
        columns[name] = asking.ask(engine, name, identity, [one.plain for one in found], [], bench.how, bench.kept, bench.reporter)
        rag = f"{name}_rag"
        pairs = [(one.plain, one.grounded) for one in found]
        columns[rag] = _ask_grounded(bench, engine, rag, identity, pairs)
        if without:
            title = f"{rag} without"
            again = _ask_grounded(bench, engine, title, identity, [(one.plain, grounded) for one, grounded in without])
            refusals[rag] = [float(grounding.refuses(text)) for text in again.texts]

    with opening.as_base(bench.engine, bench.run) as base:
        ask_both("base", base, targets.base_identity(bench.run))
    target = targets.Target(bench.run.name, bench.run)
    ask_both("tuned", bench.engine, targets.identity(target, bench.engine))
    return {name: columns[name] for name in shipping.BY_EFFORT}, refusals


def _ask_grounded(bench: _Bench, engine: Engine, name: str, identity: str, pairs: Sequence[tuple[Conversation, Grounded]]) -> Column:
    """Answers from passages. Where nothing fits no model is asked: the answer is that it is not there, for the time of the search."""
    places = [place for place, (_, grounded) in enumerate(pairs) if grounded.used]
    rows = [replace(plain, turns=(*grounded.turns, plain.turns[-1])) for plain, grounded in (pairs[place] for place in places)]
    empty = Column(name, [], prompt_tokens=0)
    told = asking.ask(engine, name, identity, rows, [], bench.how, bench.kept, bench.reporter) if rows else empty
    answers = [[Answer(grounding.NOT_THERE, 0, True)] for _ in pairs]
    for place, answer in zip(places, told.answers, strict=True):
        answers[place] = answer
    return replace(told, answers=answers, seconds=told.seconds + bench.search_s * len(pairs))


# --- what came of it -------------------------------------------------------------------------------------------------------------------


def _told(bench: _Bench, folder: Path, found: Sequence[_Question], columns: Mapping[str, Column], refusals: Mapping[str, list[float]]) -> Compared:
    expecteds = [one.asked.answer for one in found]
    counts: Counts = {}
    for name, column in columns.items():
        bare = replace(column, answers=[[replace(answer, text=grounding.said(answer.text)) for answer in one] for one in column.answers])
        counts[name] = scoring.count(bench.call.metrics, expecteds, bare)
        counts[name][FAITHFUL] = sums.of_scores(_faithful(bench, found, column), "mean")
        counts[name][REFUSED] = sums.of_scores([float(grounding.refuses(text)) for text in column.texts], "share")
    values = scoring.values(counts)
    for name, refused in refusals.items():
        values[name][REFUSED_WITHOUT] = sums.of_scores(refused, "share").metric()
    costs = scoring.costs(list(columns.values()), {})
    first = bench.call.metrics[0]
    ship, verdict = shipping.which({name: counted[first] for name, counted in counts.items()}, first, costs)
    scorecard = Scorecard(
        values, {"strategy": "greedy", "max_new_tokens": bench.call.max_new_tokens}, _about(bench, found), _differences(counts), costs
    )
    return Compared(scorecard, _retrieval(bench, found), ship, verdict, folder, bench.run.report)


def _faithful(bench: _Bench, found: Sequence[_Question], column: Column) -> list[float]:
    """1 for each answer that the passages which were found support, and for one that claims nothing."""
    weight = bench.finder.index.words.weight
    scores = []
    for one, text in zip(found, column.texts, strict=True):
        passages = [passage.passage.whole for passage in one.retrieved.found]
        own = support(grounding.said(text), passages, one.asked.question, words_of, weight)
        scores.append(float(grounding.refuses(text) or own >= SUPPORTED))
    return scores


def _differences(counts: Counts) -> dict[str, dict[str, Metric]]:
    """Each column less the base; and what the other one of the two adds to each."""
    told = scoring.differences(counts)
    for title, before, after in (("tuned_rag less tuned", "tuned", "tuned_rag"), ("tuned_rag less base_rag", "base_rag", "tuned_rag")):
        told[title] = {name: sums.difference(counts[before][name], counted) for name, counted in counts[after].items()}
    return told


def _retrieval(bench: _Bench, found: Sequence[_Question]) -> dict[str, Any]:
    """How often a passage that answers was among those that were found."""
    known = [one for one in found if one.gold]
    hits = [float(any(passage.row in one.gold for passage in one.retrieved.found)) for one in known]
    counted: Counted | None = sums.of_scores(hits, "share") if hits else None
    recall = counted.metric() if counted else Metric(0.0, 0.0, 1.0, 0)
    nothing = sum(not one.grounded.used for one in found)
    return {
        "at": bench.call.how.passages,
        "questions": len(known),
        "recall": recall.value,
        "low": recall.low,
        "high": recall.high,
        "nothing_fits": nothing,
        "seconds_per_question": bench.search_s,
    }


def _about(bench: _Bench, found: Sequence[_Question]) -> dict[str, object]:
    facts = bench.finder.index.facts
    index = {"folder": str(bench.call.index), "passages": facts.passages, "embedder": facts.embedder, "reranker": bench.call.reranker}
    estimator = f"{ESTIMATOR}: at least {SUPPORTED:g} of an answer's words, by weight, stand in the passages"
    told = {"source": bench.call.data, "rows": len(found), "base_rows": len(found), "lower_is_better": LESS_IS_BETTER}
    return {**told, "index": index, "grounding": dataclasses.asdict(bench.call.how), FAITHFUL: estimator}


def _write(folder: Path, compared: Compared, found: Sequence[_Question], columns: Mapping[str, Column]) -> None:
    folders.write_scorecard(folder / "scorecard.json", compared.scorecard)
    told = {"schema": 1, "ship": compared.ship, "verdict": compared.verdict, "retrieval": compared.retrieval}
    files.write_json(folder / "rag.json", told)
    samples = [
        Sample(one.asked.question, one.asked.answer, {name: column.texts[place] for name, column in columns.items()}, one.plain.source)
        for place, one in enumerate(found[:SAMPLES])
    ]
    passages = [{"row": str(one.plain.source), "fit": one.grounded.fit, "gold": list(one.gold), "passages": one.grounded.passages} for one in found]
    files.write_lines(folder / "samples.jsonl", [dataclasses.asdict(sample) for sample in samples])
    files.write_lines(folder / "passages.jsonl", passages)


Ask = Callable[[str, Engine, str], None]
