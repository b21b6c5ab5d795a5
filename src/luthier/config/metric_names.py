"""The names of the metrics, with what may follow them; no torch, so that a wrong name is found before anything is loaded."""

import difflib
import re
from collections.abc import Callable, Collection
from pathlib import PurePath
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
# Metrics that are no share of anything, and not shown in percent. The last four are lm-eval's.
PLAIN = frozenset({"bleu", "chrf", "length", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter"})
LOWER_IS_BETTER = frozenset({"perplexity", "repetition", "refusals", "word_perplexity", "byte_perplexity", "bits_per_byte", "ter"})
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


def kind_of(title: str) -> str:
    """The metric behind a title: of "TASK METRIC (FILTER)", as a suite's are called, the metric; of NAME=FILE the name."""
    return title.partition("=")[0].partition(" (")[0].rpartition(" ")[2]


def lower_is_better(title: str, said: Collection[str] = ()) -> bool:
    """Whether less is better; `said` are the titles of which their suite says so."""
    return title in said or kind_of(title) in LOWER_IS_BETTER


def is_share(title: str, low: float, high: float) -> bool:
    """Whether a value between these bounds is shown in percent: one from 0 to 1 that is not one of PLAIN."""
    return kind_of(title) not in PLAIN and low >= 0 and high <= 1


def with_file(name: str, place: Callable[[str], str]) -> str:
    """The same metric with the file that its name holds, if any, where `place` puts it."""
    known, _, argument = name.partition("=")
    if NAMES.get(known) == "FILE":
        return f"{known}={place(argument)}"
    file, _, function = name.rpartition(":")
    moved = f"{place(file)}:{function}" if OWN.fullmatch(name) and file.endswith(".py") else name
    return moved if OWN.fullmatch(moved) else name  # a folder with : or = in it cannot be written in a name


def shown(name: str) -> str:
    """The name as it is shown to others: of a file in it the name alone, without the folders of this machine."""
    return with_file(name, lambda file: PurePath(file).name)


MetricName = Annotated[str, Field(min_length=1, examples=sorted(NAMES)), AfterValidator(check)]
