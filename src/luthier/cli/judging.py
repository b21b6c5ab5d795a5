"""luthier judge: a model or people compare a run's answers with others."""

import getpass
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier import run_folder
from luthier.cli.endpoint import Concurrency, InputPrice, KeyEnv, OutputPrice, RequestsPerMinute, TimeoutSeconds
from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, harmless, print_json
from luthier.errors import CallError
from luthier.records import Metric

if TYPE_CHECKING:
    from luthier.evaluate.people import Pair, PeopleResult
    from luthier.recipes.judging import Call, Judged
    from luthier.recipes.rating import Table

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
ONLY_MODELS = "is for a judge behind an endpoint"


def judge(
    run: Annotated[str, typer.Argument(help="A run folder, its name in ./runs, or last.")],
    against: Annotated[str, typer.Option(help="base, reference (the questions' own answers), another run, or a file of answers.")] = "base",
    endpoint: Annotated[str | None, typer.Option("--with", help="An OpenAI-compatible address of a judge; without it people are asked.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's name there.")] = None,
    how: Annotated[str, typer.Option(help="pairwise (both orders) or single (grades from 1 to 10).")] = "pairwise",
    questions: Annotated[Path | None, typer.Option(help="MT-Bench's question.jsonl or AlpacaEval's file (default: the held-out rows).")] = None,
    references: Annotated[Path | None, typer.Option(help="MT-Bench's file of reference answers.")] = None,
    judge_prompts: Annotated[Path | None, typer.Option(help="Prompts like MT-Bench's judge_prompts.jsonl, instead of Luthier's.")] = None,
    difficulties: Annotated[Path | None, typer.Option(help="AlpacaEval's df_gamed.csv, for its length-controlled win rate.")] = None,
    rows: Annotated[int | None, typer.Option("-n", "--rows", min=1, help="No more questions than this.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer of the model in tokens (default: the run's; 512 for --questions).")
    ] = None,
    key_env: KeyEnv = None,
    max_tokens: Annotated[int, typer.Option(min=16, help="Most tokens of one reply of the judge.")] = 1024,
    requests_per_minute: RequestsPerMinute = None,
    concurrency: Concurrency = 4,
    timeout_s: TimeoutSeconds = 120,
    price_per_million_input: InputPrice = None,
    price_per_million_output: OutputPrice = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before a dear judging.")] = False,
    rater: Annotated[str | None, typer.Option(help="Who rates here (default: your user name).")] = None,
    export: Annotated[Path | None, typer.Option(help="Write the pairs as a CSV table for raters elsewhere.")] = None,
    take: Annotated[list[str] | None, typer.Option("--import", help="Read a filled-in table: RATER=FILE.csv, or FILE.csv; several times.")] = None,
    as_json: Json = False,
) -> None:
    """Compare a run's answers with others: by a model behind an endpoint (--with), or by people who see blind pairs.

    Example: luthier judge last --with http://127.0.0.1:8080/v1 --judge-model my-judge
    """
    folder = run_folder.open_run(run)
    if endpoint is None:
        given = {"--judge-model": judge_model, "--references": references, "--judge-prompts": judge_prompts, "--key-env": key_env}
        _refuse(given | {"--difficulties": difficulties, "--how": how if how != "pairwise" else None}, ONLY_MODELS, "--with URL")
        _people(folder, against, questions, rows, max_new_tokens, rater, export, take or [], as_json)
        return
    _refuse({"--rater": rater, "--export": export, "--import": take}, "is for people", "no --with")
    if judge_model is None:
        raise CallError("a judge needs its name there", where="--with", next_step="--judge-model NAME")
    if how not in ("pairwise", "single"):
        raise CallError("there is no such way", where=f"--how {how}", next_step="pairwise or single")
    with heavy_imports():
        from luthier.recipes import judging

    call = judging.Call(
        endpoint=endpoint,
        model=judge_model,
        against=against,
        how=how,  # type: ignore[arg-type]  # checked above
        questions=questions,
        references=references,
        prompts=judge_prompts,
        difficulties=difficulties,
        rows=rows,
        max_new_tokens=max_new_tokens,
        key_env=key_env,
        max_tokens=max_tokens,
        requests_per_minute=requests_per_minute,
        concurrency=concurrency,
        timeout_s=timeout_s,
        price_per_million_input=price_per_million_input,
        price_per_million_output=price_per_million_output,
    )
    _by_model(folder, call, yes, as_json)


def _by_model(folder: run_folder.RunFolder, call: "Call", yes: bool, as_json: bool) -> None:
    from luthier.recipes import judging

    terminal = Terminal(quiet=as_json)
    judged = judging.judge(folder, call, terminal, agree=lambda question: yes or _agree(question))
    if as_json:
        print_json(judged)
        return
    _say_judged(judged, terminal, difficulties=call.difficulties is not None)
    terminal.say(f"report: {folder.report}")


def _refuse(given: Mapping[str, object], problem: str, instead: str) -> None:
    for name, value in given.items():
        if value:
            raise CallError(problem, where=name, next_step=f"leave it out, or call with {instead}")


def _agree(question: str) -> bool:
    return sys.stdin.isatty() and typer.confirm(question, err=True)


