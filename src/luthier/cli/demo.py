"""luthier demo."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.terminal import Terminal, print_json
from luthier.errors import LuthierError


def demo(
    output_dir: Annotated[Path, typer.Option(help="Parent of the run folder.")] = Path("runs"),
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop the training after so many updates (to try the road).")] = None,
    rows: Annotated[int | None, typer.Option(min=2, help="Answer so many held-out rows only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Fine-tune a real model on real data here and now: US addresses to JSON.

    Example: luthier demo
    """
    terminal = Terminal(quiet=as_json)
    from luthier.recipes import demo as recipe

    outcome = recipe.demo(terminal, output_dir=output_dir, max_steps=max_steps, rows=rows)
    run = outcome.run
    if as_json:
        print_json({"run": str(run.path), "scorecard": outcome.scorecard.models, "parity": outcome.parity, "seconds": outcome.seconds})
    else:
        tuned, base = outcome.scorecard.models["tuned"], outcome.scorecard.models["base"]
        terminal.scorecard(outcome.scorecard)
        terminal.say(
            f"merged model: {run.path / 'merged'}  (mean KL {outcome.parity.mean_kl:.1e}, {outcome.parity.greedy_agreement:.0%} equal answers)"
        )
        terminal.say(f"report: {run.report}")
        terminal.say(
            f"\nDone in {outcome.seconds / 60:.1f} minutes: exact match {base['exact_match'].value:.0%} -> {tuned['exact_match'].value:.0%}, "
            f"valid JSON {base['valid_json'].value:.0%} -> {tuned['valid_json'].value:.0%} on {tuned['exact_match'].n} held-out addresses.\nNext:"
        )
        terminal.say(f"  luthier chat {run.path}                     talk to it: type an address")
        terminal.say(f"  luthier eval {run.path}                     measure it again, or on your rows: --data FILE")
        terminal.say("  luthier init my-project                     train on your own data")
    if not outcome.parity.passed:
        raise LuthierError(
            "the merged model does not answer as the trained one does", where=str(run.parity), next_step=f"luthier export {run.path} --precision fp32"
        )
