"""luthier predict."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError

DRAWN = "How answers are made"


def predict(
    model: Annotated[
        str, typer.Argument(help="A run (its folder, its name in ./runs, or last), a checkpoint (RUN@step-000100), a model or an exported folder.")
    ],
    data: Annotated[list[str], typer.Option(help="A file of rows to ask, with answers or without; may be given several times.")],
    to: Annotated[Path, typer.Option(help="The .jsonl file to write: each row with its answer.")],
    column: Annotated[str, typer.Option(help="The column that takes the answer.")] = "prediction",
    system: Annotated[str | None, typer.Option(help="System message of rows that have none (default: the run's own).")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.", rich_help_panel=DRAWN)] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest word each time.", rich_help_panel=DRAWN)] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest words that have this share.", rich_help_panel=DRAWN)] = 1.0,
    seed: Annotated[int, typer.Option(help="Every draw comes from this number.", rich_help_panel=DRAWN)] = 0,
    output_dir: Annotated[Path, typer.Option(help="Parent of the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Answer every row of a file; the same command goes on where it was stopped.

    Example: luthier predict last --data questions.jsonl --to answers.jsonl
    """
    if temperature == 0 and (top_p < 1 or seed):
        raise CallError(
            "--top-p and --seed do nothing without --temperature", where="luthier predict", next_step="--temperature 1, or leave them out"
        )
    terminal = Terminal(quiet=as_json)
    with heavy_imports():
        from luthier.engine.sampling import Sampling
        from luthier.recipes import predicting

    call = predicting.Call(
        model=model,
        data=data,
        to=to,
        column=column,
        system=system,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature, top_p=top_p, seed=seed),
        output_dir=output_dir,
    )
    predicted = predicting.predict(call, terminal)
    if as_json:
        print_json(asdict(predicted))
        return
    cut = f", {predicted.cut:,} of them cut at the longest length (--max-new-tokens)" if predicted.cut else ""
    terminal.say(f"{predicted.file}: {predicted.read:,} rows read, {predicted.answered:,} answered{cut}")
    if predicted.rejected:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(predicted.rejected.items()))
        terminal.say(f"{predicted.rejected_file}: {reasons}")
