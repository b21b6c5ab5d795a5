"""Why a row does not have the form that it should have: a short name, the field, and a sentence with the value and the next step."""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any

Value = dict[str, Any]

LONGEST_SHOWN = 40


class Unfit(Exception):
    """One row cannot be read as its format says. `path` is the field, such as messages[2].content; "" means the row itself."""

    def __init__(self, reason: str, path: str, problem: str) -> None:
        super().__init__(problem)
        self.reason, self.path, self.problem = reason, path, problem

    @property
    def detail(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem


def kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def shown(value: object) -> str:
    """A value as a message shows it: short, with what kind it is."""
    if isinstance(value, str):
        text = json.dumps(value[: LONGEST_SHOWN + 1], ensure_ascii=False)
        return text if len(value) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15:
        return f"the number {value}"
    return kind(value)


def near(name: object, known: Iterable[str]) -> str:
    """ "; nearest: ..." where one of the known names is like this one, else nothing."""
    found = difflib.get_close_matches(str(name)[:100], list(known), n=1)
    return f"; nearest: {found[0]}" if found else ""


def need(value: Mapping[str, Any], key: str, path: str = "") -> Any:
    """The value of a key that must be there. Raises Unfit that names the nearest key."""
    if key in value:
        return value[key]
    keys = [str(name) for name in value]
    found = next((name for name in keys if name.casefold() == key.casefold()), None) or next(iter(difflib.get_close_matches(key, keys, n=1)), None)
    there = ", ".join(sorted(keys)[:12]) or "nothing"
    hint = f'"{found}" is there: rename it to "{key}"' if found else f"there is: {there}"
    if found and not path:
        hint += f", or set data.columns: {{{key}: {found}}}"
    raise Unfit("missing_key" if path else "missing_column", path, f'has no "{key}"; {hint}' if path else f'the row has no "{key}"; {hint}')


def text(value: object, path: str) -> str:
    """A value that must be text. Null, numbers, lists and objects are refused, each with what to do."""
    if isinstance(value, str):
        return value
    if value is None:
        raise Unfit("not_text", path, "is null, not text; write the text, or leave the row out")
    step = "write it as text, in quotes" if isinstance(value, int | float) else "write the text itself"
    raise Unfit("not_text", path, f"is {shown(value)}, not text; {step}")


def optional_text(value: Mapping[str, Any], key: str) -> str:
    """The text of a column that may be missing or null, both of which are "" here."""
    return "" if value.get(key) is None else text(value[key], key)


def answer(value: object, path: str) -> str:
    """A text that is learned: it must say something."""
    if not (found := text(value, path)).strip():
        raise Unfit("empty_answer", path, f"is {shown(found)}, so there is nothing to learn; write the answer, or leave the row out")
    return found


def question(value: object, path: str) -> str:
    """A text that is answered: it must say something."""
    if not (found := text(value, path)).strip():
        raise Unfit("empty_prompt", path, f"is {shown(found)}, so nothing is asked; write the question, or leave the row out")
    return found


def listed(value: object, path: str) -> list[Any]:
    """A value that must be a list."""
    if not isinstance(value, list):
        raise Unfit("not_a_list", path, f"is {shown(value)}, not a list; write it as [...]")
    return value


def optional_list(value: object, path: str) -> list[Any]:
    """A list that may be missing: null and "" (an empty cell of a table) are no entries."""
    return [] if value is None or value == "" else listed(value, path)


def judgment(value: object, path: str) -> bool:
    """True or false, or 1 or 0; texts such as "false" and other numbers are refused, since they would all count as true somewhere."""
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    step = (
        "write true or false without quotes (a table of texts such as .csv cannot hold it: use .jsonl)"
        if isinstance(value, str)
        else "use true or false"
    )
    raise Unfit("not_true_or_false", path, f"is {shown(value)}, which is neither true nor false; {step}")


def from_json(value: str, path: str) -> Any:
    """The JSON value that a text spells. NaN, keys given twice and half characters are refused, as in the rows themselves."""
    try:
        found = json.loads(value, object_pairs_hook=_pairs, parse_constant=_constant)
        if "\\u" in value:
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        # UnicodeEncodeError is a ValueError, too.
        said = error.msg + f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error).splitlines()[0][:80]
        raise Unfit("not_json", path, f"is {shown(value)}, which is not JSON ({said}); write a JSON object or its text") from error
    return found


def to_json(value: object, path: str) -> str:
    """A value as JSON text, as it is. Raises Unfit for what JSON cannot hold (dates, NaN, half characters)."""
    try:
        found = json.dumps(value, ensure_ascii=False, allow_nan=False)
        found.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise Unfit("not_json", path, f"holds what JSON cannot ({str(error).splitlines()[0][:80]}); write it as text") from error
    return found


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'the key "{twice[:40]}" is given twice')
    return value


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")
