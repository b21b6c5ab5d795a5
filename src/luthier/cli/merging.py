"""luthier merge."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError


class How(StrEnum):
    cat = "cat"
    linear = "linear"
    ties = "ties"
    dare_linear = "dare_linear"
    dare_ties = "dare_ties"


def merge(
    adapters: Annotated[list[str], typer.Argument(help="RUN:WEIGHT or FOLDER:WEIGHT, two or more, all of one base.")],
    to: Annotated[Path, typer.Option(help="Folder of the new adapter.")],
    how: Annotated[
        How,
        typer.Option(
            help="cat: the exact weighted sum; the ranks add up. linear: A and B are summed by themselves, so the rank stays and the size is not "
            "that of the weighted sum (an adapter with itself, 0.5 and 0.5, gives twice the adapter). ties, dare_linear, dare_ties: a share of "
            "the numbers. As PEFT's add_weighted_adapter."
        ),
    ] = How.cat,
    density: Annotated[float | None, typer.Option(min=0, max=1, help="Share of the numbers that ties and dare keep, above 0 (default: 0.5).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Combine several LoRA adapters of one base into one.

    Example: luthier merge runs/one:0.7 runs/other:0.3 --to both --how ties
    """
    if density is not None and how in (How.linear, How.cat):
        raise CallError(f"--density has no effect with --how {how}", where="luthier merge", next_step="leave it out, or --how ties")
    terminal = Terminal(quiet=as_json)
    with heavy_imports():
        from luthier.recipes import merging

    folder = merging.merge(adapters, to, how.value, 0.5 if density is None else density, terminal)
    if as_json:
        print_json({"adapter": str(folder)})
        return
    terminal.say(f"{folder}: {' + '.join(adapters)}, combined by {how}")
    terminal.say(f"Next: init_from: {folder.resolve()} in a luthier.yaml of this base trains on from it; plain PEFT loads it as it is")