def _say_judged(judged: "Judged", terminal: Terminal, *, difficulties: bool = False) -> None:
    ours, theirs = judged.names
    if found := judged.pairs:
        rate, controlled = found.win_rate, found.length_controlled_win_rate
        terminal.say(f"{ours} against {theirs}: win rate {_share(rate)} over {judged.questions:,} questions, a tie counts half")
        if controlled:
            terminal.say(f"at equal lengths{' and difficulties' if difficulties else ''}: {_share(controlled)} (Dubois et al. 2024)")
        counted = ", ".join(f"{count} {name}" for name, count in found.counts.items() if count)
        terminal.say(f"{counted}; disagreed: the judge chose differently once the order was swapped")
    if grades := judged.grades:
        told = {ours: grades.model, theirs: grades.rival, "difference": grades.difference}
        terminal.table(["", "grade", "95 %", "n"], [[name, *_grade(metric)] for name, metric in told.items()])
        if grades.unreadable:
            terminal.say(f"{grades.unreadable} replies held no grade")
    cost = "" if judged.cost is None else f"; cost {judged.cost:,.4f}"
    unknown = f"; {judged.unmetered:,} replies came without a count" if judged.unmetered else ""
    refused = f"; {judged.refused:,} requests were refused" if judged.refused else ""
    terminal.say(f"{judged.requests:,} replies: {judged.prompt_tokens:,} tokens sent + {judged.completion_tokens:,} made{unknown}{cost}{refused}")
    terminal.say(f"kept in {judged.folder}")


def _share(metric: Metric | None) -> str:
    return f"{metric.value:.1%} ({100 * metric.low:.1f} to {100 * metric.high:.1f})" if metric else "not readable"


def _grade(metric: Metric | None) -> list[str]:
    return [f"{metric.value:.2f}", f"{metric.low:.2f} to {metric.high:.2f}", str(metric.n)] if metric else ["not readable", "", ""]


# --- people ----------------------------------------------------------------------------------------------------------------------------


def _people(
    folder: run_folder.RunFolder,
    against: str,
    questions: Path | None,
    rows: int | None,
    max_new_tokens: int | None,
    rater: str | None,
    export: Path | None,
    tables: list[str],
    as_json: bool,
) -> None:
    terminal = Terminal(quiet=as_json)
    with heavy_imports():
        from luthier.recipes import rating

    table = rating.open_table(folder, against, questions=questions, rows=rows, max_new_tokens=max_new_tokens, reporter=terminal)
    if export:
        table.export(export)
        terminal.say(f"{export}: {len(table.pairs)} pairs; a rater writes a, b or = into the five columns, then --import RATER={export.name}")
    for text in tables:
        name, equals, file = text.rpartition("=")
        count, left_out = table.take(Path(file), name if equals else Path(file).stem)
        terminal.say(f"{file}: {count} ratings" + (f", {len(left_out)} rows left out" if left_out else ""))
        for line in left_out:
            terminal.say(f"  {line}")
    if not export and not tables and not as_json:
        _rate(table, rating.check_rater(rater or _user()), terminal)
    result = table.result()
    if as_json:
        print_json(result)
        return
    _say_people(table.names, result, terminal)
    terminal.say(f"kept in {table.folder}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "me"


def _rate(table: "Table", rater: str, terminal: Terminal) -> None:
    """Show one pair after the other until none is left or the rater stops; each is kept as soon as its five marks are there."""
    waiting = table.waiting(rater)
    terminal.say(
        f"{rater}: {len(waiting)} of {len(table.pairs)} pairs to rate. a, b or = (no difference), five letters at once or one a line; q ends"
    )
    for number, pair in enumerate(waiting, start=1):
        terminal.say(f"\n--- {number} of {len(waiting)} ---\n{harmless(pair.question)}\n\nA:\n{harmless(pair.a)}\n\nB:\n{harmless(pair.b)}\n")
        if (marks := _marks(pair, terminal)) is None:
            terminal.say(f"stopped: {len(table.waiting(rater))} pairs are left; the same command goes on")
            return
        table.keep(rater, pair, marks)
    terminal.say(f"{rater}: all pairs are rated, thank you")


def _marks(pair: "Pair", terminal: Terminal) -> dict[str, str] | None:
    """A mark for each of the five questions, or None where the rater stops."""
    from luthier.evaluate.people import QUESTIONS

    marks: dict[str, str] = {}
    for name, question in QUESTIONS.items():
        while name not in marks:
            terminal.say(f"{name}: {question}")
            typed = _line()
            if typed is None:
                return None
            if len(typed) == len(QUESTIONS) and not marks and all(pair.side(letter) for letter in typed):
                return dict(zip(QUESTIONS, typed, strict=True))
            if pair.side(typed):
                marks[name] = typed
            else:
                terminal.say("a, b or =; q ends")
    return marks


def _line() -> str | None:
    try:
        typed = input("> ").strip().lower()
    except EOFError:
        return None
    return None if typed == "q" else typed


def _say_people(names: tuple[str, str], result: "PeopleResult", terminal: Terminal) -> None:
    if not result.raters:
        terminal.say("nobody has rated yet")
        return
    raters = ", ".join(f"{name} ({count})" for name, count in result.raters.items())
    equal = f"; {result.equal} pairs with the same answer twice count as ties" if result.equal else ""
    terminal.say(f"{names[0]} against {names[1]}: {result.rated} of {result.pairs} pairs rated by {raters}{equal}")
    head = ["", "win rate (95 %)", "n", *([f"{result.kappa_of}'s kappa over {result.kappa_pairs}"] if result.kappa else [])]
    rows = []
    for name, rate in result.win_rates.items():
        kappa = result.kappa.get(name)
        told = ["no value" if kappa is None else f"{kappa:.2f}"] if result.kappa else []
        rows.append([name, _share(rate), str(rate.n), *told])
    terminal.table(head, rows)
