"""luthier export."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    list[Artifact] | None,
    typer.Option(
        help="adapter (PEFT), merged (one ordinary model; the default), gguf (llama.cpp), gptq or awq (4 bits), int8, fp8, ollama, "
        "bundle (with contract, report and checksums), hub (with its model card, sent). May be given several times."
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
    quantize: Annotated[
        list[Quantize] | None, typer.Option(help="Number format of a GGUF file (default: f16). Several times: a file of each.")
    ] = None,
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
    kinds = [one.value for one in to or [Artifact.merged]]
    for kind in kinds:
        _refuse_what_has_no_effect(kind, of_hub=bool(repo or private or dry_run), lora=lora, twice=bool(use and to))
    formats = {"--precision": [precision.value] if precision else [], "--quantize": [one.value for one in quantize or []]}
    content = of and of.value
    wanted = _wanted(["gguf-lora" if lora else kind for kind in kinds], formats, content) if use is None else []
    largest = staging.shard_bytes(shard_size) if shard_size else None
    source = run_folder.open_run(run)
    if use is not None:
        name, usual = _for(source, use, terminal)
        wanted = [(name, stored or usual) for _, stored in _wanted([name], formats, content)]
    if len(wanted) > 1 and folder:
        raise CallError("several exports have their own places in the run", where="--folder", next_step="leave it out, or export one by one")
    if largest and not any(name in ("merged", *targets.WRAPPED) for name, _ in wanted):
        raise CallError(f"--shard-size has no effect on {wanted[0][0]}", where="luthier export", next_step="leave it out, or --to merged")
    with heavy_imports():
        from luthier.recipes import handover

    trained, push = handover.Trained(), handover.Push(repo, content, private, dry_run)
    made = []
    if len(wanted) > 1:
        handover.check(source, wanted, onto and onto.value)
    for name, stored in wanted:
        how: dict[str, Any] = {"folder": folder, "precision": stored, "shard_bytes": largest, "allow_loss": allow_loss, "push": push}
        made.append(handover.export(source, name, terminal, onto=onto and onto.value, trained=trained, **how))
        if not as_json:
            _show(terminal, *made[-1])
    if as_json:
        print_json([found for _, found in made] if len(made) > 1 else made[0][1])
    for path, found in made:
        handover.require(path, found)


def _wanted(kinds: list[str], formats: dict[str, list[str]], content: str | None) -> list[tuple[str, str | None]]:
    """Every artifact with its number format; among several, an option goes to those that have it. Raises CallError for one without effect."""
    from luthier.export import targets

    if len(kinds) > 1 and (alone := set(kinds) & set(targets.WRAPPED)):
        raise CallError(f"--to {min(alone)} stands alone", where="luthier export", next_step="export it by itself")
    wanted: list[tuple[str, str | None]] = []
    for kind in kinds:
        own = {name: values for name, values in formats.items() if values and (len(kinds) == 1 or targets.TARGETS[kind].option == name)}
        for place in range(max(map(len, own.values()), default=1)):
            given = {name: values[min(place, len(values) - 1)] for name, values in own.items()}
            wanted.append((kind, targets.chosen(kind, given, content)))
    for name, values in formats.items():
        if values and len(kinds) > 1 and all(targets.TARGETS[kind].option != name for kind in kinds):
            raise CallError(f"{name} has no effect on {', '.join(kinds)}", where="luthier export", next_step="leave it out")
    return list(dict.fromkeys(wanted))


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


def _show(terminal: Terminal, path: Path, found: "Parity") -> None:
    """The certificate as a table."""
    from luthier.export import parity

    rows = parity.in_words(found)
    terminal.table(["Measured", "Trained against exported", "Allowed"], rows, title=f"{found.artifact}, run by {found.engine}")
    terminal.say(f"{path}: {'passed' if found.passed else 'failed'}, {found.prompts} answers compared")
