"""The types of PEFT by name, as the installed PEFT lists them, without importing it. No torch here."""

import ast
import difflib
import functools
from importlib.util import find_spec
from pathlib import Path

from luthier.errors import ConfigError

# Types that are not run by their name: why, and what to do.
ELSEWHERE = {
    "LORA": ("is a method of its own", "method: lora"),
    "PREFIX_TUNING": ("is a method of its own", "method: prefix"),
    "PROMPT_TUNING": ("is a method of its own", "method: prompt"),
    "P_TUNING": ("is a method of its own", "method: p_tuning"),
    "ADALORA": ("moves its ranks in steps of its own between updates", "method: lora with lora.rank_pattern, or method: dora"),
    "MULTITASK_PROMPT_TUNING": ("wants the number of its task with every row", "method: prompt"),
    "POLY": ("wants the number of its task with every row", "method: lora"),
    "CPT": ("makes its prompt from the tokens of examples", "method: prompt"),
    "CARTRIDGE": ("begins with the keys and values of a text, made by steps of its own", "method: prefix"),
    "XLORA": ("mixes LoRA adapters that are trained already", "method: lora"),
    "SHADOW": ("trains a second model by a loss of its own", "method: lora"),
}


@functools.cache
def known_types() -> tuple[str, ...]:
    """The types that `method: peft` runs, sorted; () where no PEFT is installed."""
    package = find_spec("peft")
    listing = Path((package and package.origin) or "").parent / "utils" / "peft_types.py"
    if not listing.is_file():
        return ()
    tree = ast.parse(listing.read_text(encoding="utf-8"))
    kinds = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PeftType")
    names = {target.id for node in kinds.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)}
    return tuple(sorted(names - ELSEWHERE.keys()))


def type_of(given: object) -> str:
    """The name of a type in PEFT's spelling. Raises ConfigError for one that `method: peft` does not run, with the nearest."""
    if not isinstance(given, str):
        raise ConfigError("no type is named", where="peft.type", next_step=f"one of: {', '.join(known_types())}")
    name = given.upper().replace("-", "_")
    if name in ELSEWHERE:
        why, way_out = ELSEWHERE[name]
        raise ConfigError(f"{given} {why}", where="peft.type", next_step=way_out)
    if known_types() and name not in known_types():
        near = difflib.get_close_matches(name, known_types(), n=1)
        raise ConfigError(
            f"PEFT has no type {given}", where="peft.type", next_step=f"did you mean {near[0]}?" if near else f"one of: {', '.join(known_types())}"
        )
    return name
