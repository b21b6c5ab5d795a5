"""Several trained adapters of one base become one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.load import load_config
from luthier.errors import CallError, RunError
from luthier.models import adapters, combine, find, load, quantized, weights
from luthier.reporting import Reporter, Silent
from luthier.run_folder import open_run


@dataclass(frozen=True, slots=True)
class Part:
    """One adapter: its folder, its weight in the sum, its base (name as written, and folder), and what it was trained beside, where known."""

    folder: Path
    weight: float
    base_name: str
    base: Path
    beside: str


def merge(parts: Sequence[str], to: Path, how: str = "cat", density: float = 0.5, reporter: Reporter | None = None) -> Path:
    """Combine adapters, each written RUN_OR_FOLDER:WEIGHT, into one adapter in PEFT's format in the folder `to`, which must not exist.

    `how` is one of models.combine.HOW. All must be of one base. Raises CallError for what is written wrongly, ModelError and RunError for
    what is not an adapter or does not fit.
    """
    reporter = reporter or Silent()
    if how not in combine.HOW:
        raise CallError(f"no such way to combine adapters: {how}", where="--how", next_step=f"one of: {', '.join(combine.HOW)}")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise RunError("is there already, and nothing is overwritten", where=str(to), next_step="choose a folder that does not exist")
    if len(parts) < 2:
        raise CallError("two adapters or more are combined", where="luthier merge", next_step="luthier merge RUN:0.7 OTHER:0.3 --to FOLDER")
    if not 0 < density <= 1:
        raise CallError(f"--density is {density:g}", where="--density", next_step="above 0, and 1 at most (0.5 keeps half of the numbers)")
    read = [_part(text, reporter) for text in parts]
    if not any(part.weight for part in read):
        raise CallError("every weight is 0, and the sum is nothing", where="luthier merge", next_step="luthier merge RUN:0.7 OTHER:0.3 --to FOLDER")
    _check_one_base(read)
    if len(trained_beside := {part.beside: part for part in read if part.beside}) > 1:
        which = " and ".join(f"{part.folder} beside {part.beside}" for part in trained_beside.values())
        reporter.say(f"trained beside different bases: {which}")
    combined = combine.combine(read[0].base, [(part.folder, part.weight) for part in read], how, density)
    files.make_folder(to.parent)
    adapters.save_adapter(combined, to, read[0].base_name, _tokenizer(read))
    return to


def _part(text: str, reporter: Reporter) -> Part:
    name, colon, written = text.rpartition(":")
    try:
        weight = float(written)
    except ValueError:
        weight = float("nan")
    if not colon or not name or not abs(weight) < float("inf"):
        raise CallError(f"{text!r} names no adapter with a weight", where="luthier merge", next_step="RUN:0.7, or FOLDER:0.7")
    found = find.folder_of(name)
    if found and (found / adapters.CONFIG).is_file():
        folder, base_name, base = found, adapters.base_name(found), adapters.base_folder(found, reporter)
    else:
        run = open_run(name)
        if not run.adapter.is_dir():
            raise RunError("holds no adapter", where=str(run.path), next_step="name a run that has ended and trained one")
        config = load_config(run.config)
        folder, base_name = run.adapter, config.settings.model
        base = find.find(base_name, reporter, config.file.parent)
    made_by = folder.parent / "config.yaml"
    beside = quantized.base_of(load_config(made_by).settings) if made_by.is_file() else ""
    return Part(folder, weight, base_name, base, beside)


def _check_one_base(parts: Sequence[Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        if part.base.resolve() != first.base.resolve() and weights.fingerprint(part.base) != weights.fingerprint(first.base):
            raise CallError(
                f"{first.folder} is an adapter of {first.base_name} and {part.folder} of {part.base_name}",
                where="luthier merge",
                next_step="combine adapters of one base",
            )


def _tokenizer(parts: Sequence[Part]) -> Any:
    """The tokenizer that the adapters were trained with; None where none is kept beside them. Raises CallError where they differ."""
    kept = [part.folder / "tokenizer.json" for part in parts if (part.folder / "tokenizer.json").is_file()]
    if len({path.read_bytes() for path in kept}) > 1:
        both = " and ".join(str(path.parent) for path in kept)
        raise CallError(f"{both} were trained with different tokenizers", where="luthier merge", next_step="combine adapters of one tokenizer")
    return load.load_tokenizer(kept[0].parent) if kept else None
