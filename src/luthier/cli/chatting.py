"""luthier chat."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier import run_folder
from luthier.cli.loading import heavy_imports
from luthier.cli.retrieval import say_passages
from luthier.cli.terminal import Terminal, harmless
from luthier.errors import CallError, RunError

if TYPE_CHECKING:
    from luthier.recipes.conversation import FarTalk, Talk

SERVER = "A server"


def chat(
    run: Annotated[str | None, typer.Argument(help="A run (its folder, its name in ./runs, or last), a model, or an exported folder.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Ask this and end (default: a conversation).")] = None,
    base: Annotated[bool, typer.Option("--base", help="Talk to the base model.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Answers of both.")] = False,
    system: Annotated[str | None, typer.Option(help="Another system message than the one it was trained with.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest word each time; 1: drawn as the model would.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Draw among the likeliest words that have this share together.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Every draw comes from this number.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer; may be given several times.")] = None,
    rag: Annotated[Path | None, typer.Option(help="Answer from the documents of this index (luthier rag index).")] = None,
    url: Annotated[str | None, typer.Option(help="Talk to a server with OpenAI's API instead.", rich_help_panel=SERVER)] = None,
    model: Annotated[str | None, typer.Option(help="The model that the server is asked for.", rich_help_panel=SERVER)] = None,
    key_env: Annotated[str | None, typer.Option(help="The environment variable that holds its key.", rich_help_panel=SERVER)] = None,
) -> None:
    """Talk to the tuned model, its base, or both; or to a server.

    Example: luthier chat last --prompt "150 Pierce Rd, Itasca, IL 60143"
    """
    if base and compare:
        raise CallError("--base and --compare ask for different things", where="luthier chat", next_step="leave one of the two out")
    if temperature == 0 and (top_p < 1 or seed):
        raise CallError("--top-p and --seed do nothing without --temperature", where="luthier chat", next_step="--temperature 1, or leave them out")
    _check_who(run, url, model, key_env, base or compare)
    if rag is not None and url is not None:
        problem = "looks documents up here, and the model is elsewhere"
        raise CallError(problem, where="luthier chat --rag", next_step="luthier serve RUN --rag INDEX there")
    terminal = Terminal(quiet=prompt is not None)
    with heavy_imports():
        from luthier.engine.sampling import Sampling
        from luthier.recipes import conversation

    sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    voices = ["base", "tuned"] if compare else ["base" if base else "tuned"]
    how: Any = {"system": system, "max_new_tokens": max_new_tokens, "sampling": sampling, "stop": stop or ()}
    talk: Talk | FarTalk
    if url is not None:
        talk = conversation.open_far(url, terminal, model=model, key=_key(key_env), **how)
    elif (folder := _run(str(run))) is None:
        talk = conversation.open_model(str(run), terminal, **how)
    else:
        talk = conversation.open_talk(folder, terminal, **how)
        if "base" in voices and (line := conversation.about_base(folder)):
            terminal.say(line)
    if rag is not None and not isinstance(talk, conversation.FarTalk):
        from luthier.rag.grounding import Grounding

        talk.look_up_in(rag, terminal, Grounding())
    if prompt is not None:
        _answer(talk, prompt, voices)
        return
    terminal.say("type a message; an empty line or Ctrl-D ends")
    while text := _read_line():
        _answer(talk, text, voices)


def _check_who(run: str | None, url: str | None, model: str | None, key_env: str | None, base: bool) -> None:
    if (run is None) == (url is None):
        raise CallError("talks to one: a run or a model, or a server", where="luthier chat", next_step="luthier chat RUN, or luthier chat --url URL")
    if url is None and (model or key_env):
        raise CallError("--model and --key-env are for --url", where="luthier chat", next_step="leave them out")
    if url is not None and base:
        raise CallError("a server has no base beside its model", where="luthier chat --base", next_step="--model NAME, with the name of its base")


def _run(name: str) -> run_folder.RunFolder | None:
    """The run of this name; None for a model (its folder, an adapter's, or its name in the catalog). Raises RunError for what is neither."""
    try:
        return run_folder.open_run(name)
    except RunError:
        from luthier.models import find

        folder = find.folder_of(name)
        if find.of_catalog(name) or (folder and ((folder / "config.json").is_file() or find.holds_adapter(folder))):
            return None
        raise


def _key(name: str | None) -> str:
    if name is None:
        return ""
    if not (key := os.environ.get(name, "").strip()):
        raise CallError("this environment variable is not set, or empty", where=f"--key-env {name}", next_step=f"export {name}=... before the call")
    return key


def _answer(talk: "Talk | FarTalk", text: str, voices: list[str]) -> None:
    for voice in voices:
        if len(voices) > 1:
            sys.stdout.write(f"{voice}: ")
        said = ""
        for piece in talk.ask(text, voice):
            sys.stdout.write(harmless(piece))
            sys.stdout.flush()
            said += piece
        sys.stdout.write("\n")
        say_passages(*talk.sources(said), Terminal(quiet=True))


def _read_line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""
