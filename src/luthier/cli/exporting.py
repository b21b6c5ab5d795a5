"""luthier export."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier import files, run_folder
from luthier.cli.loading import heavy_imports
from luthier.cli.terminal import Terminal, print_json
from luthier.errors import CallError

if TYPE_CHECKING:
    from luthier.records import Parity
    from luthier.run_folder import RunFolder


class Artifact(StrEnum):
    adapter = "adapter"
    merged = "merged"
    gguf = "gguf"
    gptq = "gptq"
    awq = "awq"
    int8 = "int8"
    fp8 = "fp8"
    ollama = "ollama"
    bundle = "bundle"
    hub = "hub"


class Use(StrEnum):
    low_latency = "low-latency"
    memory = "memory"
    multi_task = "multi-task"
    production = "production"


class Precision(StrEnum):
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Quantize(StrEnum):
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"
    q4_k_m = "q4_k_m"
    q5_k_m = "q5_k_m"
    q6_k = "q6_k"


class Onto(StrEnum):
    trained = "trained"
    original = "original"


class Content(StrEnum):
    adapter = "adapter"
    merged = "merged"


RunName = Annotated[str | None, typer.Argument(help="A run folder, its name in ./runs, or last.")]
To = Annotated[
    Artifact | None,
    typer.Option(
        help="adapter (PEFT), merged (one ordinary model; the default), gguf (llama.cpp), gptq or awq (4 bits), int8, fp8, ollama, "
        "bundle (with contract, report and checksums), hub (with its model card, sent)."
    ),
]
For = Annotated[Use | None, typer.Option("--for", help="Instead of --to: choose it by what the model is for, and say why.")]
OntoBase = Annotated[
    Onto | None, typer.Option(help="Base of a merged qlora adapter: trained (as it was quantized; the default) or original (as it was before).")
]
AllowLoss = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="What the run's metrics may lose, in their own unit: 0.02 (default: 0.1 for 8 bits and less, else not judged). A run without a "
        "metric of texts: the share by which its perplexity may rise, or, in llama.cpp, of tokens that may become others.",
    ),
]


def export(
    run: RunName = None,
    to: To = None,
    use: For = None,
    folder: Annotated[Path | None, typer.Option(help="Where to (default: in the run folder).")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Number format of a merged model (default: bf16).")] = None,
    quantize: Annotated[Quantize | None, typer.Option(help="Number format of a GGUF file (default: f16).")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="With --to gguf: the adapter alone, for llama.cpp beside its base.")] = False,
    onto: OntoBase = None,
    shard_size: Annotated[str | None, typer.Option(help="Largest file of a merged model: 500MB (default: 2GB).")] = None,
    allow_loss: AllowLoss = None,
    of: Annotated[Content | None, typer.Option(help="What a bundle or a push holds (default: the adapter, where there is one).")] = None,
    repo: Annotated[str | None, typer.Option(help="With --to hub: the repository, NAME/MODEL.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --to hub: a repository that is made is private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --to hub: make and compare everything, list it, and send nothing.")] = False,
    check: Annotated[Path | None, typer.Option(help="Instead: compare the files of a bundle with its checksums.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Write the model for other tools, and prove that it answers as the trained one does. Exit code 4 where it does not.

    Example: luthier export last --to merged
    """
    from luthier.export import staging, targets

    terminal = Terminal(quiet=as_json)
    if check:
        _check(check, terminal, as_json)
        return
    if run is None:
        raise CallError("which run is to be exported?", where="luthier export", next_step="luthier export last, or a run's folder or name")
    named = (to or Artifact.merged).value
    _refuse_what_has_no_effect(named, of_hub=bool(repo or private or dry_run), lora=lora, twice=bool(use and to))
    given = {"--precision": precision and precision.value, "--quantize": quantize and quantize.value}
    content = of and of.value
    wanted, number_format = "gguf-lora" if lora else named, None
    if use is None:
        number_format = targets.chosen(wanted, given, content)
    largest = staging.shard_bytes(shard_size) if shard_size else None
    source = run_folder.open_run(run)
    if use is not None:
        wanted, usual = _for(source, use, terminal)
        number_format = targets.chosen(wanted, given, content) or usual
    if largest and wanted not in ("merged", "bundle", "hub"):
        raise CallError(f"--shard-size has no effect on {wanted}", where="luthier export", next_step="leave it out, or --to merged")
    with heavy_imports():
        from luthier.export import parity
        from luthier.recipes import handover

    path, found = handover.export(
        source,
        wanted,
        terminal,
        folder=folder,
        precision=number_format,
        onto=onto and onto.value,
        shard_bytes=largest,
        allow_loss=allow_loss,
        push=handover.Push(repo, content, private, dry_run),
    )
    if as_json:
        print_json(found)
    else:
        _show(terminal, path, found, parity.in_words(found))
    handover.require(path, found)


def _refuse_what_has_no_effect(to: str, *, of_hub: bool, lora: bool, twice: bool) -> None:
    if twice:
        raise CallError("--for chooses what --to would say", where="luthier export", next_step="give one of the two")
    if of_hub and to != "hub":
        raise CallError("--repo, --private and --dry-run are of --to hub", where="luthier export", next_step="--to hub, or leave them out")
    if lora and to != "gguf":
        raise CallError("--lora is of --to gguf", where="luthier export", next_step="--to gguf --lora, or --to adapter")


def _for(source: "RunFolder", use: Use, terminal: Terminal) -> tuple[str, str | None]:
    """The target and its number format (None: the usual one) for what the model is for; the reason is said."""
    from luthier.config.load import load_config
    from luthier.config.methods import METHODS
    from luthier.export import deployment
    from luthier.plan import machine

    settings = load_config(source.config).settings
    here = machine.stored_machine(files.home()) or machine.this_machine_without_torch()
    choice = deployment.choose(use.value, METHODS["dora" if settings.lora.use_dora else settings.method], here.device != "cpu")
    stored = f" ({choice.stored})" if choice.stored else ""
    terminal.say(f"--for {use.value}: --to {choice.to}{stored}, for {here.device}: {choice.why}")
    return choice.to, choice.stored or None


def _check(folder: Path, terminal: Terminal, as_json: bool) -> None:
    from luthier.export import bundle

    count = bundle.check(folder)
    if as_json:
        print_json({"folder": str(folder), "files": count, "passed": True})
    else:
        terminal.say(f"{folder}: {count} files are as they were written")


def _show(terminal: Terminal, path: Path, found: "Parity", rows: list[list[str]]) -> None:
    """The certificate as a table."""
    terminal.table(["Measured", "Trained against exported", "Allowed"], rows, title=f"{found.artifact}, run by {found.engine}")
    terminal.say(f"{path}: {'passed' if found.passed else 'failed'}, {found.prompts} answers compared")
