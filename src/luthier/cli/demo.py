"""luthier demo."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json, short
from luthier.errors import ParityError, VerificationFailed

if TYPE_CHECKING:
    from luthier.recipes.demo import Outcome


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
    with heavy_imports():
        from luthier.recipes import demo as recipe

    outcome = recipe.demo(terminal, output_dir=output_dir, max_steps=max_steps, rows=rows)
    run = outcome.run
    if as_json:
        told = {"verified": outcome.verdict.as_json(), "seconds": outcome.seconds}
        print_json({"run": str(run.path), "scorecard": outcome.scorecard.models, "parity": outcome.parity, **told})
    else:
        _show(terminal, outcome)
    if not outcome.parity.passed:
        raise ParityError(
            "the merged model does not answer as the trained one does", where=str(run.parity), next_step=f"luthier export {run.path} --precision fp32"
        )
    if not outcome.verdict.passed:
        failed = next(proof for proof in outcome.verdict.proofs if proof.status == "failed")
        raise VerificationFailed(f"{failed.check}: {failed.evidence}", where=str(run.verified), next_step=failed.next_step)


def _show(terminal: Terminal, outcome: "Outcome") -> None:
    path = short(outcome.run.path)
    models, parity = outcome.scorecard.models, outcome.parity
    terminal.scorecard(outcome.scorecard)
    terminal.say(
        f"merged model  {path / 'merged'}  ({parity.greedy_agreement:.0%} of its answers equal the trained model's, mean KL {parity.mean_kl:.1e})"
    )
    checks = ", ".join(proof.check for proof in outcome.verdict.proofs if proof.status == "passed")
    terminal.say(f"verified      {checks}  ({outcome.verdict.seconds:.0f} s; luthier verify {path} tries everything)")
    terminal.say(f"report        {path / 'report.html'}")
    terminal.say(f"settings      {path / 'demo.yaml'}  (what you would write)")
    change = {name: " -> ".join(f"{models[model][name].value:.0%}" for model in models) for name in ("exact_match", "valid_json")}
    terminal.say(f"\nDone in {outcome.seconds / 60:.1f} minutes. From {' to '.join(models)}:")
    terminal.say(f"exact match {change['exact_match']}, valid JSON {change['valid_json']}.\n")
    terminal.say("Next:")
    for command, what in (
        (f"luthier chat {path}", "talk to it: type an address"),
        (f"luthier eval {path}", "measure it again; on your own rows with --data FILE"),
        ("luthier init my-project", "train on your own data"),
    ):
        terminal.say(f"  {command:<40}  {what}")
