"""The names of the metrics, with what may follow them; no torch, so that a wrong name is found before anything is loaded."""

import difflib
import re
from typing import Annotated

from pydantic import AfterValidator, Field

# What stands after "=" in each: nothing, something that must, or (in brackets) something that may.
NAMES = {
    # name             argument
    "exact_match":     "",
    "valid_json":      "",
    "field_f1":        "",
    "json_schema":     "FILE",
    "regex":           "[PATTERN]",
    "squad_em":        "",
    "squad_f1":        "",
    "accuracy":        "",
    "macro_f1":        "",
    "rouge1":          "",
    "rouge2":          "",
    "rougeL":          "",
    "bleu":            "",
    "chrf":            "",
    "sql_match":       "FILE",
    "perplexity":      "",
    "token_accuracy":  "",
    "choice":          "",
    "repetition":      "",
    "length":          "",
    "stop_rate":       "",
    "refusals":        "",
}  # fmt: skip
PASS = re.compile(r"pass@([1-9]\d{0,3})")
OWN = re.compile(r"[^:=]+:[A-Za-z_]\w*")


def check(name: str) -> str:
    """The name of a metric: one of NAMES, pass@K, or a function of one's own as module:function or FILE.py:function. Raises ValueError."""
    known, equals, argument = name.partition("=")
    if known not in NAMES:
        if PASS.fullmatch(name) or OWN.fullmatch(name):
            return name
        nearest = difflib.get_close_matches(known, [*NAMES, "pass@1"], 1, 0.5)
        said = f"nearest: {nearest[0]}" if nearest else f"known: {', '.join(NAMES)}, pass@K, module:function"
        raise ValueError(f"unknown metric {name!r}; {said}")
    if NAMES[known] == "FILE" and not argument:
        raise ValueError(f"{known} needs a file: {known}=FILE")
    if equals and not (NAMES[known] and argument):
        raise ValueError(f"{known} takes nothing after it, and {name!r} gives it something" if not NAMES[known] else f"{name!r} ends at its =")
    return name


MetricName = Annotated[str, Field(min_length=1, examples=sorted(NAMES)), AfterValidator(check)]
