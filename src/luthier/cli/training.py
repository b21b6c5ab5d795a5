"""luthier train | chat | export."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from luthier import run_folder
from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, harmless, print_json
from luthier.errors import CallError, LuthierError

ConfigFile = Annotated[Path, typer.Argument(help="The settings file, such as luthier.yaml.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to replace: section.name=value ...")]
RunName = Annotated[str, typer.Argument(help="A run folder, its name in ./runs, or last.")]
Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


class Artifact(StrEnum):
    adapter = "adapter"
    merged = "merged"


class Precision(StrEnum):
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Onto(StrEnum):
    trained = "trained"
    original = "original"


def train(
    config: Annotated[str | None, typer.Argument(help="The settings file, such as luthier.yaml.")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Go on with a run that was stopped: its folder, its name, or last; without a RUN: the newest stopped one of CONFIG."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune as a settings file says.

    Example: luthier train my-project/luthier.yaml training.learning_rate=1e-4
    """
    if config and "=" in config and not Path(config).is_file():
        overrides, config = [config, *(overrides or [])], None  # --resume RUN section.name=value
    if resume and Path(resume).name == "config.yaml" and run_folder.RunFolder(Path(resume).parent).plan.is_file():
        resume = str(Path(resume).parent)  # --resume RUN/config.yaml
    elif config is None and resume and Path(resume).is_file():
        config, resume = resume, ""  # --resume CONFIG
    if config is None and not resume:
        raise CallError(
            "a settings file is needed, or --resume RUN (which has its own)", where="luthier train", next_step="luthier train luthier.yaml"
        )
    from luthier.config.load import load_config

    loaded = load_config(config, overrides) if config else None
    stopped = run_folder.open_run(resume, Path(loaded.beside(loaded.settings.output_dir)) if loaded else Path("runs")) if resume else None
    terminal = Terminal(quiet=as_json)
    with heavy_imports():
        from luthier.recipes import training

    if stopped and loaded is None:
        loaded = load_config(stopped.config, overrides)
    assert loaded is not None
    run = training.fit(loaded, terminal, resume=stopped or (training.newest_stopped(loaded) if resume == "" else None))
    if as_json:
        print_json({"run": str(run.path), run.trained.name: str(run.trained), "report": str(run.report)})
        return
    terminal.say(f"run: {run.path}\nNext: luthier eval {run.path}   luthier chat {run.path}   luthier export {run.path}")


def with_run_to_resume(arguments: list[str]) -> list[str]:
    """The same arguments where --resume has a value: "" where no run follows it, but nothing, an option or an override.

    typer knows no option whose value may be left out.
    """
    if arguments[:1] != ["train"]:
        return arguments
    following = [*arguments[1:], "--"]
    return [
        "--resume=" if argument == "--resume" and (after.startswith("-") or ("=" in after and not run_folder.is_run(after))) else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def chat(
    run: RunName,
    prompt: Annotated[str | None, typer.Option(help="Ask this and end (default: a conversation).")] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Answers of both.")] = False,
    system: Annotated[str | None, typer.Option(help="Another system message than the one it was trained with.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest word each time; 1: drawn as the model would.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest words that have this share together.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Every draw comes from this number.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer; may be given several times.")] = None,
) -> None:
    """Talk to the tuned model, its base, or both.

    Example: luthier chat last --prompt "150 Pierce Rd, Itasca, IL 60143"
    """
    if base and compare:
        raise CallError("--base and --compare ask for different things", where="luthier chat", next_step="leave one of the two out")
    if temperature == 0 and (top_p < 1 or seed):
        raise CallError("--top-p and --seed do nothing without --temperature", where="luthier chat", next_step="--temperature 1, or leave them out")
    folder = run_folder.open_run(run)
    terminal = Terminal(quiet=prompt is not None)
    with heavy_imports():
        from luthier.engine.sampling import Sampling
        from luthier.recipes import conversation

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    voices = ["base", "tuned"] if compare else ["base" if base else "tuned"]
    talk = conversation.open_talk(folder, terminal, system=system, max_new_tokens=max_new_tokens, sampling=sampling, stop=stop or ())
    if "base" in voices and (line := conversation.about_base(folder)):
        terminal.say(line)
    if prompt is not None:
        _answer(talk, prompt, voices)
        return
    terminal.say("type a message; an empty line or Ctrl-D ends")
    while text := _read_line():
        _answer(talk, text, voices)


def _answer(talk: "conversation.Talk", text: str, voices: list[str]) -> None:  # type: ignore[name-defined]
    for voice in voices:
        if len(voices) > 1:
            sys.stdout.write(f"{voice}: ")
        for piece in talk.ask(text, voice):
            sys.stdout.write(harmless(piece))
            sys.stdout.flush()
        sys.stdout.write("\n")


def _read_line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def export(
    run: RunName,
    to: Annotated[Artifact, typer.Option(help="adapter (PEFT's format) or merged (one ordinary model).")] = Artifact.merged,
    folder: Annotated[Path | None, typer.Option(help="Where to (default: in the run folder).")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Number format of a merged model (default: bf16).")] = None,
    onto: Annotated[
        Onto | None, typer.Option(help="Base of a merged qlora adapter: trained (as it was quantized; the default) or original (as it was before).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the model for other tools, and prove that it answers as the trained one does.

    Example: luthier export last --to merged
    """
    if precision and to is Artifact.adapter:
        raise CallError("--precision has no effect on an adapter", where="luthier export", next_step="leave it out, or choose --to merged")
    source = run_folder.open_run(run)
    terminal = Terminal(quiet=as_json)
    with heavy_imports():
        from luthier.recipes import handover

    path, parity = handover.export(source, to.value, terminal, folder=folder, precision=(precision or Precision.bf16).value, onto=onto and onto.value)
    if as_json:
        print_json(parity)
    else:
        terminal.say(f"{path}: mean KL {parity.mean_kl:.1e} nats a token, {parity.greedy_agreement:.0%} equal answers")
    if not parity.passed:
        way_out = "--onto trained is exact" if onto is Onto.original else "--precision fp32 keeps every digit"
        raise LuthierError("what was written does not answer as the trained model does", where=str(path), next_step=way_out)
