"""luthier models bench."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import LuthierError

if TYPE_CHECKING:
    from luthier.recipes.model_bench import Benched


def bench(
    models: Annotated[list[str], typer.Argument(help="Names of the catalog, hub ids or folders.")],
    data: Annotated[str, typer.Option(help="A file of rows, in any of the usual forms.")],
    metric: Annotated[list[str] | None, typer.Option(help="What the answers are counted by; may be given several times.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="At most so many rows, spread evenly over the file.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Untuned models on your rows, before one is chosen: bits per byte, perplexity and what they answer already; the best first.

    Example: luthier models bench smollm2-135m-instruct qwen2.5-0.5b-instruct --data data/train.jsonl --metric valid_json
    """
    terminal = Terminal(quiet=as_json)
    with heavy_imports():
        from luthier.recipes import model_bench

    found = model_bench.bench(models, data, terminal, wanted=metric or ("exact_match",), most_rows=rows)
    if as_json:
        print_json(found)
    else:
        _show(terminal, found)
    if all(one.problem for one in found):
        raise LuthierError("none of these models could be measured", where=", ".join(models), next_step="luthier models list shows what is known")


def _show(terminal: Terminal, found: list["Benched"]) -> None:
    from luthier.evaluate.metrics import in_words

    measured = [one for one in found if not one.problem]
    if measured:
        names = list(measured[0].metrics)
        head = ["model", "parameters", "bits/byte answers", "bits/byte texts", "perplexity", *names, "rows", "seconds"]
        cells = [
            [
                one.model,
                f"{(one.parameters or 0) / 1e6:,.0f} M",
                f"{one.bits_per_byte:.3f}",
                f"{one.text_bits_per_byte:.3f}",
                f"{one.perplexity:.2f}",
                *(in_words(name, one.metrics[name]) for name in names),
                str(one.rows),
                f"{one.seconds:.1f}",
            ]
            for one in measured
        ]
        terminal.table(head, cells)
    for one in found:
        if one.problem:
            terminal.say(f"{one.model}: not measured: {one.problem}")


COMMANDS: dict[str, Callable[..., None]] = {"bench": bench}
