"""luthier eval."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError

Many = list[str] | None
ROWS = "Rows to ask"
DRAWN = "How answers are made"
BESIDE = "Beside them"
KEPT = "What is kept"

KeyEnv = Annotated[str | None, typer.Option(help="The environment variable that holds its key.", rich_help_panel=BESIDE)]
Pace = Annotated[float | None, typer.Option(min=0.1, help="Its pace.", rich_help_panel=BESIDE)]
InputPrice = Annotated[float | None, typer.Option(min=0, help="What it asks for a million tokens read.", rich_help_panel=BESIDE)]
OutputPrice = Annotated[float | None, typer.Option(min=0, help="And written.", rich_help_panel=BESIDE)]
HourPrice = Annotated[float | None, typer.Option(min=0, help="What an hour of this machine costs.", rich_help_panel=BESIDE)]
RunCode = Annotated[bool, typer.Option("--run-code", help="Let code that a model wrote be run (pass@K), apart.", rich_help_panel=ROWS)]
Suites = Annotated[Many, typer.Option(help="A benchmark: ifeval, ifbench or a task of lm-eval; may be given several times.", rich_help_panel=ROWS)]
SuiteDir = Annotated[Path | None, typer.Option(help="A folder of benchmarks that need no network (docs/evaluating.md).", rich_help_panel=ROWS)]
Metrics = Annotated[Many, typer.Option(help="What to count, instead of evaluation.metrics; module:function is your own.", rich_help_panel=ROWS)]
Targets = Annotated[
    list[str],
    typer.Argument(help="A run (its folder, its name in ./runs, or last), a checkpoint (RUN@step-000100) or a model; several: side by side."),
]
Data = Annotated[str | None, typer.Option(help="A file of rows to ask, instead of those held out.", rich_help_panel=ROWS)]
Samples = Annotated[int, typer.Option(min=1, max=1000, help="Answers to each question (pass@5 needs 5).", rich_help_panel=DRAWN)]


def evaluate(
    targets: Targets,
    data: Data = None,
    suite: Suites = None,
    suite_dir: SuiteDir = None,
    metric: Metrics = None,
    rows: Annotated[int | None, typer.Option(min=1, help="At most so many rows (of each benchmark).", rich_help_panel=ROWS)] = None,
    run_code: RunCode = False,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.", rich_help_panel=DRAWN)] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest word each time.", rich_help_panel=DRAWN)] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest words that have this share.", rich_help_panel=DRAWN)] = 1.0,
    samples: Samples = 1,
    seed: Annotated[int, typer.Option(help="Every draw comes from this number.", rich_help_panel=DRAWN)] = 0,
    against: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint to ask as well.", rich_help_panel=BESIDE)] = None,
    model: Annotated[str | None, typer.Option(help="The model that --against is asked for.", rich_help_panel=BESIDE)] = None,
    key_env: KeyEnv = None,
    requests_per_minute: Pace = None,
    price_per_million_input: InputPrice = None,
    price_per_million_output: OutputPrice = None,
    price_per_hour: HourPrice = None,
    name: Annotated[str | None, typer.Option(help="The folder in evals/ (default: by the file and the suites).", rich_help_panel=KEPT)] = None,
    output_dir: Annotated[Path, typer.Option(help="Parent of the runs.", rich_help_panel=KEPT)] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.", rich_help_panel=KEPT)] = False,
) -> None:
    """Base beside tuned on held-out rows, with 95 % intervals; and any other model beside them.

    Example: luthier eval last
    """
    if (against is None) != (model is None):
        raise CallError("--against and --model belong together", where="luthier eval", next_step="--against http://host/v1 --model NAME")
    if temperature == 0 and (top_p < 1 or seed):
        raise CallError("--top-p and --seed do nothing without --temperature", where="luthier eval", next_step="--temperature 1, or leave them out")
    if against is None and (key_env or requests_per_minute or price_per_million_input is not None or price_per_million_output is not None):
        raise CallError("--key-env, --requests-per-minute and prices of tokens are for --against", where="luthier eval", next_step="leave them out")
    terminal = Terminal(quiet=as_json)
    with heavy_imports():
        from luthier.engine.sampling import Sampling
        from luthier.evaluate.endpoints import Against
        from luthier.recipes import evaluation

    call = evaluation.Call(
        data=data,
        suites=tuple(suite or ()),
        suite_dir=str(suite_dir) if suite_dir else None,
        metrics=tuple(metric or ()),
        max_rows=rows,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        samples=samples,
        against=Against(against, model, key_env, requests_per_minute) if against and model else None,
        run_code=run_code,
        name=name,
    )
    prices = evaluation.Prices(price_per_hour, price_per_million_input, price_per_million_output)
    found = evaluation.compare(targets, call, terminal, prices=prices, output_dir=output_dir)
    if as_json:
        print_json(found.scorecard)
        return
    terminal.scorecard(found.scorecard)
    terminal.say(f"all answers: {found.folder}")
    if found.report:
        terminal.say(f"report: {found.report}")
