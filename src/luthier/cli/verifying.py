"""luthier verify."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier import files, run_folder
from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json
from luthier.cli.training import Json, Overrides
from luthier.errors import CallError, VerificationFailed
from luthier.run_folder import RunFolder

if TYPE_CHECKING:
    from luthier.recipes.rehearse import Rehearsal
    from luthier.recipes.verify import Verdict

Target = Annotated[str, typer.Argument(help="A settings file, or a run (its folder, its name in ./runs, or last), which then keeps the result.")]


def verify(
    target: Target,
    overrides: Overrides = None,
    rows: Annotated[int | None, typer.Option(min=2, help="Rows of the slice (default: some 20,000 tokens, 16 to 200 rows).")] = None,
    only: Annotated[list[str] | None, typer.Option(help="This check only; may be given several times (docs/verify.md lists them).")] = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Instead: the whole way (train, evaluate, export, chat) on a small model and 100 rows.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file, which must not exist.")] = None,
    as_json: Json = False,
) -> None:
    """Show on your model, rows and settings that a run does what it says. Exit code 3 where something fails.

    Example: luthier verify my-project/luthier.yaml
    """
    if rehearse and (only or output):
        raise CallError("--rehearse runs everything, and keeps it in a folder", where="luthier verify", next_step="leave --only and --output out")
    if output:
        files.refuse_existing(output)
    run = _run_of(target)
    terminal = Terminal(quiet=as_json)
    from luthier.config.load import load_config

    config = load_config(run.config if run else Path(target), overrides)
    with heavy_imports():
        from luthier.recipes import rehearse as rehearsals
        from luthier.recipes import verify as recipe

    if rehearse:
        _show_rehearsal(terminal, rehearsals.rehearse(config, terminal, rows=rows or rehearsals.ROWS), as_json)
        return
    verdict = recipe.verify(config, terminal, rows=rows, only=only or (), run=run if run and not overrides else None)
    if output:
        files.write_json(output, verdict.as_json())
    if as_json:
        print_json(verdict.as_json())
    else:
        show(terminal, verdict)
    failed = [proof for proof in verdict.proofs if proof.status == "failed"]
    if failed:
        names = ", ".join(proof.check for proof in failed)
        raise VerificationFailed(f"{len(failed)} of {len(verdict.proofs)} checks failed: {names}", where=target, next_step=failed[0].next_step)


def _run_of(target: str) -> RunFolder | None:
    """The run that is meant, by its folder, its name, `last` or its own config.yaml; None for a settings file."""
    path = Path(target)
    if path.is_file() or path.suffix in (".yaml", ".yml"):
        return RunFolder(path.parent) if path.name == "config.yaml" and (path.parent / "plan.json").is_file() else None
    return run_folder.open_run(target)


def show(terminal: Terminal, verdict: "Verdict") -> None:
    """The table of the checks, and what to do where one failed."""
    from luthier.recipes.verify import words

    what = verdict.what
    title = f"{what['model']}, {what['method']}, {what['precision']}; {what['rows']} rows with {what['tokens']:,} tokens; {verdict.seconds:.0f} s"
    terminal.table(
        ["check", "result", "seconds", "evidence"],
        [[proof.check, words(proof.status), f"{proof.seconds:.1f}", proof.evidence] for proof in verdict.proofs],
        title=title,
    )
    for proof in verdict.proofs:
        if proof.next_step:
            terminal.say(f"{proof.check}: {proof.evidence}\n  Try: {proof.next_step}")


def _show_rehearsal(terminal: Terminal, done: "Rehearsal", as_json: bool) -> None:
    if as_json:
        print_json(done.as_json())
        return
    terminal.table(["stage", "seconds", "what came of it"], [[stage.name, f"{stage.seconds:.1f}", stage.said] for stage in done.stages])
    terminal.say(f"rehearsal: {done.run.path}")
    for line in done.real:
        terminal.say(f"the real run: {line}")
