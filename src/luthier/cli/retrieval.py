"""luthier rag index | ask | compare: documents beside a model, and whether they are worth it."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, harmless, print_json
from luthier.errors import CallError

if TYPE_CHECKING:
    from luthier.rag.grounding import Grounding
    from luthier.recipes.rag_compare import Compared

Json = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]
Index = Annotated[Path, typer.Argument(help="The folder of an index.")]
Passages = Annotated[int, typer.Option(min=1, max=100, help="Passages in a prompt, at most.")]
Budget = Annotated[int, typer.Option(min=1, help="Tokens that they may have together.")]
Least = Annotated[float, typer.Option(min=0, max=1, help="Below this fit (0 to 1) nothing of the documents has to do with the question.")]
Reranker = Annotated[str | None, typer.Option(help="A cross-encoder (folder or hub id) that reads the best passages again.")]
AskBudget = Annotated[int | None, typer.Option(min=1, help="With --model: tokens that they may have together (default 1024).")]
AskLength = Annotated[int | None, typer.Option(min=1, help="With --model: longest answer in tokens (default 256).")]
LEAST_FIT, BUDGET = 0.4, 1024


def index(
    to: Annotated[Path, typer.Option(help="The folder of the index. The same call again renews it.")],
    documents: Annotated[
        list[str] | None, typer.Argument(help="Files and folders: .md, .txt, .rst, .html, .pdf, .jsonl. None: those of before.")
    ] = None,
    embedder: Annotated[str | None, typer.Option(help="wordllama (the default; no network), or a folder or hub id of a sentence encoder.")] = None,
    size: Annotated[int | None, typer.Option(help="Longest passage in characters (default 1200).")] = None,
    overlap: Annotated[int | None, typer.Option(help="Characters that a passage shares with the one before (default 150).")] = None,
    store: Annotated[str, typer.Option(help="plain (one file), lancedb, or auto: lancedb above 100,000 passages where it is installed.")] = "auto",
    as_json: Json = False,
) -> None:
    """Make documents findable, or renew an index: what is new or changed is embedded, what is gone leaves it.

    Example: luthier rag index docs/ manual.pdf --to index
    """
    from luthier.rag.index import is_index, read_facts
    from luthier.rag.splitting import Split
    from luthier.recipes import retrieval

    before = read_facts(to).split if is_index(to) else Split()
    split = Split(before.size if size is None else size, before.overlap if overlap is None else overlap)
    terminal = Terminal(quiet=as_json)
    done = retrieval.index(documents or [], to, embedder=embedder, split=split, store=store, reporter=terminal)
    if as_json:
        print_json({"schema": 1, **dataclasses.asdict(done)})
        return
    terminal.say(f"{done.folder}: {done.passages:,} passages of {done.documents:,} documents; {done.embedded:,} embedded now")
    terminal.say(f"  documents: {done.new:,} new, {done.changed:,} changed, {done.removed:,} gone")
    if done.duplicates:
        name, twin = next(iter(done.duplicates.items()))
        terminal.say(f"  {len(done.duplicates):,} are the same as another, to the byte, and are not kept twice ({name} = {twin})")
    if done.rejected:
        terminal.say(f"  set aside, listed in {to / 'rejected.jsonl'}: {', '.join(f'{count:,} {reason}' for reason, count in done.rejected.items())}")


def ask(
    index: Index,
    question: Annotated[str, typer.Argument(help="What is asked.")],
    model: Annotated[str | None, typer.Option(help="RUN, or a model, that answers. Without it the passages are shown.")] = None,
    passages: Passages = 5,
    budget: AskBudget = None,
    least_score: Least = LEAST_FIT,
    reranker: Reranker = None,
    max_new_tokens: AskLength = None,
    as_json: Json = False,
) -> None:
    """Look something up, and have a model answer from it, with the numbers of the passages it names.

    Example: luthier rag ask index "How do I send a parcel back?" --model last
    """
    terminal = Terminal(quiet=as_json)
    if model is None:
        for option in ["--budget"] * (budget is not None) + ["--max-new-tokens"] * (max_new_tokens is not None):
            problem = f"{option} is for a model that answers: its tokenizer counts"
            raise CallError(problem, where="luthier rag ask", next_step="--model RUN, or --passages to show fewer")
        _show_passages(index, question, passages, least_score, reranker, as_json, terminal)
        return
    with heavy_imports():
        from luthier.recipes import reading

    how = _grounding(passages, budget or BUDGET, least_score)
    reader = reading.open_reader(index, model, how, terminal, reranker=reranker, max_new_tokens=max_new_tokens or reading.MAX_NEW_TOKENS)
    grounded = reader.ground(question)
    answer = ""
    for piece in reader.stream(grounded):
        answer += piece
        if not as_json:
            sys.stdout.write(harmless(piece))
            sys.stdout.flush()
    replied = reading.replied(answer, grounded)
    if as_json:
        print_json({"schema": 1, **dataclasses.asdict(replied)})
        return
    sys.stdout.write("\n")
    say_passages(replied.passages, replied.cited, terminal)


def say_passages(passages: list[dict[str, object]], cited: list[int], terminal: Terminal) -> None:
    """The passages of a prompt, a line each; * those that the answer names."""
    for one in passages:
        mark = "*" if one["number"] in cited else " "
        title = f"  {one['title']}" if one["title"] else ""
        terminal.say(harmless(f"{mark}[{one['number']}] {one['source']}{title}{'  (its beginning)' if one.get('cut') else ''}"))


def _show_passages(index: Path, question: str, most: int, least_score: float, reranker: str | None, as_json: bool, terminal: Terminal) -> None:
    from luthier.recipes import retrieval

    found = retrieval.look_up(index, question, most, terminal, reranker=reranker)
    if as_json:
        rows = [{"source": one.passage.place, "title": one.passage.title, "text": one.passage.text, "score": one.score} for one in found.found]
        print_json({"schema": 1, "fit": found.fit, "fits": found.fits(least_score), "passages": rows})
        return
    for number, one in enumerate(found.found, start=1):
        text = " ".join(one.passage.text.split())
        terminal.say(harmless(f"[{number}] {one.passage.place}  {one.passage.title}\n    {text[:200]}{' ...' if len(text) > 200 else ''}"))
    fits = "" if found.fits(least_score) else f", below {least_score:g}: an answer would say that it is not in the documents"
    terminal.say(f"fit {found.fit:.2f}{fits}")


def compare(
    run: Annotated[str, typer.Option(help='The tuned model: the folder of a run, or "last".')],
    index: Annotated[Path, typer.Option(help="The folder of an index.")],
    data: Annotated[str, typer.Option(help="Questions with answers, in any format of rows.")],
    metric: Annotated[list[str] | None, typer.Option(help="What answers are scored by; the first decides (default: squad_f1).")] = None,
    passages: Passages = 5,
    budget: Budget = 1024,
    least_score: Least = LEAST_FIT,
    reranker: Reranker = None,
    max_rows: Annotated[int | None, typer.Option(min=2, help="No more questions than this.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 128,
    without: Annotated[int, typer.Option(min=0, help="So many questions are asked again without the documents that answer them.")] = 50,
    name: Annotated[str | None, typer.Option(help="Name of its folder in the run's evals/.")] = None,
    as_json: Json = False,
) -> None:
    """The 2 x 2 on the same questions: base, base + RAG, tuned, tuned + RAG; and one sentence that says which to ship.

    Example: luthier rag compare --run last --index index --data questions.jsonl
    """
    terminal = Terminal(quiet=as_json)
    how = _grounding(passages, budget, least_score)
    with heavy_imports():
        from luthier.recipes import rag_compare

    call = rag_compare.Call(data, index, tuple(metric or ("squad_f1",)), how, reranker, max_rows, max_new_tokens, without, name)
    done = rag_compare.compare(run, call, terminal)
    if as_json:
        print_json({"schema": 1, **dataclasses.asdict(done)})
        return
    _say_compared(done, terminal)


def _say_compared(done: "Compared", terminal: Terminal) -> None:
    terminal.scorecard(done.scorecard)
    told = done.retrieval
    recall = f"recall@{told['at']} {told['recall']:.1%} of {told['questions']:,} questions whose passage is known"
    terminal.say(f"retrieval: {recall if told['questions'] else 'no question names its passage, and none was found that holds an answer'}")
    terminal.say(f"{done.verdict}\n{done.folder}/scorecard.json, rag.json, answers.jsonl; report: {done.report}")


def _grounding(passages: int, budget: int, least_score: float) -> "Grounding":
    from luthier.rag.grounding import Grounding

    how = Grounding(passages, budget, least_score)
    how.check()
    return how


def rag_mix(
    questions: Annotated[str, typer.Argument(help="Questions with answers, in any format of rows; those of `data synth` name their passages.")],
    index: Annotated[Path, typer.Option(help="The folder of an index.")],
    to: Annotated[Path, typer.Option(help="The new folder: train.jsonl, held_out.jsonl, rejected.jsonl, rag_mix.json.")],
    passages: Annotated[int, typer.Option(min=2, max=50, help="Passages in each prompt.")] = 4,
    without_gold: Annotated[str, typer.Option(help="Share of questions whose passage is missing from their prompt (RAFT's 1 - P).")] = "20%",
    plain: Annotated[str, typer.Option(help="Share of questions that are asked without passages.")] = "0%",
    together: Annotated[int, typer.Option(min=1, help="Questions that share their passages, at most; the engine runs those once.")] = 4,
    hold_out: Annotated[str, typer.Option(help="Share of the documents whose questions and passages are kept out of training.")] = "10%",
    quote: Annotated[bool, typer.Option("--quote/--no-quote", help="Answers quote their evidence first.")] = True,
    missing: Annotated[str, typer.Option(help="Without its passage a question is answered by: refuse (say so), or answer (RAFT's own).")] = "refuse",
    seed: Annotated[int, typer.Option(help="What is drawn by chance is drawn by this number.")] = 0,
    as_json: Json = False,
) -> None:
    """Rows that teach a model to answer from passages (RAFT): the passage that answers, distractors, and rows without it.

    Example: luthier data rag-mix questions.jsonl --index index --to raft
    """
    from luthier.rag.raft import Shares
    from luthier.recipes import rag_mix as recipe

    if missing not in ("refuse", "answer"):
        raise CallError("there is no such way", where=f"--missing {missing}", next_step="refuse or answer")
    shares = Shares(passages, _share("--without-gold", without_gold), _share("--plain", plain), together, quote, missing == "answer")
    terminal = Terminal(quiet=as_json)
    done = recipe.rag_mix(questions, index, to, shares, hold_out=_share("--hold-out", hold_out), seed=seed, reporter=terminal)
    if as_json:
        print_json({"schema": 1, **dataclasses.asdict(done)})
        return
    kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in done.kinds.items())
    terminal.say(f"{done.folder}/train.jsonl: {done.rows:,} rows ({kinds}) with {done.prompts:,} different sets of passages")
    terminal.say(f"{done.folder}/held_out.jsonl: {done.held_out:,} questions on {done.held_out_documents:,} documents that no row shows")
    if done.rejected:
        terminal.say(f"{done.folder}/rejected.jsonl: {', '.join(f'{count:,} {reason}' for reason, count in done.rejected.items())}")


def _share(option: str, text: str) -> float:
    """A share from 0% to below 100%, as a number."""
    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1:
        raise CallError("is not a share from 0% to below 100%", where=f"{option} {text}", next_step=f"{option} 20%")
    return value


RAG_COMMANDS: dict[str, Callable[..., None]] = {"index": index, "ask": ask, "compare": compare}
DATA_COMMANDS: dict[str, Callable[..., None]] = {"rag-mix": rag_mix}
